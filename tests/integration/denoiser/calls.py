"""A cache that can send altered data, and the calls of the denoiser's tests."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.contract.schedule import shifted_schedule
from services.contract.tensors import encode_tensor
from tests.tiny_model import ENCODER_ID, TEXT_DIM

SECONDS = 60.0
SIGMAS = shifted_schedule(4, 5.0)
DIM = 8
VECTOR = [1.0] + [0.0] * (DIM - 1)
Parts = list[cache_pb2.FetchResponse]
SIDE = -1  # key of the side data among the blobs of an entry; the other keys are steps


@dataclass
class FakeCache(cache_pb2_grpc.CacheServiceServicer):
    """Keeps admitted entries; `spoil` alters the response to a fetch."""

    entries: dict[str, tuple[cache_pb2.NewEntry, dict[int, bytes]]] = field(default_factory=dict)
    tenants: list[str] = field(default_factory=list)
    spoil: Callable[[Parts], Parts] = lambda parts: parts

    def Admit(self, request_iterator: Iterator[cache_pb2.AdmitRequest], context: Any) -> Any:
        self.tenants += [value for key, value in context.invocation_metadata() if key == "chorus-tenant"]
        entry, blobs, headers = next(request_iterator).entry, dict[int, bytes](), dict[int, Any]()
        for request in request_iterator:
            if request.WhichOneof("part") == "header":
                key = (
                    SIDE
                    if request.header.kind == latents_pb2.BLOB_KIND_SIDE_DATA
                    else request.header.step.index
                )
                headers[key], blobs[key] = request.header, b""
            else:
                blobs[key] += request.chunk
        assert entry.side_data == (SIDE in blobs)
        for index, header in headers.items():
            assert header.digest == hashlib.sha256(blobs[index]).hexdigest()
            assert header.size_bytes == len(blobs[index])
            assert index == SIDE or header.step.sigma == entry.identity.schedule.sigmas[index]
        entry_id = hashlib.sha256(f"{entry.prompt} {entry.seed}".encode()).hexdigest()
        self.entries[entry_id] = (entry, blobs)
        return cache_pb2.AdmitResponse(entry_id=entry_id, created=True)

    def Fetch(self, request: cache_pb2.FetchRequest, context: Any) -> Iterator[cache_pb2.FetchResponse]:
        if request.entry_id not in self.entries:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such entry")
        entry, blobs = self.entries[request.entry_id]
        assert request.identity == entry.identity
        for index in request.steps:
            yield from self.spoil(blob_parts(index, entry.identity.schedule.sigmas[index], blobs[index]))
        if request.side_data and SIDE in blobs:
            yield from blob_parts(SIDE, 0.0, blobs[SIDE])

    def Lookup(self, request: cache_pb2.LookupRequest, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the denoiser does not look up donors")

    def Find(self, request: cache_pb2.FindRequest, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the denoiser finds no results")

    def Purge(self, request: cache_pb2.PurgeRequest, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the denoiser does not purge entries")

    def Stats(self, request: cache_pb2.StatsRequest, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the denoiser reads no statistics")

    def ListEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the denoiser does not call this")

    def GetEntry(self, request: Any, context: Any) -> Any:
        raise AssertionError("the denoiser does not call this")

    def MapEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the denoiser does not call this")

    def VerifyEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the denoiser does not call this")

    def Adopt(self, request: cache_pb2.AdoptRequest, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the denoiser adopts no store")


def blob_parts(index: int, sigma: float, data: bytes) -> Parts:
    header = latents_pb2.BlobHeader(
        step=None if index == SIDE else latents_pb2.StepRef(index=index, sigma=sigma),
        kind=latents_pb2.BLOB_KIND_SIDE_DATA if index == SIDE else latents_pb2.BLOB_KIND_UNSPECIFIED,
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
    )
    half = len(data) // 2
    return [
        cache_pb2.FetchResponse(header=header),
        cache_pb2.FetchResponse(chunk=data[:half]),
        cache_pb2.FetchResponse(chunk=data[half:]),
    ]


def environment(model: Path, cache_target: str) -> dict[str, str]:
    return {
        # So that a hit equals, bit for bit, a run that continues from the same latents.
        "CHORUS_DENOISER_DONOR_DTYPE": "float32",
        "CHORUS_DENOISER_MODELS": str(model),
        "CHORUS_DENOISER_CACHE_TARGET": cache_target,
        # The default exports the graph of each test's model, which takes longer than most tests.
        "CHORUS_DENOISER_BACKEND": "torch",
        "CHORUS_DENOISER_THREADS": "1",
        "CHORUS_DENOISER_QUEUE_LIMIT": "1",
        "CHORUS_DENOISER_LOG_FORMAT": "json",
    }


def request(
    *, seed: int = 7, sigmas: list[float] = SIGMAS, admit: bool = True, side: int = 8, frames: int = 2
) -> denoiser_pb2.DenoiseRequest:
    states = np.random.default_rng(seed).standard_normal((5, TEXT_DIM)).astype(np.float32)
    return denoiser_pb2.DenoiseRequest(
        generation_id=str(uuid.uuid4()),
        model_id="tiny",
        shape=video_pb2.VideoShape(frames=frames, height=side, width=side),
        schedule=latents_pb2.Schedule(sigmas=sigmas),
        seed=seed,
        conditioning_encoder_id=ENCODER_ID,
        token_states=encode_tensor(states),
        plan=plan_pb2.Plan(total_steps=len(sigmas) - 1),
        retrieval_encoder_id="retrieval@1",
        vector_dim=DIM,
        admission=denoiser_pb2.AdmissionContext(prompt=f"prompt {seed}", retrieval_vector=VECTOR)
        if admit
        else None,
    )


def reusing(original: denoiser_pb2.DenoiseRequest, entry_id: str, steps: int) -> denoiser_pb2.DenoiseRequest:
    changed = denoiser_pb2.DenoiseRequest()
    changed.CopyFrom(original)
    changed.generation_id = str(uuid.uuid4())
    changed.plan.reuse_steps = steps
    changed.plan.donor.entry_id = entry_id
    changed.plan.donor.score = 0.9
    return changed


def long_request() -> denoiser_pb2.DenoiseRequest:
    """Returns a request that takes longer than any test; each test ends it early."""
    return request(sigmas=shifted_schedule(150, 5.0), admit=False, side=64, frames=12)


@dataclass
class Outcome:
    """Events of one run, in order."""

    kinds: list[str]
    started: denoiser_pb2.Started
    steps: list[denoiser_pb2.StepCompleted]
    header: video_pb2.VideoInfo
    video: bytes
    completed: denoiser_pb2.Completed
    admission: denoiser_pb2.Admission | None


async def run(stub: Any, what: denoiser_pb2.DenoiseRequest, **options: Any) -> Outcome:
    events = [event async for event in stub.Denoise(what, timeout=SECONDS, **options)]
    kinds = [event.WhichOneof("event") for event in events]

    def select(kind: str) -> list[Any]:
        return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]

    [started], [header], [completed] = select("started"), select("video_header"), select("completed")
    admission = select("admission")
    return Outcome(
        kinds, started, select("step_completed"), header, b"".join(select("video_chunk")), completed,
        admission[0] if admission else None,
    )  # fmt: skip


async def failure(stub: Any, what: denoiser_pb2.DenoiseRequest, seconds: float = SECONDS) -> ChorusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Denoise(what, timeout=seconds):
            pass
    return errors.from_rpc_error(caught.value, "denoiser")


def latents(cache: FakeCache, entry_id: str) -> dict[int, bytes]:
    return cache.entries[entry_id][1]
