"""What else a part could have been: `python -m bench.alternatives` writes docs/alternatives-tables.md.

Regions from other places, harder edges, other thresholds, other amplification, each against what the services
do, on pairs of prompts of the calibration split that neither the calibration nor `bench.ablation` has seen.
What is best is chosen on one half of the pairs and reported on the other. Writes
bench/results/alternatives.json besides. Takes about twenty-five minutes on one core.
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
from bench.ablation import DOCS, FORMS, SIGMAS, amplify, figures_of, region, table
from bench.in_process import FULL, Trial, Variant, trials
from bench.results import Figure
from bench.variants import Alternative, Gate, Term, Where
from evaluation.scenes import KINDS, make_groups
from services.scheduler.planning.calibration import Depth

# Pairs in turn: a block of every kind with one object and with two goes to one half, the next to the other.
BLOCK: Final = 2 * len(KINDS)
MARKS: Final = {"jump": "RGB, -1 to 1", "edge_error": "mean square of latents"}


def shaped(threshold: float, dilation: int = 1) -> plan_pb2.RegionPlan:
    made = region()
    made.threshold, made.dilation = threshold, dilation
    return made


def term(form: str, *strengths: float, blocks: tuple[float, float] = (0.0, 1.0)) -> Term:
    return Term(FORMS[form], strengths, blocks)


def variants() -> dict[str, dict[str, Variant]]:
    """Tables of variants by name; the first of each, with which the others are compared, is what exists."""
    probe = region()
    at = {k: Depth(s, probe) for k, s in SIGMAS.items()}
    at_half = {k: Depth(s, probe, amplify("contrast", 0.5)) for k, s in SIGMAS.items()}
    deepest, second = Depth(SIGMAS[3]), Depth(SIGMAS[2])
    bases: dict[int, dict[str, Variant]] = {k: {f"K1 = {k}, probe": at[k]} for k in SIGMAS}
    sources: dict[str, tuple[Where, plan_pb2.RegionPlan]] = {
        "lost and gained words": ("words", shaped(0.3)),
        "lost and gained words, threshold 0.5": ("words", shaped(0.5)),
        "gained words": ("gained", shaped(0.3)),
        "probe and lost words": ("probe and lost", probe),
    }
    oracles: dict[str, Where] = {"oracle": "oracle", "oracle, own noise": "oracle, own noise"}
    found: dict[str, dict[str, Variant]] = {}
    for k in (1, 2):
        found[f"Where the region comes from, K1 = {k}"] = {
            **bases[k],
            f"K1 = {k}, full step": Depth(SIGMAS[k], region(plan_pb2.REGION_SOURCE_FULL_STEP)),
            f"K1 = {k}, lost words": Depth(SIGMAS[k], region(plan_pb2.REGION_SOURCE_ATTENTION)),
            **{
                f"K1 = {k}, {name}": Alternative(Depth(SIGMAS[k], plan), where)
                for name, (where, plan) in sources.items()
            },
        }
    for k in SIGMAS:
        found[f"An oracle's region, K1 = {k}"] = {
            **bases[k],
            f"K1 = {k}, no region": Depth(SIGMAS[k]),
            **{f"K1 = {k}, {name}": Alternative(at[k], where) for name, where in oracles.items()},
        }
    for k in SIGMAS:
        for name, depth in {f"K1 = {k}, probe": at[k], f"K1 = {k}, probe, contrast 0.5": at_half[k]}.items():
            found[f"The region's edge, {name}"] = {
                f"{name}, {edge} edge": Alternative(depth, blended=edge == "blended", seams=True)
                for edge in ("blended", "hard")
            }
    found["Threshold and dilation, K1 = 2"] = {
        **bases[2],
        **{
            f"threshold {threshold:g}, dilation {dilation}": Depth(SIGMAS[2], shaped(threshold, dilation))
            for threshold in (0.01, 0.02, 0.05)
            for dilation in (0, 1, 2)
            if (threshold, dilation) != (0.02, 1)
        },
    }
    gates: dict[str, Gate] = {"probe": "probe", "lost words": "lost", "lost words, soft": "lost, soft"}
    found["Amplification, K1 = 3, no region"] = {
        "K1 = 3, contrast 0.5": Depth(SIGMAS[3], None, amplify("contrast", 0.5)),
        "K1 = 3, not amplified": deepest,
        **{f"K1 = 3, contrast {w:g}": Alternative(deepest, terms=(term("contrast", w),)) for w in (0.75, 1)},
        **{f"K1 = 3, {name}": Alternative(deepest, terms=terms) for name, terms in mixtures().items()},
        **{
            f"K1 = 3, contrast {w:g} gated by {name}": Alternative(
                deepest, terms=(term("contrast", w),), gate=gate
            )
            for name, gate in gates.items()
            for w in (0.5, 1)
        },
        **{
            f"K1 = 3, contrast {w:g}, ceiling {most:g}": Alternative(
                deepest, terms=(term("contrast", w),), ceiling=most
            )
            for w, most in ((1, 0.25), (1, 0.5), (2, 0.5), (2, 1))
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
    found["Amplification, K1 = 2, region"] = {
        "K1 = 2, probe, contrast 0.5": at_half[2],
        **bases[2],
        **{
            f"K1 = 2, probe, {name}": Alternative(at[2], terms=(term("contrast", *strengths),))
            for name, strengths in schedules.items()
        },
        **{f"K1 = 2, probe, {name}": Alternative(at[2], terms=terms) for name, terms in mixtures().items()},
        "K1 = 2, probe, contrast 1, ceiling 0.5": Alternative(
            at[2], terms=(term("contrast", 1.0),), ceiling=0.5
        ),
    }
    found["Amplification in full steps, K1 = 2"] = {
        "K1 = 2, contrast 0.5": Depth(SIGMAS[2], None, amplify("contrast", 0.5)),
        "K1 = 2, no region": second,
        **{
            f"K1 = 2, contrast 0.5 gated by {name}": Alternative(
                second, terms=(term("contrast", 0.5),), gate=gate
            )
            for name, gate in gates.items()
        },
    }
    return found


def mixtures() -> dict[str, tuple[Term, ...]]:
    """Several forms at once, and one form in some blocks."""
    parts = {"first third": (0.0, 1 / 3), "last half": (0.5, 1.0)}
    return {
        "contrast 0.5, bias 1": (term("contrast", 0.5), term("bias", 1.0)),
        "contrast 0.5, value gain 0.5": (term("contrast", 0.5), term("value gain", 0.5)),
        "contrast 0.25, value gain 1": (term("contrast", 0.25), term("value gain", 1.0)),
        **{
            f"contrast {w:g}, {name} of the blocks": (term("contrast", w, blocks=part),)
            for name, part in parts.items()
            for w in (0.5, 1.0)
        },
    }


def halves(found: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Pairs to choose on, pairs to report on, and all of them."""
    parts: list[list[Trial]] = [[], []]
    for number, trial in enumerate(found):
        parts[number // BLOCK % 2].append(trial)
    return {"choose": parts[0], "report": parts[1], "all": list(found)}


def gains_of(found: Sequence[Trial], tables: Mapping[str, Mapping[str, Variant]]) -> dict[str, Figure]:
    """Every variant against the first of its table: alignment and drift in points, and steps' worth."""
    figures: dict[str, Figure] = {}
    for title, (base, *names) in tables.items():
        for half, part in halves(found).items():
            for kind in ("all", *(KINDS if half == "all" else ())):
                those = [t.videos for t in part if kind in ("all", t.kind)]
                for name in names if those else ():
                    pairs, key = [(v[name], v[base]) for v in those], f"{title}.{name}.{half}.{kind}"
                    figures[f"{key}.alignment"] = results.paired([(a.right, b.right) for a, b in pairs])
                    if kind == "all":
                        figures[f"{key}.drift"] = results.paired([(a.followed, b.followed) for a, b in pairs])
                        more = [a.computed - b.computed for a, b in pairs]
                        figures[f"{key}.computed"] = results.mean(more, "steps")
    return figures


def marks_of(found: Sequence[Trial], tables: Mapping[str, Mapping[str, Variant]]) -> dict[str, Figure]:
    """What the region's edge looks like, of the pairs in which every variant of the table has one."""
    figures: dict[str, Figure] = {}
    for title, (base, *others) in tables.items():
        those = [t.videos for t in found if all(t.videos[name].marks for name in (base, *others))]
        for mark, unit in MARKS.items() if those else ():
            values = {name: [v[name].marks[mark] for v in those] for name in (base, *others)}
            figures |= {f"{name}.{mark}": results.mean(here, unit) for name, here in values.items()}
            for name in others:
                more = [a - b for a, b in zip(values[name], values[base], strict=True)]
                figures[f"{title}.{name}.{mark}_gain"] = results.mean(more, unit)
    return figures


def best(names: Sequence[str], title: str, gains: Mapping[str, Figure]) -> str:
    """What the first half of the pairs says is best: alignment, then drift, then cost."""

    def worth(name: str) -> tuple[float, ...]:
        key = f"{title}.{name}.choose.all"
        return gains[f"{key}.alignment"].value, -gains[f"{key}.drift"].value, -gains[f"{key}.computed"].value

    return max(names, key=worth)


def gains_table(title: str, base: str, names: Sequence[str], gains: Mapping[str, Figure]) -> Iterator[str]:
    """Markdown: what every variant gains over the table's first, with 95 % intervals."""
    yield f"Against *{base}*, paired, in points of alignment and drift; bold: chosen on the first half.\n"
    yield "| | steps' worth | first half | second half | all pairs | drift, all pairs | kinds that differ |"
    yield "|---|---|---|---|---|---|---|"
    chosen = best(names, title, gains)
    for name in names:
        keys = [f"{title}.{name}.{half}.all" for half in ("choose", "report", "all")]
        cells = [_shown(gains[f"{key}.alignment"]) for key in keys] + [_shown(gains[f"{keys[-1]}.drift"])]
        kinds = [(kind, gains.get(f"{title}.{name}.all.{kind}.alignment")) for kind in KINDS]
        apart = [f"{kind} {_shown(gain)}" for kind, gain in kinds if gain and _apart(gain)]
        cells.append(", ".join(apart) or "–")
        cost = gains[f"{keys[-1]}.computed"].value
        yield f"| {f'**{name}**' if name == chosen else name} | {cost:+.2f} | {' | '.join(cells)} |"
    yield ""


def marks_table(found: Mapping[str, Figure], tables: Mapping[str, Mapping[str, Variant]]) -> Iterator[str]:
    """Markdown: what the region's edge looks like."""
    yield "### What the region's edge looks like\n"
    yield "| | pairs | jump across it, above full steps' | error along it |"
    yield "|---|---|---|---|"
    for name in (name for names in tables.values() for name in names if f"{name}.jump" in found):
        jump, error = found[f"{name}.jump"], found[f"{name}.edge_error"]
        yield f"| {name} | {jump.n} | {_shown(jump, '+.4f')} | {_shown(error, '.4f')} |"
    yield ""


def _apart(gain: Figure) -> bool:
    return gain.ci95 is not None and not gain.ci95[0] <= 0 <= gain.ci95[1]


def _shown(figure: Figure, form: str = "+.1f") -> str:
    low, high = figure.ci95 or (figure.value, figure.value)
    return f"{figure.value:{form}} ({low:{form}} to {high:{form}})"


def main(
    pairs: Annotated[int, typer.Option(min=2 * BLOCK, help="Pairs of prompts, of every kind in turn.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 6000,
    processes: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    tables = variants()
    every = {name: variant for part in tables.values() for name, variant in part.items()}
    groups = make_groups("calibration", pairs, seed, "unseen")
    found = list(track(trials(groups, every, seed, processes), "generating", len(groups)))
    figures, gains, marks = figures_of(found, list(every)), gains_of(found, tables), marks_of(found, tables)
    command = f"python -m bench.alternatives {shlex.join(sys.argv[1:])}".strip()
    # What a variant costs kind by kind is in no table, and the file is long without it.
    kept = {name: f for name, f in figures.items() if ".all." in name or not name.endswith("computed_steps")}
    results.write(results.RESULTS / "alternatives.json", command, {**kept, **gains, **marks})
    lines = list(table("In full", [FULL], figures))
    for title, names in tables.items():
        base, *others = names
        lines += [*table(title, list(names), figures), *gains_table(title, base, others, gains)]
    lines += marks_table(marks, tables)
    (DOCS / "alternatives-tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
