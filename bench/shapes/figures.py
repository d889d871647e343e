"""Figures of the parts of the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from bench import parity, results, serving
from bench.results import Figure, median, single
from bench.shapes.cells import (
    FIRST_SEED,
    edit_cases,
    edit_cells,
    extra_cells,
    measure_cells,
    other_cases,
    other_cells,
    prompt_cases,
    prompt_cells,
    word_cells,
)
from bench.shapes.comparisons import compare_rivals, write_verdict
from bench.shapes.workers import Models, Workers
from models.shapes.edits import EDITS
from models.shapes.figures import (
    Cell,
    distance,
    distance_ratio,
    kept_share,
    mean_figure,
    right_ratio,
    right_share,
)
from models.shapes.generate import MODELS
from models.shapes.measure import Case, Measurement, embed_truth
from models.shapes.world import Split
from models.shapes.yardstick.classifier import frechet_distance
from models.shapes.yardstick.diversity import diversity_ratios, measure_variances, render_readings
from models.shapes.yardstick.reader import read

ATTRIBUTES: Final = ("colour", "background", "shape", "motion", "size", "count", "texture", "place")
SEEDS: Final = 16  # of the diversity
_NAMES: Final = {"colour": "color"}
_TIMED: Final = 20
Figures = dict[str, Figure]


def describe_cell(prefix: str, cell: Cell, truth: Tensor) -> Figures:
    """Returns the figures of every cell: alignment, artefacts, sharpness and distance."""
    return {
        f"{prefix}_alignment_all": right_share(cell),
        f"{prefix}_artefact_share": mean_figure([m.artefact_share for m in cell], "share"),
        f"{prefix}_artefact_videos": results.share(sum(m.has_artefact for m in cell), len(cell)),
        f"{prefix}_rims": mean_figure([m.rims for m in cell], "x"),
        f"{prefix}_distance": distance(cell, truth),
    }


def attribute_figures(prefix: str, cases: Sequence[Case], cell: Cell) -> Figures:
    """Returns the share of each attribute, of the prompts that name it."""
    figures = {}
    for field in ATTRIBUTES:
        named = [field != "place" or any(t.place for t in c.scene.things) for c in cases]
        figures[f"{prefix}_{_NAMES.get(field, field)}"] = right_share(cell, field, named)
    return figures


def prompt_figures(split: Split, count: int, workers: Workers) -> Figures:
    """Measures plain runs of the student in four to one step, and of its rivals."""
    cases = prompt_cases(split, count)
    columns = measure_cells("prompts", cases, prompt_cells, workers)
    full, truth = columns["steps_4"], embed_truth(cases, FIRST_SEED)
    figures = attribute_figures("alignment", cases, full)
    alone = [len(c.scene.things) == 1 for c in cases]
    figures["alignment_all_single"] = right_share(full, "all", alone)
    figures["alignment_all_two_objects"] = right_share(full, "all", [not a for a in alone])
    figures["artefact_share"] = mean_figure([m.artefact_share for m in full], "share")
    figures["distance_renders"] = _render_distance(cases, truth)
    for name, cell in columns.items():
        figures |= describe_cell(name, cell, truth)
        if name != "steps_4":
            figures[f"{name}_alignment_ratio"] = right_ratio(cell, full)
            figures[f"{name}_distance_ratio"] = distance_ratio(cell, full, truth)
    return figures


def _render_distance(cases: Sequence[Case], truth: Tensor) -> Figure:
    """Returns the distance of other renders of the same prompts: that of a perfect model at this n."""
    return Figure(frechet_distance(truth, embed_truth(cases, FIRST_SEED + 1)), "distance", len(cases))


def word_figures(split: Split, count: int, workers: Workers) -> Figures:
    """Measures prompts of held-out words; `alignment_heldout_words` is the lowest attribute."""
    cases = prompt_cases(split, count, unseen_words=True)
    cell = measure_cells("words", cases, word_cells, workers)["steps_4"]
    figures = attribute_figures("heldout_words", cases, cell)
    lowest = min(figures.values(), key=lambda f: f.value)
    return figures | {"alignment_heldout_words": lowest, "heldout_words_all": right_share(cell)}


def extra_figures(split: Split, count: int, workers: Workers) -> Figures:
    """Measures the teacher, and plain runs with the host switched on, against the student's four steps."""
    cases = prompt_cases(split, count)
    columns = measure_cells("extra", cases, extra_cells, workers)
    full, truth = columns.pop("steps_4"), embed_truth(cases, FIRST_SEED)
    figures: Figures = {}
    for name, cell in columns.items():
        figures |= describe_cell(name, cell, truth)
        figures[f"{name}_alignment_ratio"] = right_ratio(cell, full)
        figures[f"{name}_distance_ratio"] = distance_ratio(cell, full, truth)
    return figures


