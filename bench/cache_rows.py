"""Rows, vectors and timings that the measurements of the cache share: one part of `bench.cache`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import numpy as np
from chorus.common.v1 import latents_pb2
from chorus_rpc.tenancy import DEFAULT_TENANT
from numpy.typing import NDArray

from services.cache.entries import Blob, Entry, Space
from services.cache.index import Index
from services.contract.identity import entry_id, identity_digest, prompt_hash

SPACE: Final = Space("all-minilm-l6-v2", 384)
TENANT: Final = DEFAULT_TENANT
MODEL: Final = "bench"
IDENTITY: Final = identity_digest(latents_pb2.LatentIdentity(model_id=MODEL))
LIMIT: Final = 8  # donors of a lookup
BOUNDARY_BYTES: Final = 440_000


def label_size(entries: int) -> str:
    """Returns a number of entries as the names of figures state it, such as 100 or 50k."""
    return str(entries) if entries % 1000 else f"{entries // 1000}k"


def make_entry(number: int, identity: str = IDENTITY, model_id: str = MODEL) -> Entry:
    """Returns a row of the size that requests write: four boundaries and side data, which do not exist."""
    prompt = f"a small red circle moving left and a large blue square, number {number}"
    blobs = tuple(
        Blob(step, 1 - step / 5 if step else 0.0, BOUNDARY_BYTES, prompt_hash(f"{number} {step}"))
        for step in (1, 2, 3, 4, None)
    )
    return Entry(
        entry_id=entry_id(TENANT, identity, prompt, number),
        tenant=TENANT,
        identity=identity,
        model_id=model_id,
        prompt=prompt,
        prompt_hash=prompt_hash(prompt),
        blobs=blobs,
        cost_seconds=0.3,
        created_ms=number,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        generation_id=f"generation-{number}",
        seed=number,
    )


def draw_vectors(count: int, seed: int, dimension: int = SPACE.dimension) -> NDArray[np.float32]:
    """Returns random vectors of length 1, [count, dimension]."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


async def fill(index: Index, space: Space, entries: Iterable[Entry], vectors: NDArray[np.float32]) -> None:
    """Writes rows one after the other, as requests do."""
    for entry, vector in zip(entries, vectors, strict=True):
        await index.upsert(space, entry, vector.tolist())


async def time_call(call: Callable[[int], Awaitable[object]], number: int) -> float:
    """Returns the duration of one call, in seconds."""
    start = time.perf_counter()
    await call(number)
    return time.perf_counter() - start


async def time_alternately(
    first: Callable[[int], Awaitable[object]], second: Callable[[int], Awaitable[object]], count: int
) -> tuple[list[float], list[float]]:
    """Returns the durations of two kinds of calls, in seconds; each kind goes first in every other pair."""
    durations: tuple[list[float], list[float]] = [], []
    for number in range(count):
        for kind in (0, 1) if number % 2 else (1, 0):
            durations[kind].append(await time_call((first, second)[kind], number))
    return durations


def to_ms(seconds: Iterable[float]) -> list[float]:
    """Converts seconds to milliseconds."""
    return [1000 * each for each in seconds]


def divide(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """Returns the ratio of every pair of measurements."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]
