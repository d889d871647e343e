"""Cost of a miss: `python -m bench.miss_cost` writes bench/results/miss_cost.json.

Every prompt runs twice in direct succession on services of its own: without the cache, and as a miss on a
cache that holds an unrelated request. The miss adds a lookup, the comparison with that request and the
admission of its latents. The order of the two alternates. Latents are admitted in the background, so the
time until the device is free is measured as well, by the queue time of a request that is submitted as soon as
the video has arrived.
"""

from __future__ import annotations

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
from evaluation.measure import vary_spacing
from evaluation.scenes import KINDS, UNRELATED, make_groups
from evaluation.timing import generate_timed, warm_up

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
    """Measures `count` prompts of the calibration split, each against one unrelated request in the cache."""
    groups = make_groups("calibration", count * len(KINDS), seed, "seen")
    unrelated = [group for group in groups if group.kind == UNRELATED]
    for number, group in enumerate(unrelated[:count]):
        cache.purge(everything=True)
        client.generate(group.donor.prompt, seed=seed + number)
        prompt = group.targets[0].prompt
        durations: dict[str, tuple[float, float]] = {}
        for place, method in enumerate(("off", "miss") if number % 2 else ("miss", "off"), 1):
            # Another spacing is another prompt to the embedder's cache, as a new request would be.
            spaced = vary_spacing(prompt, place)
            # Waits until the device is free of the request before.
            client.generate(prompt, seed=0, steps=1, reuse="off", no_store=True)
            if method == "off":
                run = generate_timed(client, spaced, seed=seed + number, reuse="off", no_store=True)
            else:
                run = generate_timed(client, spaced, seed=seed + number)
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
        local_deployment(Path(directory)) as targets,
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
