"""Tests of the cache client against the cache's servicer over a single entry."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.errors import BLOB_CORRUPT, NOT_FOUND, ChorusError
from torch import Tensor

from services.cache.access import EVERY_TENANT, Access
from services.cache.entries import Admission, Blob
from services.cache.servicer import CacheServicer
from services.cache.validation import Limits
from services.denoiser.latent_cache import DonorData, LatentCache
from services.denoiser.reuse.latent_blob import pack_latents
from services.denoiser.reuse.side_data import SideData, pack_side_data
from services.runtime.breaker import Guard
from tests.contract.samples import DIMENSION, ENCODER, SIGMAS, header, identity, side_header, unit

SHAPE = (4, 2, 12, 12)
GRID = (2, 6, 6)
TEXT_DIM = 6
LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)

Parts = list[cache_pb2.FetchResponse]


class OneEntry:
    """A store that keeps the last admission."""

    def __init__(self) -> None:
        self.admission: Admission | None = None

    async def admit(self, admission: Admission) -> bool:
        self.admission = admission
        return True

    async def fetch(
        self,
        space: object,
        tenant: str,
        identity: str,
        entry_id: str,
        steps: Sequence[int],
        *,
        side_data: bool,
        total_steps: int,
    ) -> AsyncIterator[tuple[Blob, bytes]]:
        assert self.admission is not None
        entry = self.admission.entry
        assert (tenant, identity, entry_id) == (entry.tenant, entry.identity, entry.entry_id)
        by_step = {blob.step: blob for blob in entry.blobs}
        for step in (*steps, *[None] * (side_data and None in by_step)):
            yield by_step[step], self.admission.data[by_step[step].digest]


class Cache:
    """Replaces a stub: calls the servicer, and can alter its response."""

    def __init__(self) -> None:
        self.store = OneEntry()
        self.fetches: list[cache_pb2.FetchRequest] = []
        self.spoil: Callable[[Parts], Parts] = lambda parts: parts
        store: Any = self.store
        self._servicer = CacheServicer(store, Access({}, {EVERY_TENANT}), LIMITS, max_uploads=1)

    async def Admit(
        self, parts: AsyncIterator[cache_pb2.AdmitRequest], *, timeout: float, metadata: Any
    ) -> cache_pb2.AdmitResponse:
        return await self._servicer.Admit(parts, _context(metadata))

    async def Fetch(
        self, request: cache_pb2.FetchRequest, *, timeout: float, metadata: Any
    ) -> AsyncIterator[cache_pb2.FetchResponse]:
        self.fetches.append(request)
        parts = [part async for part in self._servicer.Fetch(request, _context(metadata))]
        for part in self.spoil(parts):
            yield part


def _context(metadata: Any) -> Any:
    return SimpleNamespace(invocation_metadata=lambda: metadata)


def job(steps: tuple[int, ...] = (1, 2), side: bool = True, entry_id: str = "") -> Any:
    """Returns the part of a job that the client reads."""
    under = identity()
    under.latent_shape[:] = SHAPE
    spec = SimpleNamespace(transformer=SimpleNamespace(text_dim=TEXT_DIM), text=SimpleNamespace(max_tokens=4))
    return SimpleNamespace(
        generation_id="generation-1",
        model=SimpleNamespace(spec=spec),
        latent_shape=SHAPE,
        total_steps=len(SIGMAS) - 1,
        token_grid=GRID,
        sigmas=SIGMAS,
        seed=3,
        identity=under,
        donor_identity=under,
        donor=plan_pb2.DonorRef(entry_id=entry_id, score=0.9),
        donor_steps=steps,
        needs_side_data=side,
        retrieval_encoder_id=ENCODER,
        vector_dim=DIMENSION,
        admission=denoiser_pb2.AdmissionContext(
            prompt="a red circle", retrieval_vector=unit(0), retention=latents_pb2.Retention(pinned=True)
        ),
    )


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def latent_cache(cache: Cache) -> LatentCache:
    stub: Any = cache
    return LatentCache(
        stub, Guard("cache", asyncio.Event().wait), max_blob_bytes=1 << 16, fetch_seconds=5, admit_seconds=5
    )


LATENTS = {index: torch.full(SHAPE, float(index)) for index in (1, 2, 3)}
SIDE = SideData(
    torch.arange(3 * 2 * 3 * 3, dtype=torch.uint8).view(3, 2, 3, 3), torch.ones(3, TEXT_DIM).half()
)


async def admit(latent_cache: LatentCache, side: SideData | None = SIDE) -> str:
    return await latent_cache.admit(job(), "studio", LATENTS, 1.5, side)


def holds(found: dict[int, Tensor], *steps: int) -> bool:
    return found.keys() == set(steps) and all(torch.equal(found[i], LATENTS[i]) for i in steps)


async def test_latents_and_side_data_are_fetched_in_one_call(latent_cache: LatentCache, cache: Cache) -> None:
    entry_id = await admit(latent_cache)
    found = await latent_cache.fetch(job((1, 3), entry_id=entry_id), "studio")
    assert holds(found.latents, 1, 3)
    assert found.side is not None
    assert torch.equal(found.side.maps, SIDE.maps)
    assert torch.equal(found.side.text, SIDE.text)
    [request] = cache.fetches
    assert (list(request.steps), request.side_data) == ([1, 3], True)


async def test_only_needed_data_is_requested(latent_cache: LatentCache, cache: Cache) -> None:
    entry_id = await admit(latent_cache)
    found = await latent_cache.fetch(job((2,), side=False, entry_id=entry_id), "studio")
    assert holds(found.latents, 2)
    assert found.side is None
    assert not cache.fetches[0].side_data


async def test_donor_without_side_data_serves_jobs_that_need_none(
    latent_cache: LatentCache, cache: Cache
) -> None:
    entry_id = await admit(latent_cache, side=None)
    assert cache.store.admission is not None
    assert [blob.step for blob in cache.store.admission.entry.blobs] == [1, 2, 3]
    assert cache.store.admission.entry.pinned, "the retention of the request reaches the cache"
    found = await latent_cache.fetch(job(side=False, entry_id=entry_id), "studio")
    assert holds(found.latents, 1, 2)
    with pytest.raises(ChorusError, match="no side data") as caught:
        await latent_cache.fetch(job(entry_id=entry_id), "studio")
    assert caught.value.reason == NOT_FOUND


async def test_donors_take_half_the_space_and_clean_latents_keep_every_bit(cache: Cache) -> None:
    stub: Any = cache
    values = torch.linspace(-3, 3, math.prod(SHAPE)).view(SHAPE) / 7
    last = len(SIGMAS) - 1
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        latent_cache = LatentCache(
            stub,
            Guard("cache", asyncio.Event().wait),
            max_blob_bytes=1 << 16,
            fetch_seconds=5,
            admit_seconds=5,
            donor_dtype=dtype,
        )
        entry_id = await latent_cache.admit(job(), "studio", {1: values, last: values}, 1.5, None)
        assert cache.store.admission is not None
        sizes[dtype] = {blob.step: blob.size_bytes for blob in cache.store.admission.entry.blobs}
        found = await latent_cache.fetch(job((1, last), side=False, entry_id=entry_id), "studio")
        assert torch.equal(found.latents[last], values)
        assert found.latents[1].dtype is torch.float32
        assert (found.latents[1] - values).abs().max() <= (0 if dtype == "float32" else 2**-8)
    assert sizes["bfloat16"][last] == sizes["float32"][last]
    assert sizes["bfloat16"][1] - 2 * values.numel() == sizes["float32"][1] - 4 * values.numel()


def blob(announced: latents_pb2.BlobHeader, data: bytes) -> Parts:
    return [cache_pb2.FetchResponse(header=announced), cache_pb2.FetchResponse(chunk=data)]


def latents(index: int, shape: tuple[int, ...] = SHAPE) -> Parts:
    data = pack_latents(torch.full(shape, float(index)))
    return blob(header(index, data), data)


def side(data: bytes) -> Parts:
    return blob(side_header(data), data)


def changed(parts: Parts, **change: Any) -> Parts:
    for name, value in change.items():
        setattr(parts[0].header, name, value)
    return parts


GOOD = pack_side_data(SIDE)
BOTH = [*latents(1), *latents(2)]
NARROW = pack_side_data(SideData(SIDE.maps, torch.ones(3, TEXT_DIM - 1).half()))


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        pytest.param([], "x_1 is missing", id="nothing"),
        pytest.param([*latents(1), *side(GOOD)], "x_2 is missing", id="a step less"),
        pytest.param([*BOTH, *latents(2)], "x_2 was sent twice", id="a step twice"),
        pytest.param([*BOTH, *latents(3)], "x_3 was sent", id="a step more"),
        pytest.param([*BOTH, *side(GOOD), *side(GOOD)], "side data was sent twice", id="side twice"),
        pytest.param([*BOTH, *changed(side(GOOD), kind=7)], "kind 7", id="another kind"),
        pytest.param([*BOTH, *side(NARROW)], "side data: text is", id="narrow side data"),
        pytest.param([*BOTH, *side(GOOD)[:1]], "side data: 0 of", id="side data cut"),
        pytest.param([*BOTH, *side(pack_latents(LATENTS[1]))], "side data: ", id="latents as side"),
        pytest.param([*latents(1), *latents(2, (4, 2, 12, 11))], "x_2: holds", id="another shape"),
        pytest.param([*latents(1)[:1], *latents(2)], "x_1: 0 of", id="a step cut"),
        pytest.param([*changed(latents(1), size_bytes=1 << 17), *latents(2)], "bound", id="too large"),
        pytest.param(latents(1)[1:], "header is missing", id="no header"),
    ],
)
async def test_unusable_data_is_named(
    latent_cache: LatentCache, cache: Cache, parts: Parts, word: str
) -> None:
    entry_id = await admit(latent_cache)
    cache.spoil = lambda _: parts
    with pytest.raises(ChorusError, match=word) as failed:
        await latent_cache.fetch(job(entry_id=entry_id), "studio")
    assert failed.value.reason == BLOB_CORRUPT
    assert failed.value.metadata == {"entry_id": entry_id}


async def test_side_data_that_was_not_requested_is_rejected(latent_cache: LatentCache, cache: Cache) -> None:
    entry_id = await admit(latent_cache)
    cache.spoil = lambda parts: [*parts, *side(GOOD)]
    with pytest.raises(ChorusError, match="not requested"):
        await latent_cache.fetch(job(side=False, entry_id=entry_id), "studio")


async def test_steps_at_another_noise_level_are_rejected(latent_cache: LatentCache, cache: Cache) -> None:
    def moved(parts: Parts) -> Parts:
        parts[0].header.step.sigma = 0.8
        return parts

    entry_id = await admit(latent_cache)
    cache.spoil = moved
    with pytest.raises(ChorusError, match=r"x_1 is at sigma 0\.8, expected 0\.9"):
        await latent_cache.fetch(job(entry_id=entry_id), "studio")


async def test_order_of_blobs_does_not_matter(latent_cache: LatentCache, cache: Cache) -> None:
    entry_id = await admit(latent_cache)
    cache.spoil = lambda _: [*side(GOOD), *latents(2), *latents(1)]
    found: DonorData = await latent_cache.fetch(job(entry_id=entry_id), "studio")
    assert holds(found.latents, 1, 2)
    assert found.side is not None
