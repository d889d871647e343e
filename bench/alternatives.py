"""Alternatives to parts of the method: `python -m bench.alternatives` writes docs/alternatives-tables.md.

Compares other region sources, harder edges, other thresholds and other amplification with the implementation
of the services, on pairs of prompts from the calibration split that neither the calibration nor
`bench.ablation` uses. The best variant is chosen on one half of the pairs and reported on the other. Also
writes bench/results/alternatives.json. Takes about four hours on one core; `--only` selects tables.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final

import typer
from chorus.common.v1 import plan_pb2
from rich.progress import track

from bench import results
from bench.ablation import (
    DOCS,
    FORMS,
    FULL_TITLE,
    SIGMAS,
    build_amplification,
    build_figures,
    build_region,
    format_table,
)
from bench.in_process import FULL, Trial, Variant, run_trials
from bench.results import Figure
from bench.variants import Alternative, Gate, Term, Where
from evaluation.scenes import KINDS, make_groups
from services.scheduler.planning.calibration import Depth

# Pairs per block. A block contains every kind with one object and with two; blocks alternate between the
# halves.
BLOCK: Final = 2 * len(KINDS)
# Measurements of the region's edge: name → unit.
EDGE_FIGURES: Final = {"jump": "RGB, -1 to 1", "edge_error": "mean square of latents"}


def probe_region(threshold: float, dilation: int = 1) -> plan_pb2.RegionPlan:
    """Returns the default region plan with another threshold and dilation."""
    plan = build_region()
    plan.threshold, plan.dilation = threshold, dilation
    return plan


def build_term(form: str, *strengths: float, blocks: tuple[float, float] = (0.0, 1.0)) -> Term:
    """Returns one form of amplification.

    Args:
        form: Name of the form, a key of FORMS.
        strengths: Strengths of the computed steps in order; the last also applies to all later steps.
        blocks: First and last (exclusive) amplified block, as shares of all blocks.
    """
    return Term(FORMS[form], strengths, blocks)


def build_variants() -> dict[str, dict[str, Variant]]:
    """Returns the tables: title → name → variant. The first variant of each is the reference for the rest."""
    probe = build_region()
    at = {k: Depth(s, probe) for k, s in SIGMAS.items()}
    at_half = {k: Depth(s, probe, build_amplification("contrast", 0.5)) for k, s in SIGMAS.items()}
    deepest, second = Depth(SIGMAS[3]), Depth(SIGMAS[2])
    bases: dict[int, dict[str, Variant]] = {k: {f"K1 = {k}, probe": at[k]} for k in SIGMAS}
    sources: dict[str, tuple[Where, plan_pb2.RegionPlan]] = {
        "lost and gained words": ("words", probe_region(0.3)),
        "lost and gained words, threshold 0.5": ("words", probe_region(0.5)),
        "gained words": ("gained", probe_region(0.3)),
        "probe and lost words": ("probe and lost", probe),
    }
    oracles: dict[str, Where] = {"oracle": "oracle", "oracle, own noise": "oracle, own noise"}
    tables: dict[str, dict[str, Variant]] = {}
    for k in (1, 2):
        tables[f"Region source, K1 = {k}"] = {
            **bases[k],
            f"K1 = {k}, full step": Depth(SIGMAS[k], build_region(plan_pb2.REGION_SOURCE_FULL_STEP)),
            f"K1 = {k}, lost words": Depth(SIGMAS[k], build_region(plan_pb2.REGION_SOURCE_ATTENTION)),
            **{
                f"K1 = {k}, {name}": Alternative(Depth(SIGMAS[k], plan), where)
                for name, (where, plan) in sources.items()
            },
        }
    for k in SIGMAS:
        tables[f"Oracle region, K1 = {k}"] = {
            **bases[k],
            f"K1 = {k}, no region": Depth(SIGMAS[k]),
            **{f"K1 = {k}, {name}": Alternative(at[k], where) for name, where in oracles.items()},
        }
    for k in SIGMAS:
        for name, depth in {f"K1 = {k}, probe": at[k], f"K1 = {k}, probe, contrast 0.5": at_half[k]}.items():
            tables[f"Region edge, {name}"] = {
                f"{name}, {edge} edge": Alternative(depth, blended=edge == "blended", seams=True)
                for edge in ("blended", "hard")
            }
    tables["Threshold and dilation, K1 = 2"] = {
        **bases[2],
        **{
            f"threshold {threshold:g}, dilation {dilation}": Depth(
                SIGMAS[2], probe_region(threshold, dilation)
            )
            for threshold in (0.01, 0.02, 0.05)
            for dilation in (0, 1, 2)
            if (threshold, dilation) != (0.02, 1)
        },
    }
    for k in (1, 2):
        tables[f"Stage 3, K1 = {k}"] = {
            **bases[k],
            f"K1 = {k}, probe, last step in full": Alternative(at[k], last_in_full=1),
            f"K1 = {k}, no region": Depth(SIGMAS[k]),
        }
    tables["Threshold and dilation, K1 = 1"] = {
        **bases[1],
        **{
            f"K1 = 1, threshold {threshold:g}, dilation {dilation}": Depth(
                SIGMAS[1], probe_region(threshold, dilation)
            )
            for threshold, dilation in ((0.01, 1), (0.02, 0), (0.02, 2), (0.05, 1))
        },
    }
    gates: dict[str, Gate] = {"probe": "probe", "lost words": "lost", "lost words, soft": "lost, soft"}
    tables["Amplification, K1 = 3, no region"] = {
        "K1 = 3, contrast 0.5": Depth(SIGMAS[3], None, build_amplification("contrast", 0.5)),
        "K1 = 3, not amplified": deepest,
        **{
            f"K1 = 3, contrast {w:g}": Alternative(deepest, terms=(build_term("contrast", w),))
            for w in (0.75, 1)
        },
        **{f"K1 = 3, {name}": Alternative(deepest, terms=terms) for name, terms in build_mixtures().items()},
        **{
            f"K1 = 3, contrast {w:g} gated by {name}": Alternative(
                deepest, terms=(build_term("contrast", w),), gate=gate
            )
            for name, gate in gates.items()
            for w in (0.5, 1)
        },
        **{
            f"K1 = 3, contrast {w:g}, ceiling {ceiling:g}": Alternative(
                deepest, terms=(build_term("contrast", w),), ceiling=ceiling
            )
            for w, ceiling in ((1, 0.25), (1, 0.5), (2, 0.5), (2, 1))
        },
    }
    schedules = {
        "contrast 0.5, first step alone": (0.5, 0.0),
        "contrast 0.5, last step alone": (0.0, 0.5),
        "contrast 1, first step alone": (1.0, 0.0),
        "contrast 1, last step alone": (0.0, 1.0),
        "contrast 0.75, then 0.25": (0.75, 0.25),
        "contrast 0.25, then 0.75": (0.25, 0.75),
        "contrast 1": (1.0,),
    }
    tables["Amplification, K1 = 2, region"] = {
        "K1 = 2, probe, contrast 0.5": at_half[2],
        **bases[2],
        **{
            f"K1 = 2, probe, {name}": Alternative(at[2], terms=(build_term("contrast", *strengths),))
            for name, strengths in schedules.items()
        },
        **{
            f"K1 = 2, probe, {name}": Alternative(at[2], terms=terms)
            for name, terms in build_mixtures().items()
        },
        "K1 = 2, probe, contrast 1, ceiling 0.5": Alternative(
            at[2], terms=(build_term("contrast", 1.0),), ceiling=0.5
        ),
    }
    tables["Amplification in full steps, K1 = 2"] = {
        "K1 = 2, contrast 0.5": Depth(SIGMAS[2], None, build_amplification("contrast", 0.5)),
        "K1 = 2, no region": second,
        **{
            f"K1 = 2, contrast 0.5 gated by {name}": Alternative(
                second, terms=(build_term("contrast", 0.5),), gate=gate
            )
            for name, gate in gates.items()
        },
    }
    return tables


def build_mixtures() -> dict[str, tuple[Term, ...]]:
    """Returns combinations of several forms, and single forms limited to some blocks."""
    parts = {"first third": (0.0, 1 / 3), "last half": (0.5, 1.0)}
    return {
        "contrast 0.5, bias 1": (build_term("contrast", 0.5), build_term("bias", 1.0)),
        "contrast 0.5, value gain 0.5": (build_term("contrast", 0.5), build_term("value gain", 0.5)),
        "contrast 0.25, value gain 1": (build_term("contrast", 0.25), build_term("value gain", 1.0)),
        **{
            f"contrast {w:g}, {name} of the blocks": (build_term("contrast", w, blocks=part),)
            for name, part in parts.items()
            for w in (0.5, 1.0)
        },
    }


def split_halves(completed: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Splits trials into one half for the choice and one for the report; `all` has both."""
    parts: list[list[Trial]] = [[], []]
    for number, trial in enumerate(completed):
        parts[number // BLOCK % 2].append(trial)
    return {"choose": parts[0], "report": parts[1], "all": list(completed)}


def build_gains(completed: Sequence[Trial], tables: Mapping[str, Mapping[str, Variant]]) -> dict[str, Figure]:
    """Compares every variant with the first of its table: alignment and drift in points, cost in steps."""
    figures: dict[str, Figure] = {}
    for title, (base, *names) in tables.items():
        for half, part in split_halves(completed).items():
            for kind in ("all", *(KINDS if half == "all" else ())):
                selected = [t.videos for t in part if kind in ("all", t.kind)]
                for name in names if selected else ():
                    pairs, key = [(v[name], v[base]) for v in selected], f"{title}.{name}.{half}.{kind}"
                    figures[f"{key}.alignment"] = results.paired([(a.right, b.right) for a, b in pairs])
                    if kind == "all":
                        figures[f"{key}.drift"] = results.paired([(a.followed, b.followed) for a, b in pairs])
                        artefacts = [100 * (a.artefact_share - b.artefact_share) for a, b in pairs]
                        figures[f"{key}.artefact"] = results.mean(artefacts, "points of the pixels")
                        more = [a.computed - b.computed for a, b in pairs]
                        figures[f"{key}.computed"] = results.mean(more, "steps")
    return figures


def build_edge_figures(
    completed: Sequence[Trial], tables: Mapping[str, Mapping[str, Variant]]
) -> dict[str, Figure]:
    """Measures the region's edge, over pairs in which every variant of the table has an edge."""
    figures: dict[str, Figure] = {}
    for title, (base, *others) in tables.items():
        selected = [
            t.videos for t in completed if all(t.videos[name].measurements for name in (base, *others))
        ]
        for mark, unit in EDGE_FIGURES.items() if selected else ():
            values = {name: [v[name].measurements[mark] for v in selected] for name in (base, *others)}
            figures |= {f"{name}.{mark}": results.mean(here, unit) for name, here in values.items()}
            for name in others:
                more = [a - b for a, b in zip(values[name], values[base], strict=True)]
                figures[f"{title}.{name}.{mark}_gain"] = results.mean(more, unit)
    return figures


def choose_best(names: Sequence[str], title: str, gains: Mapping[str, Figure]) -> str:
    """Chooses the best variant on the first half of the pairs, by alignment, then drift, then cost."""

    def rank(name: str) -> tuple[float, ...]:
        key = f"{title}.{name}.choose.all"
        return gains[f"{key}.alignment"].value, -gains[f"{key}.drift"].value, -gains[f"{key}.computed"].value

    return max(names, key=rank)


def format_gains(title: str, base: str, names: Sequence[str], gains: Mapping[str, Figure]) -> Iterator[str]:
    """Yields a Markdown table of every variant's gain over the first of its table, with 95 % intervals."""
    yield (
        f"Against *{base}*, paired: alignment and drift in points, artefacts in points of the pixels; bold:"
        " chosen on the first half.\n"
    )
    yield (
        "| | computed steps | first half | second half | all pairs | drift, all pairs | artefacts, all pairs"
        " | kinds that differ |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    chosen = choose_best(names, title, gains)
    for name in names:
        keys = [f"{title}.{name}.{half}.all" for half in ("choose", "report", "all")]
        cells = [_format(gains[f"{key}.alignment"]) for key in keys]
        cells += [_format(gains[f"{keys[-1]}.drift"]), _format(gains[f"{keys[-1]}.artefact"], "+.2f")]
        kinds = [(kind, gains.get(f"{title}.{name}.all.{kind}.alignment")) for kind in KINDS]
        significant = [f"{kind} {_format(gain)}" for kind, gain in kinds if gain and _excludes_zero(gain)]
        cells.append(", ".join(significant) or "–")
        cost = gains[f"{keys[-1]}.computed"].value
        yield f"| {f'**{name}**' if name == chosen else name} | {cost:+.2f} | {' | '.join(cells)} |"
    yield ""


def format_edge_figures(
    figures: Mapping[str, Figure], tables: Mapping[str, Mapping[str, Variant]]
) -> Iterator[str]:
    """Yields a Markdown table of the measurements of the region's edge."""
    yield "### Measurements of the region's edge\n"
    yield "| | pairs | jump across the edge, above that of full steps | error along the edge |"
    yield "|---|---|---|---|"
    for name in (name for names in tables.values() for name in names if f"{name}.jump" in figures):
        jump, error = figures[f"{name}.jump"], figures[f"{name}.edge_error"]
        yield f"| {name} | {jump.n} | {_format(jump, '+.4f')} | {_format(error, '.4f')} |"
    yield ""


def _excludes_zero(gain: Figure) -> bool:
    return gain.ci95 is not None and not gain.ci95[0] <= 0 <= gain.ci95[1]


def _format(figure: Figure, form: str = "+.1f") -> str:
    low, high = figure.ci95 or (figure.value, figure.value)
    return f"{figure.value:{form}} ({low:{form}} to {high:{form}})"


def main(
    pairs: Annotated[
        int, typer.Option(min=2 * BLOCK, help="Number of prompt pairs, cycling through all kinds.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first pair.")] = 6000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, of one thread each.")] = 1,
    only: Annotated[
        str,
        typer.Option(
            help="Words, separated by commas: only tables with one of them in the title are measured."
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(help="Name of the result file and of the page of tables.")
    ] = "alternatives",
) -> None:
    """Runs every variant on pairs of prompts and writes figures and tables."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    tables = {
        title: variants
        for title, variants in build_variants().items()
        if not words or any(word in title for word in words)
    }
    if not tables:
        raise typer.BadParameter(f"--only: no table's title contains one of {', '.join(words)}")
    by_name = {name: variant for variants in tables.values() for name, variant in variants.items()}
    groups = make_groups("calibration", pairs, seed, "unseen")
    completed = list(track(run_trials(groups, by_name, seed, processes), "generating", len(groups)))
    figures, gains = build_figures(completed, list(by_name)), build_gains(completed, tables)
    edges = build_edge_figures(completed, tables)
    command = f"python -m bench.alternatives {shlex.join(sys.argv[1:])}".strip()
    # The cost of a variant by kind is omitted: no table shows it, and the file is long enough.
    kept = {
        name: f
        for name, f in figures.items()
        if ".all." in name or not name.endswith(("computed_steps", "artefact_points"))
    }
    results.write(results.RESULTS / f"{name}.json", command, {**kept, **gains, **edges})
    lines = list(format_table(FULL_TITLE, [FULL], figures))
    for title, names in tables.items():
        base, *others = names
        lines += [*format_table(title, list(names), figures), *format_gains(title, base, others, gains)]
    lines += format_edge_figures(edges, tables)
    (DOCS / f"{name}-tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
