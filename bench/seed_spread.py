"""Measures how much the videos of one edited prompt differ over seeds, for each depth of reuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.in_process import FULL, Harness, map_jobs
from evaluation.prompts import Group
from models.shapes.yardstick.diversity import diversity_ratios, measure_variances
from models.shapes.yardstick.reader import read
from services.scheduler.planning.calibration import Depth

SEEDS: Final = 6  # of each target
# Variances of one target: name of the depth, or FULL → field → variance over its seeds.
Spread: TypeAlias = dict[str, dict[str, float]]


@dataclass(frozen=True)
class SpreadJob:
    """A group whose first target is generated with SEEDS seeds, in full and at each depth, from one donor."""

    group: Group
    seed: int
    depths: Mapping[str, Depth]


def measure_spread(harness: Harness, job: SpreadJob) -> Spread:
    """Measures the variances over seeds of what the target's prompt leaves open."""
    scene = job.group.targets[0].scene
    assert scene is not None
    pair, total = harness.run_pair(job.group, job.seed), len(harness.sigmas) - 1
    seeds = [2 * job.seed + 1 + 1_000_000 * number for number in range(SEEDS)]
    latents = {FULL: [harness.run_full(pair.states, seed).steps[total] for seed in seeds]}
    for name, depth in job.depths.items():
        runs = [harness.run_variant(depth, pair, seed) for seed in seeds]
        latents[name] = [run[0] for run in runs if run is not None]
    return {
        name: measure_variances([read(harness.model.decode(x)) for x in found], scene)
        for name, found in latents.items()
    }


def summarise_spread(spreads: Sequence[Spread]) -> dict[str, float]:
    """Computes for each depth the spread over seeds, over that of full computation."""
    names = spreads[0].keys() - {FULL}
    full = [spread[FULL] for spread in spreads]
    return {name: diversity_ratios([spread[name] for spread in spreads], full)["mean"] for name in names}


def run_spreads(
    groups: Sequence[Group], depths: Mapping[str, Depth], seed: int, processes: int
) -> Iterable[Spread]:
    """Measures the spread of every group, in `processes` processes of one thread each."""
    jobs = [SpreadJob(group, seed + number, depths) for number, group in enumerate(groups)]
    return map_jobs(measure_spread, jobs, processes)
