"""The cache as the denoiser uses it: a donor's latents in, the result's latents out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from torch import Tensor

from services.common import errors, names, telemetry
from services.common.blobs import BlobAssembler, BlobFault, chunks, sha256
from services.common.channels import calling
from services.common.errors import ChorusError
from services.common.tenancy import tenant_metadata
from services.denoiser.blobs import pack_latents, unpack_latents
from services.denoiser.jobs import Job

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub


class Donors:
    """Fetches and admits latents on behalf of a tenant.

    Args:
        max_blob_bytes: the most that one step's latents may take.
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

    async def fetch(self, job: Job, tenant: str) -> Tensor:
        """The donor's x_{K1}, float32 of the job's latent shape, on the CPU.

        Raises ChorusError: BLOB_CORRUPT when what comes is not that, and whatever the cache answers.
        """
        assert job.donor is not None
        with telemetry.span(
            names.SPAN_FETCH_DONOR,
            {names.ENTRY_ID: job.donor.entry_id, names.DONOR_SCORE: job.donor.score},
            link=job.donor.traceparent,
        ) as span:
            try:
                data = await self._fetch_blob(job, tenant)
                latents = await asyncio.to_thread(unpack_latents, data, job.latent_shape)
            except BlobFault as fault:
                raise ChorusError(
                    errors.BLOB_CORRUPT,
                    f"x_{job.first_step} of donor {job.donor.entry_id} cannot be used: {fault}",
                    metadata={"entry_id": job.donor.entry_id},
                ) from fault
            span.set_attribute(names.BYTES, len(data))
            return latents

    async def _fetch_blob(self, job: Job, tenant: str) -> bytes:
        assert job.donor is not None
        request = cache_pb2.FetchRequest(
            entry_id=job.donor.entry_id,
            retrieval_encoder_id=job.retrieval_encoder_id,
            vector_dim=job.vector_dim,
            steps=[job.first_step],
            identity=job.identity,
        )
        assembler: BlobAssembler | None = None
        with calling("cache"):
            async for response in self._cache.Fetch(
                request, timeout=self._fetch_seconds, metadata=tenant_metadata(tenant)
            ):
                if response.WhichOneof("part") == "header":
                    if assembler is not None:
                        raise BlobFault("a second blob came where one was asked for")
                    assembler = self._assembler(response.header, job)
                elif assembler is None:
                    raise BlobFault("its header is missing")
                else:
                    assembler.add(response.chunk)
        if assembler is None:
            raise BlobFault("nothing came")
        return await asyncio.to_thread(assembler.finish)

    def _assembler(self, header: latents_pb2.BlobHeader, job: Job) -> BlobAssembler:
        index, sigma = job.first_step, job.sigmas[job.first_step]
        if header.step.index != index or not math.isclose(header.step.sigma, sigma, rel_tol=1e-9):
            raise BlobFault(
                f"it is x_{header.step.index} at sigma {header.step.sigma:g}, expected x_{index} at {sigma:g}"
            )
        return BlobAssembler(header.size_bytes, header.digest, self._max_blob_bytes)

    async def admit(self, job: Job, tenant: str, latents: Mapping[int, Tensor], cost_seconds: float) -> str:
        """Hands latents, by step boundary, to the cache; returns the entry's id. Raises ChorusError."""
        assert job.admission is not None
        with telemetry.span(names.SPAN_ADMIT, {names.GENERATION_ID: job.generation_id}) as span:
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
            )
            with calling("cache"):
                reply = await self._cache.Admit(
                    _parts(entry, job.sigmas, latents),
                    timeout=self._admit_seconds,
                    metadata=tenant_metadata(tenant),
                )
            span.set_attribute(names.ENTRY_ID, reply.entry_id)
            return reply.entry_id


async def _parts(
    entry: cache_pb2.NewEntry, sigmas: tuple[float, ...], latents: Mapping[int, Tensor]
) -> AsyncIterator[cache_pb2.AdmitRequest]:
    yield cache_pb2.AdmitRequest(entry=entry)
    for index, tensor in latents.items():
        data = await asyncio.to_thread(pack_latents, tensor)
        yield cache_pb2.AdmitRequest(
            header=latents_pb2.BlobHeader(
                step=latents_pb2.StepRef(index=index, sigma=sigmas[index]),
                size_bytes=len(data),
                digest=sha256(data),
            )
        )
        for chunk in chunks(data):
            yield cache_pb2.AdmitRequest(chunk=chunk)
