"""The cache as the denoiser uses it: a donor's latents and side data in, the result's out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.channels import calling
from chorus_rpc.chunks import BlobAssembler, BlobFault, chunks, sha256
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import tenant_metadata
from torch import Tensor

from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.latent_blob import pack_latents, unpack_latents
from services.denoiser.reuse.side_data import SideData, pack_side_data, unpack_side_data

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub


@dataclass(frozen=True)
class DonorData:
    """What a job needs of its donor.

    latents: x_i for each of the job's donor steps, float32 of its latent shape, on the CPU.
    side: None where the job needs none.
    """

    latents: dict[int, Tensor]
    side: SideData | None


class LatentCache:
    """Fetches and admits latents on behalf of a tenant.

    Args:
        max_blob_bytes: the most that one step's latents, or the side data, may take.
        fetch_seconds, admit_seconds: the longest one call may take.
    """

    def __init__(
        self,
        cache: CacheServiceAsyncStub,
        *,
        max_blob_bytes: int,
        fetch_seconds: float,
        admit_seconds: float,
    ) -> None:
        self._cache = cache
        self._max_blob_bytes = max_blob_bytes
        self._fetch_seconds = fetch_seconds
        self._admit_seconds = admit_seconds

    async def fetch(self, job: DenoiseJob, tenant: str) -> DonorData:
        """What the job needs of its donor, in one call.

        Raises ChorusError: BLOB_CORRUPT when what comes is not that, NOT_FOUND where side data is needed and
        the entry has none, and whatever the cache answers.
        """
        assert job.donor is not None
        with telemetry.span(
            semconv.SPAN_FETCH_DONOR,
            {semconv.ENTRY_ID: job.donor.entry_id, semconv.DONOR_SCORE: job.donor.score},
            link=job.donor.traceparent,
        ) as span:
            try:
                delivery = await self._receive(job, tenant)
                data = await asyncio.to_thread(delivery.finish)
            except BlobFault as fault:
                raise ChorusError(
                    errors.BLOB_CORRUPT,
                    f"donor {job.donor.entry_id} cannot be used: {fault}",
                    metadata={"entry_id": job.donor.entry_id},
                ) from fault
            span.set_attribute(semconv.BYTES, delivery.size_bytes)
            if job.needs_side_data and data.side is None:
                raise errors.not_found("side data", job.donor.entry_id)
            return data

    async def _receive(self, job: DenoiseJob, tenant: str) -> _Delivery:
        assert job.donor is not None
        request = cache_pb2.FetchRequest(
            entry_id=job.donor.entry_id,
            retrieval_encoder_id=job.retrieval_encoder_id,
            vector_dim=job.vector_dim,
            steps=job.donor_steps,
            identity=job.identity,
            side_data=job.needs_side_data,
        )
        delivery = _Delivery(job, self._max_blob_bytes)
        with calling("cache"):
            async for response in self._cache.Fetch(
                request, timeout=self._fetch_seconds, metadata=tenant_metadata(tenant)
            ):
                delivery.add(response)
        return delivery

    async def admit(
        self,
        job: DenoiseJob,
        tenant: str,
        latents: Mapping[int, Tensor],
        cost_seconds: float,
        side: SideData | None,
    ) -> str:
        """Hands latents, by step boundary, and side data to the cache; returns the entry's id.

        Raises ChorusError.
        """
        assert job.admission is not None
        with telemetry.span(semconv.SPAN_ADMIT, {semconv.GENERATION_ID: job.generation_id}) as span:
            entry = cache_pb2.NewEntry(
                identity=job.identity,
                retrieval_encoder_id=job.retrieval_encoder_id,
                vector=job.admission.retrieval_vector,
                prompt=job.admission.prompt,
                seed=job.seed,
                cost_seconds=cost_seconds,
                traceparent=telemetry.traceparent(),
                generation_id=job.generation_id,
                steps=latents.keys(),
                side_data=side is not None,
            )
            with calling("cache"):
                reply = await self._cache.Admit(
                    _parts(entry, job.sigmas, latents, side),
                    timeout=self._admit_seconds,
                    metadata=tenant_metadata(tenant),
                )
            span.set_attribute(semconv.ENTRY_ID, reply.entry_id)
            return reply.entry_id


class _Delivery:
    """Puts the answer to one Fetch together; every method raises BlobFault for what the job cannot use.

    Args:
        limit: the most bytes of one blob.
    """

    def __init__(self, job: DenoiseJob, limit: int) -> None:
        self._job = job
        self._limit = limit
        # By step; None is the side data.
        self._blobs: dict[int | None, BlobAssembler] = {}
        self._current: BlobAssembler | None = None
        self.size_bytes = 0

    def add(self, response: cache_pb2.FetchResponse) -> None:
        if response.WhichOneof("part") == "header":
            header = response.header
            step = self._step(header)
            if step in self._blobs:
                raise BlobFault(f"{_name(step)} came twice")
            self._current = BlobAssembler(header.size_bytes, header.digest, self._limit)
            self._blobs[step] = self._current
            self.size_bytes += header.size_bytes
        elif self._current is None:
            raise BlobFault("the first header is missing")
        else:
            self._current.add(response.chunk)

    def finish(self) -> DonorData:
        """Hashes every blob: call it beside the event loop."""
        job, latents, side = self._job, dict[int, Tensor](), None
        missing = set(job.donor_steps) - self._blobs.keys()
        if missing:
            raise BlobFault(f"{_name(min(missing))} did not come")
        for step, assembler in self._blobs.items():
            try:
                data = assembler.finish()
                if step is None:
                    side = _side_data(data, job)
                else:
                    latents[step] = unpack_latents(data, job.latent_shape)
            except BlobFault as fault:
                raise BlobFault(f"{_name(step)}: {fault}") from fault
        return DonorData(latents, side)

    def _step(self, header: latents_pb2.BlobHeader) -> int | None:
        """Which of the blobs asked for a header announces."""
        job, step = self._job, header.step
        if header.kind == latents_pb2.BLOB_KIND_SIDE_DATA and job.needs_side_data:
            return None
        if header.kind != latents_pb2.BLOB_KIND_UNSPECIFIED:
            raise BlobFault(f"a blob of kind {header.kind} came, which was not asked for")
        if step.index not in job.donor_steps:
            raise BlobFault(f"x_{step.index} came, which was not asked for")
        sigma = job.sigmas[step.index]
        if not math.isclose(step.sigma, sigma, rel_tol=1e-9):
            raise BlobFault(f"x_{step.index} is at sigma {step.sigma:g}, expected {sigma:g}")
        return step.index


def _side_data(data: bytes, job: DenoiseJob) -> SideData:
    spec = job.model.spec
    return unpack_side_data(
        data,
        text_dim=spec.transformer.text_dim,
        max_tokens=spec.text.max_tokens,
        token_grid=job.token_grid,
    )


def _name(step: int | None) -> str:
    return "the side data" if step is None else f"x_{step}"


async def _parts(
    entry: cache_pb2.NewEntry,
    sigmas: tuple[float, ...],
    latents: Mapping[int, Tensor],
    side: SideData | None,
) -> AsyncIterator[cache_pb2.AdmitRequest]:
    yield cache_pb2.AdmitRequest(entry=entry)
    for index, tensor in latents.items():
        data = await asyncio.to_thread(pack_latents, tensor)
        header = latents_pb2.BlobHeader(step=latents_pb2.StepRef(index=index, sigma=sigmas[index]))
        for part in _blob(header, data):
            yield part
    if side is not None:
        data = await asyncio.to_thread(pack_side_data, side)
        for part in _blob(latents_pb2.BlobHeader(kind=latents_pb2.BLOB_KIND_SIDE_DATA), data):
            yield part


def _blob(header: latents_pb2.BlobHeader, data: bytes) -> Iterator[cache_pb2.AdmitRequest]:
    """Args: `header`: says what `data` is; its size and digest are filled in."""
    header.size_bytes, header.digest = len(data), sha256(data)
    yield cache_pb2.AdmitRequest(header=header)
    for chunk in chunks(data):
        yield cache_pb2.AdmitRequest(chunk=chunk)
