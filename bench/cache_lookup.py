"""Lookups and admissions of the embedded index as it grows, in process: one part of `bench.cache`.

Lookups go through `LatentStore.lookup`. Admissions go through `LatentStore.admit` without blobs, whose cost
does not depend on the number of entries.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bench import results
from bench.cache_rows import (
    IDENTITY,
    LIMIT,
    SPACE,
    TENANT,
    divide,
    draw_vectors,
    fill,
    label_size,
    make_entry,
    time_alternately,
    time_call,
    to_ms,
)
from bench.results import Figure
from services.cache import usage
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.index import Selection
from services.cache.store import LatentStore
from services.cache.sweeper import claim_if_empty, survey
from services.contract.identity import prompt_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS: Final = 60.0
OTHER_MODEL: Final = "bench-purged"
OTHER_IDENTITY: Final = prompt_hash(OTHER_MODEL)
PURGED: Final = 2_000  # entries of one purge, at most a tenth of the others
# Lookups during purges, per request: each needs many entries that are written for it.
PURGE_SHARE: Final = 0.4
# Mean pause between two lookups while something else runs, in seconds: most of them arrive in its middle.
PAUSE_SECONDS: Final = 0.005
# Admissions of one window, per lookup: with 1,000 lookups, Milvus Lite flushes at least once in it.
WINDOW: Final = 3


@asynccontextmanager
async def open_store(folder: Path) -> AsyncIterator[LatentStore]:
    """Opens the store of a folder, as the cache process does, for the duration of the context."""
    index = await EmbeddedIndex.open_path(f"{folder}/index.db", seconds=SECONDS)
    blobs = await DirectoryBlobs.open(folder / "blobs", seconds=SECONDS, threads=8)
    store = LatentStore(index, blobs)
    try:
        await claim_if_empty(store)
        yield store
    finally:
        await store.close()
        await blobs.close()
        await index.close()


@dataclass
class Rows:
    """Supply of distinct rows.

    Attributes:
        vectors: Vectors of all rows, [rows, dimension].
        used: Number of rows that were taken.
    """

    vectors: NDArray[np.float32]
    used: int = 0

    def take(self, count: int) -> Iterator[Admission]:
        """Yields the next rows, as admissions without blobs."""
        begin, self.used = self.used, self.used + count
        for number in range(begin, self.used):
            yield Admission(SPACE, make_entry(number), tuple(self.vectors[number].tolist()), {})


def make_lookup(store: LatentStore, queries: NDArray[np.float32]) -> Callable[[int], Awaitable[object]]:
    """Returns a function that looks up one of the queries, by its number modulo their count."""
    vectors: list[list[float]] = queries.tolist()

    async def look_up(number: int) -> object:
        return await store.lookup(SPACE, TENANT, IDENTITY, vectors[number % len(vectors)], LIMIT, 0.0)

    return look_up


async def time_admissions(store: LatentStore, admissions: Iterator[Admission]) -> list[float]:
    """Returns the durations of admissions one after the other, in seconds."""
    prepared = list(admissions)

    async def admit(number: int) -> None:
        assert await store.admit(prepared[number])

    return [await time_call(admit, number) for number in range(len(prepared))]


async def time_while(
    busy: asyncio.Task[None], look_up: Callable[[int], Awaitable[object]], rng: random.Random
) -> list[float]:
    """Returns the durations of lookups while a task runs, in seconds, each from the moment it was due.

    Lookups become due at random moments. One that is due while the task occupies the event loop waits for it,
    as a request would, and its wait counts.
    """
    loop = asyncio.get_running_loop()
    durations: list[float] = []
    while not busy.done():
        due = loop.time() + rng.expovariate(1 / PAUSE_SECONDS)
        await asyncio.sleep(due - loop.time())
        await look_up(len(durations))
        durations.append(loop.time() - due)
    await busy
    return durations


async def measure_flush(folder: Path, requests: int) -> dict[str, Figure]:
    """Measures admissions and lookups beside rows that Milvus Lite has not flushed, and beside flushed ones.

    Admissions begin at as many entries as there are requests. The index is opened again for the second half.
    """
    rows, queries = Rows(draw_vectors(3 * requests, 2)), draw_vectors(requests, 3)
    figures: dict[str, Figure] = {}
    for state in ("before_flush", "after_flush"):
        async with open_store(folder) as store:
            if state == "before_flush":
                await time_admissions(store, rows.take(requests))
            look_up = make_lookup(store, queries)
            await look_up(0)
            found = [await time_call(look_up, i) for i in range(requests)]
            figures[f"lookup_ms_{state}"] = results.median(to_ms(found), "ms")
            admitted = await time_admissions(store, rows.take(requests))
            figures[f"admission_ms_{state}"] = results.mean(to_ms(admitted), "ms")
    return figures


async def measure_busy(store: LatentStore, queries: NDArray[np.float32], requests: int) -> dict[str, Figure]:
    """Measures lookups while the store sweeps, counts and purges.

    A sweep is its survey here, which walks every entry. A purge is of entries of another model, which are
    written for each.

    Args:
        requests: Number of lookups during sweeps and counts; during purges, the share PURGE_SHARE of it.
    """
    look_up, rng, number = make_lookup(store, queries), random.Random(0), 0
    purged = max(1, min(PURGED, (await usage.measure_usage(store.index, TENANT)).entries // 10))

    async def prepare_purge() -> None:
        nonlocal number
        entries = [make_entry(number + i, OTHER_IDENTITY, OTHER_MODEL) for i in range(purged)]
        number += purged
        await fill(store.index, SPACE, entries, draw_vectors(purged, 4))

    async def prepare_nothing() -> None:
        pass

    async def sweep() -> None:
        await survey(store)

    async def count() -> None:
        await usage.measure_usage(store.index, TENANT)

    async def purge() -> None:
        assert (await usage.purge(store, TENANT, Selection(model_id=OTHER_MODEL))).entries == purged

    figures: dict[str, Figure] = {}
    for name, prepare, work, wanted in (
        ("sweep", prepare_nothing, sweep, requests),
        ("stats", prepare_nothing, count, requests),
        ("purge", prepare_purge, purge, PURGE_SHARE * requests),
    ):
        durations: list[float] = []
        rounds: list[float] = []
        while len(durations) < wanted:
            await prepare()
            start = time.perf_counter()
            durations += await time_while(asyncio.create_task(work()), look_up, rng)
            rounds.append(time.perf_counter() - start)
        figures[f"lookup_p50_ms_during_{name}"] = results.median(to_ms(durations), "ms")
        figures[f"lookup_p99_ms_during_{name}"] = results.quantile(to_ms(durations), 0.99, "ms")
        figures[f"{name}_seconds"] = results.median(rounds, "s")
    return figures


async def measure_embedded(folder: Path, sizes: Sequence[int], requests: int) -> dict[str, Figure]:
    """Measures the embedded index at several numbers of entries.

    Args:
        folder: Empty folder for the stores.
        sizes: Numbers of entries, ascending.
        requests: Number of lookups of each figure.
    """
    window = WINDOW * requests
    rows = Rows(draw_vectors(max(sizes) + window * len(sizes), 0))
    queries = draw_vectors(requests, 1)
    figures = await measure_flush(folder / "flush", requests)
    lookups: dict[str, list[float]] = {}
    admissions: dict[str, list[float]] = {}
    async with open_store(folder / "growing") as store:
        look_up = make_lookup(store, queries)
        for size in sizes:
            label = label_size(size)
            await time_admissions(store, rows.take(max(0, size - rows.used)))
            known = rows.vectors[: rows.used]

            async def multiply(number: int, known: NDArray[np.float32] = known) -> object:
                return np.argpartition(-(known @ queries[number]), LIMIT)[:LIMIT]

            await look_up(0)
            found, bare = await time_alternately(look_up, multiply, requests)
            lookups[label] = found
            figures[f"lookup_p50_ms_{label}"] = results.median(to_ms(found), "ms")
            figures[f"lookup_p99_ms_{label}"] = results.quantile(to_ms(found), 0.99, "ms")
            figures[f"lookup_over_bare_product_{label}"] = results.median(divide(found, bare), "x")
            admissions[label] = await time_admissions(store, rows.take(window))
            figures[f"admission_ms_{label}"] = results.mean(to_ms(admissions[label]), "ms")
            figures[f"admission_p99_ms_{label}"] = results.quantile(to_ms(admissions[label]), 0.99, "ms")
        figures |= await measure_busy(store, queries, requests)
    figures |= compare_ends(lookups, "lookup") | compare_ends(admissions, "admission")
    start = time.perf_counter()
    async with open_store(folder / "growing") as store:
        figures["restart_seconds"] = results.single(time.perf_counter() - start, "s")
        assert (await usage.measure_usage(store.index, TENANT)).entries == rows.used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    figures["peak_rss_mb"] = results.single(peak, "MB")
    return figures


def compare_ends(durations: Mapping[str, Sequence[float]], name: str) -> dict[str, Figure]:
    """Computes the ratio of the mean cost at the last size to that at the first; nothing for one size.

    Args:
        durations: As many durations for each size, by its label, ascending.
    """
    first, last = next(iter(durations)), next(reversed(list(durations)))
    if first == last:
        return {}
    return {f"{name}_cost_{last}_over_{first}": results.ratio(durations[last], durations[first])}
