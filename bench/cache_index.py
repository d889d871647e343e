"""The embedded index as it grows: `python -m bench.cache_index` writes bench/results/cache_index.json.

Fills one index with rows as requests write them, and measures lookups at each size: alone, and while every
row is read as a sweep reads them. Ratios are to a bare matrix product over the same vectors, in the same run.
"""

from __future__ import annotations

import asyncio
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from chorus.common.v1 import latents_pb2
from numpy.typing import NDArray

from bench import results
from bench.results import Figure
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Blob, Entry, Space
from services.contract.identity import entry_id, identity_digest, prompt_hash

SPACE: Final = Space("all-minilm-l6-v2", 384)
TENANT: Final = "default"
IDENTITY: Final = identity_digest(latents_pb2.LatentIdentity(model_id="bench"))
LIMIT: Final = 8  # donors of a lookup
LOOKUPS: Final = 300


def make_entry(number: int) -> Entry:
    """Returns a row of the size that requests write: four boundaries and side data."""
    prompt = f"a small red circle moving left and a large blue square, number {number}"
    blobs = tuple(
        Blob(step, 1 - (step or 4) / 5, 440_000, prompt_hash(f"{number} {step}"))
        for step in (1, 2, 3, 4, None)
    )
    return Entry(
        entry_id=entry_id(TENANT, IDENTITY, prompt, number),
        tenant=TENANT,
        identity=IDENTITY,
        model_id="bench",
        prompt=prompt,
        prompt_hash=prompt_hash(prompt),
        blobs=blobs,
        cost_seconds=0.3,
        created_ms=number,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        generation_id=f"generation-{number}",
        seed=number,
    )


def draw_vectors(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, SPACE.dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


async def time_calls(call: Callable[[int], Awaitable[object]], count: int) -> list[float]:
    """Returns the durations of calls one after the other, in ms."""
    durations = []
    for i in range(count):
        start = time.perf_counter()
        await call(i)
        durations.append(1000 * (time.perf_counter() - start))
    return durations


async def measure(path: str, sizes: list[int]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    index = await EmbeddedIndex.open_path(path, seconds=60)
    vectors, queries = draw_vectors(max(sizes), 0), draw_vectors(LOOKUPS, 1)

    async def look_up(i: int) -> object:
        return await index.search(SPACE.name, TENANT, IDENTITY, queries[i].tolist(), LIMIT)

    async def multiply(i: int) -> object:
        return np.argpartition(-(known @ queries[i]), LIMIT)[:LIMIT]

    async def walk() -> float:
        start = time.perf_counter()
        async for _ in index.every_entry(SPACE.name):
            pass
        return time.perf_counter() - start

    filled = 0
    for size in sizes:
        start = time.perf_counter()
        for number in range(filled, size):
            await index.upsert(SPACE, make_entry(number), vectors[number].tolist())
        label, added, filled = f"{size // 1000}k", size - filled, size
        figures[f"upsert_ms_{label}"] = Figure(1000 * (time.perf_counter() - start) / added, "ms", added)
        known = vectors[:size]
        await look_up(0)
        alone, bare = await time_calls(look_up, LOOKUPS), await time_calls(multiply, LOOKUPS)
        figures[f"lookup_p50_ms_{label}"] = results.median(alone, "ms")
        figures[f"lookup_p99_ms_{label}"] = Figure(float(np.percentile(alone, 99)), "ms", LOOKUPS)
        figures[f"lookup_over_bare_{label}"] = Figure(float(np.median(alone) / np.median(bare)), "x", LOOKUPS)
        walking = asyncio.create_task(walk())
        during = []
        while not walking.done():
            during += await time_calls(look_up, 1)
            await asyncio.sleep(0)  # a lookup of few rows does not wait for anything
        figures[f"walk_seconds_{label}"] = Figure(await walking, "s", 1)
        figures[f"lookup_p99_ms_during_walk_{label}"] = Figure(
            float(np.percentile(during, 99)), "ms", len(during)
        )
    await index.close()
    start = time.perf_counter()
    index = await EmbeddedIndex.open_path(path, seconds=60)
    figures["restart_seconds"] = Figure(time.perf_counter() - start, "s", 1)
    assert len(await index.search(SPACE.name, TENANT, IDENTITY, queries[0].tolist(), LIMIT)) == LIMIT
    await index.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["peak_rss_mb"] = Figure(peak, "MB", 1)
    return figures


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "cache_index.json",
    sizes: Annotated[str, typer.Option(help="Numbers of rows, ascending.")] = "1000,10000,100000",
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(f"{folder}/index.db", [int(each) for each in sizes.split(",")]))
    results.write(out, f"python -m bench.cache_index {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit} {figure.ci95 or ''}, n = {figure.n}")


if __name__ == "__main__":
    typer.run(main)