def edit_figures(split: Split, per_kind: int, workers: Workers) -> tuple[Figures, list[str]]:
    """Measures reuse over all kinds of single edits, opening edits also apart. Returns a verdict, too."""
    cases = edit_cases(split, per_kind)
    columns = measure_cells("edits", cases, edit_cells, workers)
    truth = embed_truth(cases, FIRST_SEED)
    groups: dict[str, list[int]] = {"": list(range(len(cases)))}
    groups["closed_"] = [i for i, c in enumerate(cases) if not c.opening]
    groups["opening_"] = [i for i, c in enumerate(cases) if c.opening]
    groups |= {f"{kind}_": [i for i, c in enumerate(cases) if c.kind == kind] for kind in EDITS}
    figures = reuse_figures(columns, groups, truth, ("", "closed_", "opening_"))
    compared = compare_rivals(columns, groups, truth)
    words = {"": "All single edits", "closed_": "Edits that open nothing", "opening_": "Opening edits"}
    verdict = write_verdict(compared, words)
    if "host_k3" in columns:
        verdict.append(_kinds_won(compared))
    return figures | compared, verdict


def _kinds_won(compared: Figures) -> str:
    """Returns a sentence about the kinds in which the host at K1 = 3 beats one step of the plain student."""
    better = [
        kind for kind in EDITS if compared[f"host_k3_vs_plain_one_step_{kind}_alignment_points"].value > 0
    ]
    return (
        f"The host at K1 = 3 shows all attributes more often than one step of the plain student in "
        f"{len(better)} of {len(EDITS)} kinds of edits: {', '.join(better) or 'none'}."
    )


def other_figures(split: Split, per_kind: int, workers: Workers) -> Figures:
    """Measures donors that differ by two edits, and unrelated ones."""
    cases = other_cases(split, per_kind)
    columns = measure_cells("other", cases, other_cells, workers)
    kinds = dict.fromkeys(c.kind for c in cases)
    groups = {f"{kind}_": [i for i, c in enumerate(cases) if c.kind == kind] for kind in kinds}
    return reuse_figures(columns, groups, embed_truth(cases, FIRST_SEED), ())


def reuse_figures(
    columns: dict[str, list[Measurement]],
    groups: dict[str, list[int]],
    truth: Tensor,
    described: Sequence[str],
) -> Figures:
    """Returns the figures of cells with donors, for groups of cases; those `described` have all figures."""
    figures: Figures = {}
    for name, column in columns.items():
        way, _, depth = name.rpartition("_")
        for group, chosen in groups.items():
            if not chosen:
                continue
            label = f"{way}_{group}{depth}" if depth.startswith("k") else f"{group}{name}"
            cell, own = ([c[i] for i in chosen] for c in (column, columns["own"]))
            figures[f"{label}_layout_kept"] = kept_share(cell)
            if name == "own":
                figures[f"{label}_alignment_all"] = right_share(cell)
                continue
            figures[f"{label}_alignment_ratio"] = right_ratio(cell, own)
            if group in described:
                figures[f"{label}_distance_ratio"] = distance_ratio(cell, own, truth[chosen])
                figures |= describe_cell(label, cell, truth[chosen])
                figures[f"{label}_donor_share"] = mean_figure([m.donor_share for m in cell], "share")
    return figures


def _spread(models: Models, item: tuple[int, Case]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the variances over seeds of a prompt's generated videos, and of renders of its scene."""
    number, case = item
    student = models["student"]
    runs = [student.run(case.states, SEEDS * number + s).latents[-1] for s in range(SEEDS)]
    generated = measure_variances([read(student.video(x)) for x in runs], case.scene)
    return generated, measure_variances(render_readings(case.scene, SEEDS, number), case.scene)


def diversity_figures(split: Split, prompts: int, workers: Workers) -> Figures:
    """Measures the spread of what prompts leave open, over SEEDS seeds each, over that of renders."""
    pairs = workers.map("diversity", _spread, list(enumerate(prompt_cases(split, prompts))))
    ratios = diversity_ratios([g for g, _ in pairs], [r for _, r in pairs])
    named = {"diversity_ratio": ratios.pop("mean")} | {f"diversity_{k}": v for k, v in ratios.items()}
    return {name: Figure(value, "x", SEEDS * prompts) for name, value in named.items()}


def speed_figures(split: Split) -> Figures:
    """Measures a denoiser process with the default model, the size of the weights, and parity."""
    states = [case.states.numpy() for case in prompt_cases(split, _TIMED)]
    load = serving.measure(states, 2)
    weights = (MODELS["student"].parent / "weights").glob("*.safetensors")
    return {
        "generate_seconds_p50": median(load.seconds, "s"),
        "denoiser_rss_mb": single(load.peak_rss_mb, "MB"),
        "weights_mb": single(sum(f.stat().st_size for f in weights) / 1e6, "MB"),
    } | parity.measure_figures()
