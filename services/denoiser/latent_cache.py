"""Client of the cache: fetches the data of a donor and admits the latents of a result."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
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

from services.contract.identity import approximate
from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.latent_blob import pack_latents, unpack_latents
from services.denoiser.reuse.side_data import SideData, pack_side_data, unpack_side_data
from services.denoiser.settings import DonorDtype
from services.runtime.breaker import Guard

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub


@dataclass(frozen=True)
class DonorData:
    """Data of a donor, as a job needs it.

    Attributes:
        latents: x_i for each of the job's donor steps, float32 of its latent shape, on the CPU.
        side: Side data of the donor; None unless the job needs it.
    """

    latents: dict[int, Tensor]
    side: SideData | None


class LatentCache:
    """Fetches and admits latents on behalf of a tenant.

    Args:
        guard: Suspends calls while the cache does not answer.
        max_blob_bytes: Upper bound on one step's latents, and on the side data, in bytes.
        fetch_seconds, admit_seconds: Timeout of one call, in seconds.
        donor_dtype: Type in which the latents of the steps before the last are stored.
        key: Key that the cache expects of this service; empty if it expects none.
    """

    def __init__(
        self,
        cache: CacheServiceAsyncStub,
        guard: Guard,
        *,
        max_blob_bytes: int,
        fetch_seconds: float,
        admit_seconds: float,
        donor_dtype: DonorDtype = "float32",
        key: str = "",
    ) -> None:
        self._cache = cache
        self._key = key
        self._donor_dtype: DonorDtype = donor_dtype
        self._guard = guard
        self._max_blob_bytes = max_blob_bytes
        self._fetch_seconds = fetch_seconds
        self._admit_seconds = admit_seconds

    async def fetch(self, job: DenoiseJob, tenant: str) -> DonorData:
        """Fetches the data of the job's donor in one call.

        Raises ChorusError: BLOB_CORRUPT for data that does not match the job, NOT_FOUND if the entry lacks
        side data that the job needs, and errors of the cache.
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
            identity=job.donor_identity,
            side_data=job.needs_side_data,
        )
        delivery = _Delivery(job, self._max_blob_bytes)
        with self._call(self._fetch_seconds, "CHORUS_DENOISER_FETCH_SECONDS"):
            async for response in self._cache.Fetch(
                request, timeout=self._fetch_seconds, metadata=tenant_metadata(tenant, self._key)
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
        approximation: latents_pb2.Approximation | None = None,
    ) -> str:
        """Stores latents and side data in the cache; returns the id of the entry.

        Args:
            latents: Latents by index of the step boundary, on the CPU.
            cost_seconds: Time that computing these latents from noise would take.
            approximation: What the latents are stored as; None for those of a full computation.

        Raises ChorusError.
        """
        assert job.admission is not None
        with telemetry.span(semconv.SPAN_ADMIT, {semconv.GENERATION_ID: job.generation_id}) as span:
            entry = cache_pb2.NewEntry(
                identity=approximate(job.identity, approximation),
                retrieval_encoder_id=job.retrieval_encoder_id,
                vector=job.admission.retrieval_vector,
                prompt=job.admission.prompt,
                seed=job.seed,
                cost_seconds=cost_seconds,
                traceparent=telemetry.traceparent(),
                generation_id=job.generation_id,
                steps=latents.keys(),
                side_data=side is not None,
                seed_drawn=job.admission.seed_drawn,
                retention=job.admission.retention if job.admission.HasField("retention") else None,
            )
            with self._call(self._admit_seconds, "CHORUS_DENOISER_ADMIT_SECONDS"):
                reply = await self._cache.Admit(
                    _entry_requests(entry, job.sigmas, latents, side, self._donor_dtype),
                    timeout=self._admit_seconds,
                    metadata=tenant_metadata(tenant, self._key),
                )
            span.set_attribute(semconv.ENTRY_ID, reply.entry_id)
            return reply.entry_id

    @contextmanager
    def _call(self, seconds: float, setting: str) -> Iterator[None]:
        """Guards one call and maps its errors.

        Args:
            seconds: Timeout of the call, which `setting` sets.
        """
        with self._guard.call(seconds):
            try:
                with calling("cache"):
                    yield
            except ChorusError as error:
                if error.reason != errors.DEADLINE_EXCEEDED:
                    raise
                raise errors.unavailable("cache", f"no answer in {seconds:g} s ({setting})") from error


