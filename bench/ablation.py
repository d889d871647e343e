"""What each part of the method does: `python -m bench.ablation` writes docs/ablation.md's tables and plot.

Pairs of prompts of the calibration split, other ones than those that the planner was calibrated on. Every
pair is generated in full, by each stage added to the ones before, by each alternative of a part, and as
others would do it; on one thread, in one process, without the services between. Writes
bench/results/ablation.json, docs/images/ablation.png and docs/ablation-tables.md. Takes about half an hour
on two cores.
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
from bench.in_process import FULL, Fewer, Renoised, Trial, Variant, trials
from bench.results import Figure
from evaluation.scenes import KINDS, make_groups
from services.scheduler.planning.calibration import Depth

DOCS: Final = results.ROOT / "docs"
SIGMAS: Final = {1: 0.9375, 2: 0.8333, 3: 0.625}
FORMS: Final = {
    "contrast": plan_pb2.AMPLIFICATION_FORM_CONTRAST,
    "bias": plan_pb2.AMPLIFICATION_FORM_BIAS,
    "value gain": plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
}


def region(
    source: plan_pb2.RegionSource.ValueType = plan_pb2.REGION_SOURCE_PROBE,
    context: plan_pb2.RegionContext.ValueType = plan_pb2.REGION_CONTEXT_NONE,
) -> plan_pb2.RegionPlan:
    made = plan_pb2.RegionPlan()
    made.CopyFrom(DEFAULT_REGION)
    made.source, made.context = source, context
    if source == plan_pb2.REGION_SOURCE_ATTENTION:
        made.threshold = DEFAULT_ATTENTION_THRESHOLD
    return made


def amplify(form: str, strength: float) -> plan_pb2.Amplification:
    return plan_pb2.Amplification(form=FORMS[form], strength=strength)


def variants() -> dict[str, dict[str, Variant]]:
    """Tables of variants by name: each table is one question."""
    srd = region()
    return {
        "Stage by stage": {
            **{f"K1 = {k}": Depth(s) for k, s in SIGMAS.items()},
            **{f"K1 = {k}, region": Depth(s, srd) for k, s in SIGMAS.items()},
            **{f"K1 = {k}, region, TGAA": Depth(s, srd, amplify("contrast", 0.5)) for k, s in SIGMAS.items()},
        },
        "Where the region comes from (K1 = 2)": {
            "every fourth token": Depth(SIGMAS[2], srd),
            "a full step": Depth(SIGMAS[2], region(plan_pb2.REGION_SOURCE_FULL_STEP)),
            "attention maps": Depth(SIGMAS[2], region(plan_pb2.REGION_SOURCE_ATTENTION)),
            "every fourth token, strided context": Depth(
                SIGMAS[2], region(context=plan_pb2.REGION_CONTEXT_STRIDED)
            ),
        },
        "Amplification at the deepest reuse (K1 = 3, no region)": {
            "none": Depth(SIGMAS[3]),
            **{
                f"{form} {strength:g}": Depth(SIGMAS[3], None, amplify(form, strength))
                for form, strengths in (
                    ("contrast", (0.25, 0.5, 1.0)),
                    ("bias", (0.5, 1.0, 2.0)),
                    ("value gain", (0.5, 1.0)),
                )
                for strength in strengths
            },
        },
        "As others would": {
            **{f"{n} steps, no cache": Fewer(n) for n in (3, 2, 1)},
            **{f"renoised final, from σ {s:g}": Renoised(s) for s in (SIGMAS[2], SIGMAS[3])},
        },
    }


def figures_of(found: Sequence[Trial], names: Sequence[str]) -> dict[str, Figure]:
    """Alignment, drift and cost of every variant, for all pairs and by kind of edit."""
    figures = {}
    for name in (FULL, *names):
        for kind in ("all", *KINDS):
            videos = [t.videos[name] for t in found if kind in ("all", t.kind) and name in t.videos]
            full = [t.videos[FULL] for t in found if kind in ("all", t.kind) and name in t.videos]
            if not videos:
                continue
            figures[f"{name}.{kind}.alignment"] = results.share(sum(v.right for v in videos), len(videos))
            figures[f"{name}.{kind}.computed_steps"] = results.mean([v.computed for v in videos], "steps")
            figures[f"{name}.{kind}.drift_points"] = results.mean(
                [100.0 * (v.followed - f.followed) for v, f in zip(videos, full, strict=True)],
                "percentage points",
            )
    return figures


def table(title: str, names: Sequence[str], figures: Mapping[str, Figure]) -> Iterator[str]:
    """Markdown: a row for each variant, a column for each kind: alignment / drift."""
    yield f"### {title}\n"
    yield "| | steps' worth | all | " + " | ".join(KINDS) + " |"
    yield "|---|---|---|" + "---|" * len(KINDS)
    for name in names:
        cells = []
        for kind in ("all", *KINDS):
            right = figures.get(f"{name}.{kind}.alignment")
            if right is None:
                cells.append("–")
                continue
            drift = figures[f"{name}.{kind}.drift_points"].value
            cells.append(f"{100 * right.value:.0f}" + (f" / {drift:+.0f}" if abs(drift) >= 0.5 else ""))
        yield f"| {name} | {figures[f'{name}.all.computed_steps'].value:.2f} | " + " | ".join(cells) + " |"
    yield ""


def plot(path: Path, tables: Mapping[str, Mapping[str, Variant]], figures: Mapping[str, Figure]) -> None:
    """Alignment over cost, every variant a point, every table a colour."""
    from matplotlib.figure import Figure as Canvas  # of the extra `eval`

    canvas = Canvas(figsize=(8, 4.5), layout="constrained")
    axes = canvas.subplots()
    for title, names in {FULL: [FULL], **tables}.items():
        found = [name for name in names if f"{name}.all.alignment" in figures]
        axes.plot(
            [figures[f"{name}.all.computed_steps"].value for name in found],
            [100 * figures[f"{name}.all.alignment"].value for name in found],
            "o",
            label=title,
        )
    axes.set(
        xlabel="computed, in full steps", ylabel="every attribute right, %", title="Alignment for compute"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=110)


def main(
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of prompts, of every kind in turn.")] = 400,
    seed: Annotated[int, typer.Option(min=0)] = 5000,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    tables = variants()
    every = {name: variant for part in tables.values() for name, variant in part.items()}
    groups = make_groups("calibration", pairs, seed, "unseen")
    found = list(track(trials(groups, every, seed, processes), "generating", len(groups)))
    figures = figures_of(found, list(every))
    command = f"python -m bench.ablation {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "ablation.json", command, figures)
    plot(DOCS / "images" / "ablation.png", tables, figures)
    lines = [
        line
        for title, names in {"In full": [FULL], **tables}.items()
        for line in table(title, list(names), figures)
    ]
    (DOCS / "ablation-tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
