"""Spread of the videos over explicit seeds, by policy, on the whole stack: one part of `bench.chorus`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from chorus_cli.output import Output
from chorus_rpc.tenancy import DEFAULT_TENANT

from bench import results
from bench.results import Figure
from evaluation import run as evaluation
from evaluation.methods import FULL, build_methods
from evaluation.scenes import SINGLE_EDITS, make_groups

SEEDS: Final = 4  # per target


def measure_diversity(folder: Path, pairs: int, seed: int, policies: Sequence[str]) -> dict[str, Figure]:
    """Measures how far a target's videos of other explicit seeds spread, by policy, relative to full's.

    Args:
        folder: Folder for the measurements of `chorus eval`.
        pairs: Number of prompt pairs to build, of all kinds, of the split `test`; single edits are generated.
        seed: Seed of the prompts and of the first video.
    """
    groups = [group for group in make_groups("test", pairs, seed, "unseen") if group.kind in SINGLE_EDITS]
    options = evaluation.EvalOptions(
        target=None,
        cache_target=None,
        tenant=DEFAULT_TENANT,
        groups=groups,
        methods=build_methods(policies, {}, (), ()),
        seed=seed,
        model=None,
        token_pixels=4,
        target_seed="other",
        seeds_per_target=SEEDS,
    )
    evaluation.run_evaluation(options, folder, Output(as_json=False))
    measured: dict[str, Any] = results.read(folder / evaluation.FIGURES)["figures"]
    full = measured[f"{FULL}.diversity_mean"]["value"]
    return {f"{policy}_diversity_ratio": _divide(measured, policy, full) for policy in policies}


def _divide(measured: dict[str, Any], policy: str, full: float) -> Figure:
    found = measured[f"{policy}.diversity_mean"]
    low, high = (bound / full for bound in found["ci95"])
    return Figure(found["value"] / full, "of full", found["n"], (low, high))
