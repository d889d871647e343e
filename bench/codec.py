"""Loss by storing donors' latents in fewer bits: `python -m bench.codec` writes bench/results/codec.json.

Every pair of single edits of the split `test` is generated from the donor's latents as computed, and from
the same latents rounded as a codec would store them. The clean latents keep every bit with every codec, as
exact repeats need them. A gain or loss in points is that of the rounded latents over those as computed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from chorus_rpc.plan_bounds import DEFAULT_REGION
from rich.progress import track
from torch import Tensor

from bench import results
from bench.in_process import CustomVariant, Harness, Output, Pair, Trial, run_trials
from bench.results import Figure
from evaluation.scenes import SINGLE_EDITS, make_groups
from services.scheduler.planning.calibration import Depth


def round_bfloat16(latents: Tensor) -> Tensor:
    return latents.bfloat16().float()


def round_int8(latents: Tensor) -> Tensor:
    """Rounds to 8 bits with one scale for each channel."""
    scale = latents.abs().amax((1, 2, 3), keepdim=True) / 127
    return (latents / scale).round() * scale


CODECS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "float32": lambda latents: latents,
    "bfloat16": round_bfloat16,
    "int8": round_int8,
}


@dataclass(frozen=True)
class Stored(CustomVariant):
    """A depth of reuse from latents as a codec stores them."""

    depth: Depth
    codec: str

    def generate(self, harness: Harness, pair: Pair) -> Output:
        plan = harness.build_plan(self.depth, pair.edit)
        assert plan is not None
        assert pair.own.text is not None
        total = len(harness.sigmas) - 1
        stored = {
            step: latents if step == total else CODECS[self.codec](latents)
            for step, latents in pair.donor.steps.items()
        }
        noise = harness.model.noise(1, harness.shape)
        donor = replace(pair.donor, steps=stored)
        latents, computed = harness.run_plan(plan, pair.own.text, noise, donor, pair.then)
        # The first codec of a depth keeps every bit.
        exact = pair.runs.setdefault(plan.SerializeToString(), latents)
        return Output(latents, computed, {"difference": float((latents - exact).square().mean())})


def build_variants(harness_sigmas: Sequence[float]) -> dict[str, Stored]:
    """Returns the variants by name, "DEPTH CODEC"; those with every bit come first."""
    inner = harness_sigmas[1:-1]
    depths = {f"k{number}": Depth(sigma) for number, sigma in enumerate(inner, start=1)}
    depths["draft"] = Depth(inner[0], draft_sigma=inner[-1])
    depths["region"] = Depth(inner[0], region=DEFAULT_REGION)
    return {f"{name} {codec}": Stored(depth, codec) for name, depth in depths.items() for codec in CODECS}


def compare(trials: Sequence[Trial]) -> dict[str, Figure]:
    """Computes what each codec changes at each depth, and at all together."""
    figures: dict[str, Figure] = {}
    depths = list(dict.fromkeys(name.split()[0] for name in trials[0].videos if " " in name))
    for codec in CODECS:
        if codec == "float32":
            continue
        for label, chosen in (*((depth, [depth]) for depth in depths), ("all", depths)):
            pairs = [
                (trial.videos[f"{depth} {codec}"], trial.videos[f"{depth} float32"])
                for trial in trials
                for depth in chosen
            ]
            name = f"{codec}_{label}"
            figures[f"{name}_alignment_points"] = results.paired([(a.right, b.right) for a, b in pairs])
            artefacts = [100 * (a.artefact_share - b.artefact_share) for a, b in pairs]
            figures[f"{name}_artefact_points"] = results.mean(artefacts, "points of the pixels")
            figures[f"{name}_kept_points"] = results.paired([(a.kept, b.kept) for a, b in pairs])
            shares = [a.measurements["difference"] / max(b.fidelity, 1e-12) for a, b in pairs]
            figures[f"{name}_difference_share"] = results.median(shares, "of the distance to full")
    return figures


def main(
    pairs: Annotated[int, typer.Option(min=10, help="Number of pairs of single edits.")] = 66,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first video.")] = 9700,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = os.cpu_count() or 1,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = results.RESULTS,
) -> None:
    """Generates the pairs and writes the result file."""
    torch.set_num_threads(1)
    sigmas = Harness().sigmas
    found = [group for group in make_groups("test", 2 * pairs, seed, "unseen") if group.kind in SINGLE_EDITS]
    groups = found[:pairs]
    variants = build_variants(sigmas)
    trials = list(track(run_trials(groups, variants, seed, processes), "pairs", len(groups)))
    figures = compare(trials)
    for name, figure in figures.items():
        print(f"{name:36} {figure.value:9.3g} {figure.ci95 or ''}")
    results.write(out / "codec.json", f"python -m bench.codec {shlex.join(sys.argv[1:])}".strip(), figures)


if __name__ == "__main__":
    typer.run(main)
