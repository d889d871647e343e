"""Ablation of the method: `python -m bench.ablation` writes the tables and the plot of docs/ablation.md.

Uses pairs of prompts from the calibration split that the planner was not calibrated on. Every pair is
generated in full, with each stage added to the previous ones, with each alternative of a part, and with the
baselines; on one thread, in one process, without the services. Writes bench/results/ablation.json,
docs/images/ablation.png and docs/ablation-tables.md. Takes about half an hour on two cores.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus.common.v1 import plan_pb2
from chorus_rpc.plan_bounds import DEFAULT_ATTENTION_THRESHOLD, DEFAULT_REGION
from rich.progress import track

from bench import results
from bench.in_process import FULL, Fewer, Renoised, Trial, Variant, run_trials
from bench.results import Figure
from evaluation.scenes import KINDS, make_groups
from services.scheduler.planning.calibration import Depth

DOCS: Final = results.ROOT / "docs"
FULL_TITLE: Final = "Full computation"
SIGMAS: Final = {1: 0.9375, 2: 0.8333, 3: 0.625}
FORMS: Final = {
    "contrast": plan_pb2.AMPLIFICATION_FORM_CONTRAST,
    "bias": plan_pb2.AMPLIFICATION_FORM_BIAS,
    "value gain": plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
}


def build_region(
    source: plan_pb2.RegionSource.ValueType = plan_pb2.REGION_SOURCE_PROBE,
    context: plan_pb2.RegionContext.ValueType = plan_pb2.REGION_CONTEXT_NONE,
) -> plan_pb2.RegionPlan:
    """Returns the default region plan with another source and context."""
    plan = plan_pb2.RegionPlan()
    plan.CopyFrom(DEFAULT_REGION)
    plan.source, plan.context = source, context
    if source == plan_pb2.REGION_SOURCE_ATTENTION:
        plan.threshold = DEFAULT_ATTENTION_THRESHOLD
    return plan


def build_amplification(form: str, strength: float) -> plan_pb2.Amplification:
    """Returns an amplification in every block and step."""
    return plan_pb2.Amplification(form=FORMS[form], strength=strength)


def build_variants() -> dict[str, dict[str, Variant]]:
    """Returns the tables: title → name → variant. Each table answers one question."""
    probe = build_region()
    return {
        "Stage by stage": {
            **{f"K1 = {k}": Depth(s) for k, s in SIGMAS.items()},
            **{f"K1 = {k}, region": Depth(s, probe) for k, s in SIGMAS.items()},
            **{
                f"K1 = {k}, region, TGAA": Depth(s, probe, build_amplification("contrast", 0.5))
                for k, s in SIGMAS.items()
            },
        },
        "Region source (K1 = 2)": {
            "every fourth token": Depth(SIGMAS[2], probe),
            "a full step": Depth(SIGMAS[2], build_region(plan_pb2.REGION_SOURCE_FULL_STEP)),
            "attention maps": Depth(SIGMAS[2], build_region(plan_pb2.REGION_SOURCE_ATTENTION)),
            "every fourth token, strided context": Depth(
                SIGMAS[2], build_region(context=plan_pb2.REGION_CONTEXT_STRIDED)
            ),
        },
        "Amplification at the deepest reuse (K1 = 3, no region)": {
            "none": Depth(SIGMAS[3]),
            **{
                f"{form} {strength:g}": Depth(SIGMAS[3], None, build_amplification(form, strength))
                for form, strengths in (
                    ("contrast", (0.25, 0.5, 1.0)),
                    ("bias", (0.5, 1.0, 2.0)),
                    ("value gain", (0.5, 1.0)),
                )
                for strength in strengths
            },
        },
        "Baselines": {
            **{f"{n} steps, no cache": Fewer(n) for n in (3, 2, 1)},
            **{f"renoised final, from σ {s:g}": Renoised(s) for s in (SIGMAS[2], SIGMAS[3])},
        },
    }


def build_figures(completed: Sequence[Trial], names: Sequence[str]) -> dict[str, Figure]:
    """Computes alignment, drift, artefacts and cost of every variant, over all pairs and by kind of edit."""
    figures = {}
    for name in (FULL, *names):
        for kind in ("all", *KINDS):
            videos = [t.videos[name] for t in completed if kind in ("all", t.kind) and name in t.videos]
            full = [t.videos[FULL] for t in completed if kind in ("all", t.kind) and name in t.videos]
            if not videos:
                continue
            figures[f"{name}.{kind}.alignment"] = results.share(sum(v.right for v in videos), len(videos))
            figures[f"{name}.{kind}.computed_steps"] = results.mean([v.computed for v in videos], "steps")
            figures[f"{name}.{kind}.drift_points"] = results.mean(
                [100.0 * (v.followed - f.followed) for v, f in zip(videos, full, strict=True)],
                "percentage points",
            )
            figures[f"{name}.{kind}.artefact_points"] = results.mean(
                [100.0 * v.artefact_share for v in videos], "points of the pixels"
            )
    return figures


def format_table(title: str, names: Sequence[str], figures: Mapping[str, Figure]) -> Iterator[str]:
    """Yields a Markdown table with a row for each variant and a column for each kind: alignment / drift.

    Artefacts are in percent of the pixels.
    """
    yield f"### {title}\n"
    yield "| | computed steps | artefacts | all | " + " | ".join(KINDS) + " |"
    yield "|---|---|---|---|" + "---|" * len(KINDS)
    for name in names:
        cells = []
        for kind in ("all", *KINDS):
            right = figures.get(f"{name}.{kind}.alignment")
            if right is None:
                cells.append("–")
                continue
            drift = figures[f"{name}.{kind}.drift_points"].value
            cells.append(f"{100 * right.value:.0f}" + (f" / {drift:+.0f}" if abs(drift) >= 0.5 else ""))
        steps, artefacts = figures[f"{name}.all.computed_steps"], figures[f"{name}.all.artefact_points"]
        yield f"| {name} | {steps.value:.2f} | {artefacts.value:.2f} | " + " | ".join(cells) + " |"
    yield ""


def plot(path: Path, tables: Mapping[str, Mapping[str, Variant]], figures: Mapping[str, Figure]) -> None:
    """Plots alignment over cost, with a point for each variant and a colour for each table."""
    from matplotlib.figure import Figure as Canvas  # part of the extra `eval`

    canvas = Canvas(figsize=(8, 4.5), layout="constrained")
    axes = canvas.subplots()
    for title, names in {FULL_TITLE: [FULL], **tables}.items():
        measured = [name for name in names if f"{name}.all.alignment" in figures]
        axes.plot(
            [figures[f"{name}.all.computed_steps"].value for name in measured],
            [100 * figures[f"{name}.all.alignment"].value for name in measured],
            "o",
            label=title,
        )
    axes.set(
        xlabel="computation per video, in full steps",
        ylabel="videos that match the whole prompt, %",
        title="Alignment against computation",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=110)


def main(
    pairs: Annotated[
        int, typer.Option(min=1, help="Number of prompt pairs, cycling through all kinds.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first pair.")] = 5000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, of one thread each.")] = 2,
) -> None:
    """Runs every variant on pairs of prompts and writes figures, tables and plot."""
    tables = build_variants()
    by_name = {name: variant for variants in tables.values() for name, variant in variants.items()}
    groups = make_groups("calibration", pairs, seed, "unseen")
    completed = list(track(run_trials(groups, by_name, seed, processes), "generating", len(groups)))
    figures = build_figures(completed, list(by_name))
    command = f"python -m bench.ablation {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "ablation.json", command, figures)
    plot(DOCS / "images" / "ablation.png", tables, figures)
    lines = [
        line
        for title, names in {FULL_TITLE: [FULL], **tables}.items()
        for line in format_table(title, list(names), figures)
    ]
    (DOCS / "ablation-tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
