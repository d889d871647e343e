"""Exact repeats and explicit seeds, on the whole stack over gRPC: one part of `bench.chorus`.

Every prompt is computed in full, requested again with the same seed, and requested with two other seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from chorus_client import ChorusClient, SpecOptions
from rich.progress import track

from bench import results
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.scenes import UNRELATED, make_groups
from evaluation.timing import generate_timed, warm_up

SEEDS: Final = 3
REPEATS: Final = 3


def measure_repeats(folder: Path, prompts: int, seed: int) -> dict[str, Figure]:
    """Measures how much faster repeats are, whether they are the same videos, and whether seeds differ.

    Args:
        folder: Folder of the temporary deployment.
        prompts: Number of prompts, of the split `test`.
        seed: Seed of the prompts and of the first video.
    """
    groups = make_groups("test", prompts, seed, "unseen")
    texts = [group.donor.prompt for group in groups if group.kind != UNRELATED]
    speedups: list[float] = []
    same = different = 0
    with local_deployment(folder) as targets, ChorusClient(targets["scheduler"]) as client:
        warm_up(client)
        for number, prompt in enumerate(track(texts, "repeats")):
            request: SpecOptions = {"seed": seed + SEEDS * number, "reuse": "balanced"}
            first = generate_timed(client, prompt, **request)
            full = generate_timed(client, prompt, seed=request["seed"], reuse="off", no_store=True)
            again = [generate_timed(client, prompt, **request) for _ in range(REPEATS)]
            if any(each.generation.steps_run for each in again):
                raise SystemExit(f"not repeated: {prompt}")
            speedups += [full.seconds / each.seconds for each in again]
            same += all(each.video == first.video == full.video for each in again)
            others = [generate_timed(client, prompt, seed=seed + SEEDS * number + k) for k in (1, 2)]
            different += len({first.video, *(each.video for each in others)}) == SEEDS
    return {
        "exact_speedup": results.median(speedups, "x"),
        "exact_identical": results.share(same, len(texts)),
        "seeds_different": results.share(different, len(texts)),
    }
