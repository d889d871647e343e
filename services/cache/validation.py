"""Validates requests and the contents of blobs, field by field."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.chunks import BlobFault
from chorus_rpc.errors import Violations, invalid
from chorus_rpc.limits import (
    DEFAULT_ENTRIES_PAGE,
    DEFAULT_MAPPED_ENTRIES,
    MAX_ADAPTERS,
    MAX_AGE_SECONDS,
    MAX_BLOBS,
    MAX_DONORS,
    MAX_ENCODER_ID_CHARACTERS,
    MAX_ENTRIES_PAGE,
    MAX_GROWTH_POINTS,
    MAX_ID_CHARACTERS,
    MAX_MAPPED_ENTRIES,
    MAX_VECTOR_DIM,
    NORM_TOLERANCE,
    SIDE_DATA_SHARE,
)
from google.protobuf import duration_pb2

from services.cache.entries import PLAIN_TEXT, SHA256_HEX, Space
from services.cache.index import Selection
from services.contract.identity import find_approximation_fault
from services.contract.retention import find_retention_fault
from services.contract.safetensors_header import parse_tensor_headers
from services.contract.schedule import find_schedule_fault

MAX_SIDE_TENSORS = 16
_MAX_EXTENT = 16_384
_MAX_COST_SECONDS = 1e6
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# By latents_pb2.DType: name in a safetensors header, and bytes of a value.
_DTYPES = {
    latents_pb2.D_TYPE_FLOAT32: ("F32", 4),
    latents_pb2.D_TYPE_FLOAT16: ("F16", 2),
    latents_pb2.D_TYPE_BFLOAT16: ("BF16", 2),
}


@dataclass(frozen=True)
class Limits:
    """Upper bounds from the settings, in bytes.

    Attributes:
        prompt: bound on the prompt of an entry, in UTF-8.
        blob: bound on one blob.
        entry: bound on all blobs of an entry together.
    """

    prompt: int
    blob: int
    entry: int


def check_lookup(request: cache_pb2.LookupRequest) -> Space:
    """Validates a request; returns the space it searches."""
    violations = Violations()
    _check_identity(violations, "identity", request.identity)
    _check_encoder(violations, "retrieval_encoder_id", request.retrieval_encoder_id)
    _check_vector(violations, "vector", request.vector)
    violations.require(
        1 <= request.limit <= MAX_DONORS, "limit", f"must be 1 to {MAX_DONORS}, not {request.limit}"
    )
    violations.require(
        -1 <= request.min_score <= 1, "min_score", f"must be a cosine, -1 to 1, not {request.min_score:g}"
    )
    violations.raise_if_any()
    return Space(request.retrieval_encoder_id, len(request.vector))


def check_find(request: cache_pb2.FindRequest, limits: Limits) -> Space:
    """Validates a request; returns the space of its entry."""
    violations = Violations()
    _check_identity(violations, "identity", request.identity)
    _check_encoder(violations, "retrieval_encoder_id", request.retrieval_encoder_id)
    _check_vector_dim(violations, request.vector_dim)
    _check_prompt(violations, "prompt", request.prompt, limits)
    violations.raise_if_any()
    return Space(request.retrieval_encoder_id, request.vector_dim)


def check_fetch(request: cache_pb2.FetchRequest) -> Space:
    """Validates a request; returns the space of its entry."""
    violations = Violations()
    _check_identity(violations, "identity", request.identity)
    _check_sha256(violations, "entry_id", request.entry_id)
    _check_encoder(violations, "retrieval_encoder_id", request.retrieval_encoder_id)
    _check_vector_dim(violations, request.vector_dim)
    _check_steps(violations, "steps", request.steps)
    violations.raise_if_any()
    return Space(request.retrieval_encoder_id, request.vector_dim)


def check_purge(request: cache_pb2.PurgeRequest, now_ms: int) -> Selection:
    """Validates a request; returns the rows it selects."""
    violations = Violations()
    aged = request.HasField("older_than")
    violations.require(
        bool(request.entry_id or request.model_id or aged or request.all),
        "all",
        "at least one field must be set; set `all` to drop every entry of the tenant",
    )
    if request.entry_id:
        _check_sha256(violations, "entry_id", request.entry_id)
    if request.model_id:
        _check_plain(violations, "model_id", request.model_id)
    if aged:
        _check_age(violations, "older_than", request.older_than)
    violations.raise_if_any()
    return Selection(
        entry_id=request.entry_id or None,
        model_id=request.model_id or None,
        created_before_ms=now_ms - request.older_than.ToMilliseconds() if aged else None,
    )


def check_list(request: cache_pb2.ListEntriesRequest) -> int:
    """Validates a request; returns the number of entries of a page."""
    violations = Violations()
    violations.require(
        request.page_size <= MAX_ENTRIES_PAGE,
        "page_size",
        f"must be 0 to {MAX_ENTRIES_PAGE}, not {request.page_size}",
    )
    _check_order(violations, request.order)
    violations.raise_if_any()
    return request.page_size or DEFAULT_ENTRIES_PAGE


def check_map(request: cache_pb2.MapEntriesRequest) -> int:
    """Validates a request; returns the number of entries to place."""
    violations = Violations()
    bound = f"must be 0 to {MAX_MAPPED_ENTRIES}, not {request.limit}"
    violations.require(request.limit <= MAX_MAPPED_ENTRIES, "limit", bound)
    _check_order(violations, request.order)
    violations.raise_if_any()
    return request.limit or DEFAULT_MAPPED_ENTRIES


def check_stats(request: cache_pb2.StatsRequest) -> None:
    """Validates a request for statistics."""
    points, violations = request.growth_points, Violations()
    bound = f"must be 0, or 2 to {MAX_GROWTH_POINTS}, not {points}"
    violations.require(points != 1 and points <= MAX_GROWTH_POINTS, "growth_points", bound)
    violations.raise_if_any()


def _check_order(violations: Violations, order: cache_pb2.EntryOrder.ValueType) -> None:
    violations.require(order in cache_pb2.EntryOrder.values(), "order", f"must be an EntryOrder, not {order}")


def check_entry_id(entry_id: str) -> None:
    """Validates a request that names one entry."""
    violations = Violations()
    _check_sha256(violations, "entry_id", entry_id)
    violations.raise_if_any()


def check_new_entry(entry: cache_pb2.NewEntry, limits: Limits) -> None:
    """Validates the first message of an admission."""
    violations = Violations()
    _check_identity(violations, "entry.identity", entry.identity)
    _check_encoder(violations, "entry.retrieval_encoder_id", entry.retrieval_encoder_id)
    _check_vector(violations, "entry.vector", entry.vector)
    _check_prompt(violations, "entry.prompt", entry.prompt, limits)
    violations.require(
        0 <= entry.cost_seconds <= _MAX_COST_SECONDS,
        "entry.cost_seconds",
        f"must be 0 to {_MAX_COST_SECONDS:g}, not {entry.cost_seconds:g}",
    )
    violations.require(
        not entry.traceparent or _TRACEPARENT.fullmatch(entry.traceparent) is not None,
        "entry.traceparent",
        "must be a W3C traceparent, or empty",
    )
    if entry.generation_id:
        _check_plain(violations, "entry.generation_id", entry.generation_id)
    _check_steps(violations, "entry.steps", entry.steps)
    if (fault := find_retention_fault(entry.retention)) is not None:
        violations.require(False, "entry.retention.lifetime", fault)
    violations.raise_if_any()


def check_header(
    header: latents_pb2.BlobHeader, entry: cache_pb2.NewEntry, taken: Container[int | None], limits: Limits
) -> None:
    """Validates the header of a blob.

    Args:
        taken: steps of the headers received before; None means the side data.
    """
    violations = Violations()
    if header.kind == latents_pb2.BLOB_KIND_SIDE_DATA:
        violations.require(
            entry.side_data and None not in taken,
            "header.kind",
            "side data must be announced by entry.side_data and sent once",
        )
        violations.require(not header.HasField("step"), "header.step", "must not be set for side data")
    elif violations.require(
        header.kind == latents_pb2.BLOB_KIND_UNSPECIFIED,
        "header.kind",
        f"must be unset for latents, or BLOB_KIND_SIDE_DATA, not {header.kind}",
    ):
        _check_step(violations, header.step, entry, taken)
    violations.require(
        0 < header.size_bytes <= limits.blob,
        "header.size_bytes",
        f"must be 1 to {limits.blob} (CHORUS_CACHE_MAX_BLOB_BYTES), not {header.size_bytes}",
    )
    _check_sha256(violations, "header.digest", header.digest)
    violations.raise_if_any()


def check_side_data_size(size_bytes: int, stored_bytes: int, entry: cache_pb2.NewEntry) -> None:
    """Validates the size of side data against the latents of its entry, as they would be in the identity's
    type.

    Args:
        stored_bytes: total size of the latents as they are stored, perhaps in another type.
    """
    _, width = _DTYPES[entry.identity.latent_dtype]
    latents_bytes = len(entry.steps) * math.prod(entry.identity.latent_shape) * width
    limit = max(stored_bytes, latents_bytes) // SIDE_DATA_SHARE
    if size_bytes > limit:
        raise invalid(
            "header.size_bytes",
            f"the side data must be at most {limit} bytes, 1/{SIDE_DATA_SHARE} of the latents,"
            f" not {size_bytes}",
        )


def check_side_data(data: bytes) -> None:
    """Raises BlobFault unless `data` is a safetensors file of a few tensors of any meaning."""
    tensors = parse_tensor_headers(data)
    if not 1 <= len(tensors) <= MAX_SIDE_TENSORS:
        raise BlobFault(f"must hold 1 to {MAX_SIDE_TENSORS} tensors, not {len(tensors)}")


def check_latents(data: bytes, identity: latents_pb2.LatentIdentity, step: int) -> None:
    """Raises BlobFault unless `data` is a safetensors file of one tensor, as the identity requires.

    The latents of the steps before the last may also be bfloat16: a donor's need not be exact.
    """
    tensors = parse_tensor_headers(data)
    if len(tensors) != 1:
        raise BlobFault(f"must hold one tensor, not {len(tensors)}")
    shape, exact = tuple(identity.latent_shape), _DTYPES[identity.latent_dtype]
    last = step == len(identity.schedule.sigmas) - 1
    widths = dict((exact,) if last else (exact, _DTYPES[latents_pb2.D_TYPE_BFLOAT16]))
    found = tensors[0]
    if found.shape != shape or found.dtype not in widths:
        raise BlobFault(f"holds {found.dtype} {list(found.shape)} instead of {exact[0]} {list(shape)}")
    values = len(data) - 8 - int.from_bytes(data[:8], "little")
    expected = math.prod(shape) * widths[found.dtype]
    if values != expected:
        raise BlobFault(f"holds {values} bytes of values; {found.dtype} {list(shape)} takes {expected}")


def _check_identity(violations: Violations, field: str, identity: latents_pb2.LatentIdentity) -> None:
    _check_plain(violations, f"{field}.model_id", identity.model_id)
    _check_sha256(violations, f"{field}.weights_digest", identity.weights_digest)
    _check_sha256(violations, f"{field}.model_digest", identity.model_digest)
    violations.require(
        len(identity.adapters) <= MAX_ADAPTERS,
        f"{field}.adapters",
        f"must be at most {MAX_ADAPTERS}, not {len(identity.adapters)}",
    )
    for i, adapter in enumerate(identity.adapters[:MAX_ADAPTERS]):
        _check_text(violations, f"{field}.adapters[{i}].adapter_id", adapter.adapter_id)
        _check_sha256(violations, f"{field}.adapters[{i}].digest", adapter.digest)
        violations.require(
            math.isfinite(adapter.scale),
            f"{field}.adapters[{i}].scale",
            "must be finite, not NaN or infinity",
        )
    fault = find_schedule_fault(identity.schedule.sigmas)
    violations.require(fault is None, f"{field}.schedule.sigmas", fault or "")
    shape = list(identity.latent_shape)
    violations.require(
        len(shape) == 4 and all(1 <= extent <= _MAX_EXTENT for extent in shape),
        f"{field}.latent_shape",
        f"must be channels, frames, height, width, each 1 to {_MAX_EXTENT}, not {shape[:8]}",
    )
    violations.require(
        identity.latent_dtype in _DTYPES,
        f"{field}.latent_dtype",
        "must be D_TYPE_FLOAT32, D_TYPE_FLOAT16 or D_TYPE_BFLOAT16",
    )
    _check_text(violations, f"{field}.codec_id", identity.codec_id)
    if identity.HasField("approximation"):
        fault = find_approximation_fault(identity.approximation)
        violations.require(fault is None, f"{field}.approximation", fault or "")
    _check_encoder(violations, f"{field}.conditioning_encoder_id", identity.conditioning_encoder_id)


def _check_step(
    violations: Violations,
    step: latents_pb2.StepRef,
    entry: cache_pb2.NewEntry,
    taken: Container[int | None],
) -> None:
    sigmas = entry.identity.schedule.sigmas
    if violations.require(
        step.index < len(sigmas),
        "header.step.index",
        f"must be 0 to {len(sigmas) - 1}, the boundaries of the schedule, not {step.index}",
    ):
        violations.require(
            abs(step.sigma - sigmas[step.index]) <= 1e-9,
            "header.step.sigma",
            f"must be {sigmas[step.index]!r}, the schedule's at {step.index}, not {step.sigma!r}",
        )
        violations.require(
            step.index in entry.steps and step.index not in taken,
            "header.step.index",
            f"must be one of entry.steps, each once; {step.index} is not, or was sent before",
        )


def _check_vector(violations: Violations, field: str, vector: Sequence[float]) -> None:
    if not violations.require(
        1 <= len(vector) <= MAX_VECTOR_DIM,
        field,
        f"must hold 1 to {MAX_VECTOR_DIM} values, not {len(vector)}",
    ):
        return
    if violations.require(
        all(math.isfinite(value) for value in vector), field, "must be finite: it holds NaN or infinity"
    ):
        norm = math.sqrt(math.fsum(value * value for value in vector))
        violations.require(
            abs(norm - 1) <= NORM_TOLERANCE, field, f"must be L2-normalised: its norm is {norm:.4g}, not 1"
        )


def _check_steps(violations: Violations, field: str, steps: Sequence[int]) -> None:
    violations.require(
        1 <= len(steps) <= MAX_BLOBS, field, f"must name 1 to {MAX_BLOBS} steps, not {len(steps)}"
    )
    violations.require(len(set(steps)) == len(steps), field, "must be distinct: a step is repeated")


def _check_age(violations: Violations, field: str, age: duration_pb2.Duration) -> None:
    violations.require(
        0 <= age.seconds <= MAX_AGE_SECONDS and 0 <= age.nanos < 1_000_000_000,
        field,
        f"must be 0 to {MAX_AGE_SECONDS} seconds",
    )


def _check_sha256(violations: Violations, field: str, value: str) -> None:
    violations.require(
        SHA256_HEX.fullmatch(value) is not None, field, "must be a SHA-256 in 64 lower-case hex digits"
    )


def _check_plain(violations: Violations, field: str, value: str) -> None:
    violations.require(
        PLAIN_TEXT.fullmatch(value) is not None,
        field,
        f"must be 1 to {MAX_ID_CHARACTERS} of A-Z a-z 0-9 . _ : / @ + -, starting with a letter or digit",
    )


def _check_prompt(violations: Violations, field: str, prompt: str, limits: Limits) -> None:
    size = len(prompt.encode())
    violations.require(
        0 < size <= limits.prompt,
        field,
        f"must be 1 to {limits.prompt} bytes of UTF-8 (CHORUS_CACHE_MAX_PROMPT_BYTES), not {size}",
    )


def _check_vector_dim(violations: Violations, dimension: int) -> None:
    violations.require(
        1 <= dimension <= MAX_VECTOR_DIM, "vector_dim", f"must be 1 to {MAX_VECTOR_DIM}, not {dimension}"
    )


def _check_encoder(violations: Violations, field: str, value: str) -> None:
    _check_text(violations, field, value, MAX_ENCODER_ID_CHARACTERS)


def _check_text(violations: Violations, field: str, value: str, limit: int = MAX_ID_CHARACTERS) -> None:
    violations.require(
        0 < len(value) <= limit and value.isprintable(), field, f"must be 1 to {limit} printable characters"
    )