class _Delivery:
    """Assembles the response to one Fetch. Every method raises BlobFault for data that the job cannot use.

    Args:
        max_blob_bytes: Upper bound on one blob, in bytes.
    """

    def __init__(self, job: DenoiseJob, max_blob_bytes: int) -> None:
        self._job = job
        self._max_blob_bytes = max_blob_bytes
        # Keyed by step; the key of side data is None.
        self._blobs: dict[int | None, BlobAssembler] = {}
        self._current: BlobAssembler | None = None
        self.size_bytes = 0

    def add(self, response: cache_pb2.FetchResponse) -> None:
        if response.WhichOneof("part") == "header":
            header = response.header
            step = self._match_request(header)
            if step in self._blobs:
                raise BlobFault(f"{_name_blob(step)} was sent twice")
            self._current = BlobAssembler(
                header.size_bytes, header.digest, self._max_blob_bytes, "CHORUS_DENOISER_MAX_BLOB_BYTES"
            )
            self._blobs[step] = self._current
            self.size_bytes += header.size_bytes
        elif self._current is None:
            raise BlobFault("the first header is missing")
        else:
            self._current.add(response.chunk)

    def finish(self) -> DonorData:
        """Verifies and unpacks every blob. Hashes them: call it off the event loop."""
        job, latents, side = self._job, dict[int, Tensor](), None
        missing = set(job.donor_steps) - self._blobs.keys()
        if missing:
            raise BlobFault(f"{_name_blob(min(missing))} is missing")
        for step, assembler in self._blobs.items():
            try:
                data = assembler.finish()
                if step is None:
                    side = _unpack_side_data(data, job)
                else:
                    exact = step == job.total_steps
                    latents[step] = unpack_latents(data, job.latent_shape, exact=exact)
            except BlobFault as fault:
                raise BlobFault(f"{_name_blob(step)}: {fault}") from fault
        return DonorData(latents, side)

    def _match_request(self, header: latents_pb2.BlobHeader) -> int | None:
        """Returns the requested step that a header announces, or None for the side data."""
        job, step = self._job, header.step
        if header.kind == latents_pb2.BLOB_KIND_SIDE_DATA and job.needs_side_data:
            return None
        if header.kind != latents_pb2.BLOB_KIND_UNSPECIFIED:
            raise BlobFault(f"a blob of kind {header.kind} was sent, which was not requested")
        if step.index not in job.donor_steps:
            raise BlobFault(f"x_{step.index} was sent, which was not requested")
        sigma = job.sigmas[step.index]
        if not math.isclose(step.sigma, sigma, rel_tol=1e-9):
            raise BlobFault(f"x_{step.index} is at sigma {step.sigma:g}, expected {sigma:g}")
        return step.index


def _unpack_side_data(data: bytes, job: DenoiseJob) -> SideData:
    spec = job.model.spec
    return unpack_side_data(
        data,
        text_dim=spec.transformer.text_dim,
        max_tokens=spec.text.max_tokens,
        token_grid=job.token_grid,
    )


def _name_blob(step: int | None) -> str:
    return "the side data" if step is None else f"x_{step}"


async def _entry_requests(
    entry: cache_pb2.NewEntry,
    sigmas: tuple[float, ...],
    latents: Mapping[int, Tensor],
    side: SideData | None,
    donor_dtype: DonorDtype,
) -> AsyncIterator[cache_pb2.AdmitRequest]:
    yield cache_pb2.AdmitRequest(entry=entry)
    for index, tensor in latents.items():
        dtype = "float32" if index == len(sigmas) - 1 else donor_dtype
        data = await asyncio.to_thread(pack_latents, tensor, dtype)
        header = latents_pb2.BlobHeader(step=latents_pb2.StepRef(index=index, sigma=sigmas[index]))
        for request in _blob_requests(header, data):
            yield request
    if side is not None:
        data = await asyncio.to_thread(pack_side_data, side)
        for request in _blob_requests(latents_pb2.BlobHeader(kind=latents_pb2.BLOB_KIND_SIDE_DATA), data):
            yield request


def _blob_requests(header: latents_pb2.BlobHeader, data: bytes) -> Iterator[cache_pb2.AdmitRequest]:
    """Yields the messages of one blob.

    Args:
        header: Identifies the blob; its size and digest are filled in here.
    """
    header.size_bytes, header.digest = len(data), sha256(data)
    yield cache_pb2.AdmitRequest(header=header)
    for chunk in chunks(data):
        yield cache_pb2.AdmitRequest(chunk=chunk)
