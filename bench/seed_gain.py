"""Likeness of hits to the full computation, with a donor of the same seed or another, for `bench.chorus`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from rich.progress import track
from torch import Tensor

from bench import results
from bench.in_process import Harness, Pair, map_jobs
from bench.results import Figure
from evaluation.prompts import Group
from evaluation.scenes import SINGLE_EDITS, make_groups
from services.scheduler.planning.calibration import Depth

# Added to a pair's seed for the donor of another seed.
_OTHER: Final = 1_000_000


@dataclass(frozen=True)
class SeedJob:
    """A pair of prompts, computed with a seed."""

    group: Group
    seed: int


def measure_pair(harness: Harness, job: SeedJob) -> list[tuple[float, float]]:
    """Returns for every K1 the PSNR, in dB, of a hit to the target's full computation.

    The first value of each is with a donor of the same seed, the second with one of another seed.
    """
    prompts = job.group.donor.prompt, job.group.targets[0].prompt
    donor, target = (harness.encoder.encode([prompt])[0] for prompt in prompts)
    full = harness.run_full(target.states, job.seed)
    total = len(harness.sigmas) - 1
    shown = harness.model.decode(full.steps[total])
    then = harness.prepare_plain(target.states, donor.states)
    edit = harness.find_edit(prompts[0], target, prompts[1])
    pairs = [
        Pair(edit, harness.run_full(donor.states, seed), full, target.states, then)
        for seed in (job.seed, job.seed + _OTHER)
    ]
    found = []
    for sigma in harness.sigmas[1:-1]:
        runs = [harness.run_variant(Depth(sigma), pair, job.seed) for pair in pairs]
        same, other = (_psnr(harness.model.decode(run[0]), shown) for run in runs if run is not None)
        found.append((same, other))
    return found


def _psnr(video: Tensor, reference: Tensor) -> float:
    """Returns the peak signal-to-noise ratio of videos in −1 to 1, in dB."""
    error = (video.clamp(-1, 1) - reference.clamp(-1, 1)).square().mean().clamp_min(1e-10)
    return float(10 * torch.log10(4 / error))


def measure_seed_gain(pairs: int, seed: int, processes: int) -> dict[str, Figure]:
    """Measures single edits of the split `test`: PSNR with donors of the same seed minus that of others.

    Args:
        pairs: Number of prompt pairs to build, of all kinds.
        seed: Seed of the prompts and of the first video.
    """
    groups = [group for group in make_groups("test", pairs, seed, "unseen") if group.kind in SINGLE_EDITS]
    jobs = [SeedJob(group, seed + number) for number, group in enumerate(groups)]
    found = list(track(map_jobs(measure_pair, jobs, processes), "donors of the same seed", len(jobs)))
    figures: dict[str, Figure] = {}
    gains: list[float] = []
    for depth, values in enumerate(zip(*found, strict=True), start=1):
        gains += _add_figures(figures, f"k{depth}", values)
    return figures | {"same_seed_psnr_gain_db": results.mean(gains, "dB")}


def _add_figures(figures: dict[str, Figure], name: str, values: Sequence[tuple[float, float]]) -> list[float]:
    gains = [same - other for same, other in values]
    figures[f"same_seed_psnr_{name}"] = results.mean([same for same, _ in values], "dB")
    figures[f"other_seed_psnr_{name}"] = results.mean([other for _, other in values], "dB")
    figures[f"same_seed_psnr_gain_{name}_db"] = results.mean(gains, "dB")
    return gains
