"""Timing of requests that have a twin: `python -m bench.cache_isolation` prints areas under the ROC curve.

Half of the requests of one tenant have a twin: another tenant holds an entry for the same prompt and vector.
If durations showed which half a request belongs to, a tenant could find out what others asked. An area of 0.5
means that the durations are indistinguishable, 1 that every request with a twin takes longer. Intervals are
those of a bootstrap over the prompts. Writes nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from chorus.common.v1 import latents_pb2
from chorus_rpc.chunks import sha256
from chorus_rpc.errors import ChorusError
from numpy.typing import NDArray

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission, Blob, Entry, Space
from services.cache.store import LatentStore
from services.contract.identity import entry_id, identity_digest, prompt_hash

SPACE: Final = Space("all-minilm-l6-v2", 384)
IDENTITY: Final = identity_digest(latents_pb2.LatentIdentity(model_id="bench"))
OBSERVER, OTHER = "observer", "other-one"
OWN_ENTRIES: Final = 64
PROMPTS: Final = 1_000  # those with an even number have a twin
RESAMPLES: Final = 200
CONTENT: Final = bytes(1_000)


def make_prompt(number: int) -> str:
    return f"a small red circle moving left, number {number}"


def make_id(tenant: str, number: int) -> str:
    return entry_id(tenant, IDENTITY, make_prompt(number), 0)


def make_admission(tenant: str, number: int, vector: NDArray[np.float32]) -> Admission:
    prompt, digest = make_prompt(number), sha256(CONTENT)
    entry = Entry(
        entry_id=make_id(tenant, number),
        tenant=tenant,
        identity=IDENTITY,
        model_id="bench",
        prompt=prompt,
        prompt_hash=prompt_hash(prompt),
        blobs=(Blob(1, 0.8, len(CONTENT), digest),),
        cost_seconds=0.3,
        created_ms=number,
        traceparent="",
        generation_id=f"generation-{number}",
        seed=0,
    )
    return Admission(SPACE, entry, tuple(vector.tolist()), {digest: CONTENT})


def measure_area(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Returns the probability that a positive exceeds a negative; equal values count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))


def resample_area(durations: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    """Returns the 95 % interval of an area, by a bootstrap over the rows; even rows are positive."""
    positive, negative = durations[::2], durations[1::2]
    areas = [
        measure_area(
            positive[random.integers(len(positive), size=len(positive))].ravel(),
            negative[random.integers(len(negative), size=len(negative))].ravel(),
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(areas, (2.5, 97.5))
    return float(low), float(high)


async def measure(folder: Path, rounds: int, seed: int) -> Mapping[str, NDArray[np.float64]]:
    """Returns durations by operation, in ns: one row for each prompt."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((PROMPTS + OWN_ENTRIES, SPACE.dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = [vector.tolist() for vector in vectors]
    index = await EmbeddedIndex.open_path(str(folder / "index.db"), seconds=60)
    blobs = await DirectoryBlobs.open(folder / "blobs", seconds=60, threads=4)
    store = LatentStore(index, blobs)
    for number in range(PROMPTS, PROMPTS + OWN_ENTRIES):
        await store.admit(make_admission(OBSERVER, number, vectors[number]))
    for number in range(0, PROMPTS, 2):
        await store.admit(make_admission(OTHER, number, vectors[number]))

    async def look_up(number: int) -> object:
        return await store.lookup(SPACE, OBSERVER, IDENTITY, queries[number], 8, 0.9)

    async def find(number: int) -> object:
        return await store.find(SPACE, OBSERVER, own_ids[number])

    async def fetch_foreign(number: int) -> object:
        try:
            return await anext(store.fetch(SPACE, OBSERVER, IDENTITY, foreign_ids[number], [1]))
        except ChorusError:
            return None

    own_ids = [make_id(OBSERVER, number) for number in range(PROMPTS)]
    foreign_ids = [make_id(OTHER, number) for number in range(PROMPTS)]
    operations: Mapping[str, Callable[[int], Awaitable[object]]] = {
        "lookup": look_up,
        "find": find,
        "fetch of a foreign id": fetch_foreign,
    }
    names = list(operations)
    durations = np.empty((len(names), PROMPTS, rounds))
    for i in range(-1, rounds):  # the first round is a warm-up
        for chosen in random.permutation(len(names) * PROMPTS).tolist():
            operation, number = divmod(chosen, PROMPTS)
            start = time.perf_counter_ns()
            answer = await operations[names[operation]](number)
            durations[operation, number, max(i, 0)] = time.perf_counter_ns() - start
            assert not answer, "an entry of another tenant"
    await store.close()
    await blobs.close()
    await index.close()
    return dict(zip(names, durations, strict=True))


def main(
    rounds: Annotated[int, typer.Option(help="Calls of each operation for each prompt.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the vectors and of the order of the calls.")] = 0,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measure(Path(folder), rounds, seed))
    for name, durations in measured.items():
        area = measure_area(durations[::2].ravel(), durations[1::2].ravel())
        low, high = resample_area(durations, np.random.default_rng(seed))
        median = np.median(durations) / 1_000
        print(f"{name}: AUC {area:.4f} ({low:.4f} to {high:.4f}), n = {durations.size}, p50 {median:.1f} µs")


if __name__ == "__main__":
    typer.run(main)
