"""Reception of an entry: the order of its messages, and the reassembly and verification of its blobs."""

from __future__ import annotations

import math

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import invalid

from services.cache.entries import Admission, Blob, Entry, Space
from services.cache.validation import (
    Limits,
    check_header,
    check_latents,
    check_new_entry,
    check_side_data,
    check_side_data_size,
)
from services.contract.identity import entry_id, identity_digest, prompt_hash


class Upload:
    """Receives the messages of one `Admit` call; everything stays in memory until `finish`.

    Order of the messages: the entry, then for each step, and for the side data, a header and its chunks.
    Every method raises INVALID_FIELD that names the invalid field.
    """

    def __init__(self, tenant: str, limits: Limits) -> None:
        self._tenant = tenant
        self._limits = limits
        self._entry: cache_pb2.NewEntry | None = None
        # Keyed by step; the key of side data is None.
        self._received: dict[int | None, tuple[Blob, BlobAssembler]] = {}
        self._current: tuple[Blob, BlobAssembler] | None = None

    def add(self, message: cache_pb2.AdmitRequest) -> None:
        match message.WhichOneof("part"):
            case "entry":
                self._add_entry(message.entry)
            case "header":
                self._add_header(message.header)
            case "chunk":
                self._add_chunk(message.chunk)
            case _:
                raise invalid("part", "must be set to entry, header or chunk")

    def finish(self, now_ms: int, lifetime_seconds: float = 0.0) -> Admission:
        """Returns the entry once all messages arrived. Reads every blob, so call it off the event loop.

        Args:
            lifetime_seconds: time after which an entry expires, unless its request states less; 0 for never.
        """
        entry = self._require_entry()
        self._require_complete_blob()
        self._require_all_blobs(entry)
        identity = identity_digest(entry.identity)
        wanted: list[int | None] = [*sorted(entry.steps)]
        if entry.side_data:
            wanted.append(None)
        received = [self._received[step] for step in wanted]
        data = {}
        for blob, assembler in received:
            try:
                content = assembler.finish()
                if blob.step is None:
                    check_side_data(content)
                else:
                    check_latents(content, entry.identity, blob.step)
            except BlobFault as fault:
                raise invalid("chunk", f"blob of {blob.name}: {fault}") from fault
            data[blob.digest] = content
        lifetimes = [lifetime_seconds] if lifetime_seconds else []
        if entry.retention.HasField("lifetime"):
            lifetimes.append(entry.retention.lifetime.ToNanoseconds() / 1e9)
        return Admission(
            space=Space(entry.retrieval_encoder_id, len(entry.vector)),
            entry=Entry(
                entry_id=entry_id(self._tenant, identity, entry.prompt, entry.seed),
                tenant=self._tenant,
                identity=identity,
                model_id=entry.identity.model_id,
                prompt=entry.prompt,
                prompt_hash=prompt_hash(entry.prompt),
                blobs=tuple(blob for blob, _ in received),
                cost_seconds=entry.cost_seconds,
                created_ms=now_ms,
                traceparent=entry.traceparent,
                generation_id=entry.generation_id,
                seed=entry.seed,
                expires_ms=now_ms + math.ceil(1000 * min(lifetimes)) if lifetimes else 0,
                from_hit=entry.identity.HasField("approximation"),
                seed_drawn=entry.seed_drawn,
                pinned=entry.retention.pinned,
            ),
            vector=tuple(entry.vector),
            data=data,
        )

    def _add_entry(self, entry: cache_pb2.NewEntry) -> None:
        if self._entry is not None:
            raise invalid("entry", "must come once, as the first message")
        check_new_entry(entry, self._limits)
        self._entry = entry

    def _add_header(self, header: latents_pb2.BlobHeader) -> None:
        entry = self._require_entry()
        self._require_complete_blob()
        check_header(header, entry, self._received, self._limits)
        blob = _to_blob(header)
        total = blob.size_bytes + sum(other.size_bytes for other, _ in self._received.values())
        if total > self._limits.entry:
            raise invalid(
                "header.size_bytes",
                f"the blobs of an entry must be at most {self._limits.entry} bytes together"
                " (CHORUS_CACHE_MAX_ENTRY_BYTES)",
            )
        self._current = (blob, BlobAssembler(blob.size_bytes, blob.digest, self._limits.blob))
        self._received[blob.step] = self._current

    def _add_chunk(self, chunk: bytes) -> None:
        self._require_entry()
        if self._current is None:
            raise invalid("chunk", "must follow the header that announces it")
        if not chunk:
            raise invalid("chunk", "must not be empty")
        blob, assembler = self._current
        try:
            assembler.add(chunk)
        except BlobFault as fault:
            raise invalid("chunk", f"blob of {blob.name}: {fault}") from fault

    def _require_entry(self) -> cache_pb2.NewEntry:
        if self._entry is None:
            raise invalid("entry", "must be the first message")
        return self._entry

    def _require_complete_blob(self) -> None:
        if self._current is not None and not self._current[1].complete:
            blob = self._current[0]
            raise invalid("chunk", f"blob of {blob.name}: ended before its {blob.size_bytes} announced bytes")

    def _require_all_blobs(self, entry: cache_pb2.NewEntry) -> None:
        missing = sorted(set(entry.steps) - self._received.keys())
        if missing:
            raise invalid("entry.steps", f"the stream ended before the blobs of steps {missing}")
        if not entry.side_data:
            return
        if None not in self._received:
            raise invalid("entry.side_data", "the stream ended before the blob of side data")
        sizes = {step: blob.size_bytes for step, (blob, _) in self._received.items()}
        check_side_data_size(sizes.pop(None), sum(sizes.values()), entry)


def _to_blob(header: latents_pb2.BlobHeader) -> Blob:
    """Converts a header that passed `check_header`."""
    step = None if header.kind == latents_pb2.BLOB_KIND_SIDE_DATA else header.step.index
    return Blob(step, header.step.sigma, header.size_bytes, header.digest)
