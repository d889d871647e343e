"""Cost of a miss: `python -m bench.miss_cost` writes bench/results/miss_cost.json.

Every prompt runs twice in direct succession on services of its own: without the cache, and as a miss on an
emptied cache, which adds a lookup and the admission of the latents. The order of the two alternates. A run
keeps the device until its latents are admitted, so the time until the device is free is measured as well, by
the queue time of a request that is submitted as soon as the video has arrived.
"""

from __future__ import annotations

import random
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_client import CacheClient, ChorusClient
from rich.progress import track

from bench import results
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.scenes import Pool
from evaluation.timing import generate_timed, warm_up
from models.movingshapes.captions import caption

WARM_UP_PAIRS: Final = 2


@dataclass(frozen=True)
class Pair:
    """One prompt without the cache and as a miss.

    Attributes:
        off_seconds: Time from the request to the video, without the cache.
        miss_seconds: Time from the request to the video, for the miss.
        off_busy_seconds: Time until the device is free again, without the cache.
        miss_busy_seconds: Time until the device is free again, for the miss.
    """

    off_seconds: float
    miss_seconds: float
    off_busy_seconds: float
    miss_busy_seconds: float


def measure_pairs(client: ChorusClient, cache: CacheClient, count: int, seed: int) -> Iterator[Pair]:
    """Measures `count` prompts of the calibration split, half of them with two objects."""
    pool, draw = Pool("calibration", seed), random.Random(seed)
    for number in range(count):
        prompt = caption(pool.draw(1 + number % 2), draw)
        cache.purge(everything=True)
        durations: dict[str, tuple[float, float]] = {}
        for method in ("off", "miss") if number % 2 else ("miss", "off"):
            if method == "off":
                run = generate_timed(client, prompt, seed=seed + number, reuse="off", no_store=True)
            else:
                run = generate_timed(client, prompt, seed=seed + number)
                if run.generation.HasField("donor"):
                    raise SystemExit(f"not a miss: {prompt}")
            # A request that computes one step; only its time in the queue counts.
            after = client.generate(prompt, seed=0, steps=1, reuse="off", no_store=True)
            waited = after.generation.timings.queued_seconds
            durations[method] = run.seconds, run.seconds + waited
        off, miss = durations["off"], durations["miss"]
        yield Pair(off[0], miss[0], off[1], miss[1])


def build_figures(pairs: Sequence[Pair]) -> dict[str, Figure]:
    """Computes medians, and medians of the paired differences and ratios."""
    return {
        "off_seconds_p50": results.median([p.off_seconds for p in pairs], "s"),
        "miss_seconds_p50": results.median([p.miss_seconds for p in pairs], "s"),
        "miss_extra_seconds_p50": results.median([p.miss_seconds - p.off_seconds for p in pairs], "s"),
        "miss_ratio_p50": results.median([p.miss_seconds / p.off_seconds for p in pairs], "x"),
        "miss_extra_busy_seconds_p50": results.median(
            [p.miss_busy_seconds - p.off_busy_seconds for p in pairs], "s"
        ),
    }


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "miss_cost.json",
    count: Annotated[int, typer.Option(min=2, help="Number of prompts.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and videos.")] = 0,
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        local_deployment(Path(directory), cache_embeddings=False) as targets,
        ChorusClient(targets["scheduler"]) as client,
        CacheClient(targets["cache"]) as cache,
    ):
        warm_up(client)
        list(measure_pairs(client, cache, WARM_UP_PAIRS, seed + count))
        pairs = list(track(measure_pairs(client, cache, count, seed), "misses", count))
    figures = build_figures(pairs)
    results.write(out, f"python -m bench.miss_cost {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4f} {figure.unit} {figure.ci95}, n = {figure.n}")


if __name__ == "__main__":
    typer.run(main)
