"""Quality and speed of the model of shapes: `python -m bench.shapes --split test` writes a result file.

Parts, each of which can be run alone (`--only`):

- prompts: four, three, two and one step of the student, and the students distilled for two and for one step;
- words: four steps for prompts whose every attribute is named by a held-out word;
- edits: reuse at K1 = 1, 2, 3 over all kinds of single edits, with and without the host adapter and contrast,
  and reruns of the donor's seed with the new prompt;
- diversity: several seeds of few prompts;
- speed: seconds and memory of a denoiser process, and the difference from the reference implementation.

Videos are generated in float32 as the denoiser does. Interrupted runs continue from build/.
"""

from __future__ import annotations

import hashlib
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, cast

import torch
import typer
from torch import Tensor

from bench import parity, results, serving
from bench.results import Figure, median, single
from models.shapes.captions import caption
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
from models.shapes.generate import MODELS, Generator, Run
from models.shapes.measure import (
    DONOR_SEED,
    Case,
    Measurement,
    draw_edited_scenes,
    embed_truth,
    evaluate,
)
from models.shapes.prompts import Prompts, draw_prompts, encode_prompts
from models.shapes.world import Split, parse_scene
from models.shapes.yardstick.classifier import SHA256
from models.shapes.yardstick.diversity import diversity_ratios, measure_variances, render_readings
from models.shapes.yardstick.reader import read
from services.denoiser.model.loaded import LoadedModel

FIRST_SEED: Final = 90_000
CACHE: Final = results.ROOT / "build" / "shapes" / "bench"
ATTRIBUTES: Final = ("colour", "background", "shape", "motion", "size", "count", "texture", "place")
_NAMES: Final = {"colour": "color"}
_TIMED: Final = 20
Figures = dict[str, Figure]
Generate = Callable[[Case, Run | None], Tensor]


def states_of(prompts: Prompts, i: int) -> Tensor:
    """Returns the token states [L, D] of a prompt."""
    return prompts.states[prompts.offsets[i] : prompts.offsets[i + 1]].float()


def prompt_cases(split: Split, count: int, unseen_words: bool = False) -> list[Case]:
    """Draws prompts that name every attribute, half of them with two objects, in unseen phrasings."""
    prompts = draw_prompts(split, count, FIRST_SEED, "unseen", unseen_words)
    return [Case(parse_scene(prompts.table[i]), states_of(prompts, i), FIRST_SEED + i) for i in range(count)]


def edit_cases(split: Split, per_kind: int) -> list[Case]:
    """Draws pairs of prompts that differ by one edit, `per_kind` of each kind."""
    pairs = draw_edited_scenes(split, per_kind, FIRST_SEED)
    rng = random.Random(FIRST_SEED)
    donors, targets = (
        encode_prompts(scenes, [caption(s, rng, "unseen") for s in scenes])
        for scenes in ([donor for _, donor, _ in pairs], [target for _, _, target in pairs])
    )
    return [
        Case(target, states_of(targets, i), FIRST_SEED + i, kind, donor, states_of(donors, i))
        for i, (kind, donor, target) in enumerate(pairs)
    ]


def plain(generator: Generator, steps: int | None = None, donor_seed: bool = False) -> Generate:
    """Returns the cell of plain runs, from a case's own seed or from its donor's."""
    offset = DONOR_SEED if donor_seed else 0
    return lambda case, _: generator.run(case.states, case.seed + offset, steps).latents[-1]


def reused(generator: Generator, level: int, host: bool, contrast: float = 0.0) -> Generate:
    """Returns the cell of runs that continue from the donor's latents at a level."""

    def generate(case: Case, donor: Run | None) -> Tensor:
        assert donor is not None
        return generator.reuse(donor, case.states, level, host, contrast)

    return generate


def measure_cells(
    name: str, cases: Sequence[Case], cells: dict[str, Generate], models: dict[str, Generator], split: Split
) -> dict[str, list[Measurement]]:
    """Measures all cells, and prints the progress."""
    columns: dict[str, list[Measurement]] = {cell: [] for cell in cells}
    cache = CACHE / f"{split}-{name}-{digest(models, cases)}"
    for i, row in enumerate(evaluate(cases, cells, models["student"], cache)):
        for cell, measurement in row.items():
            columns[cell].append(measurement)
        if (i + 1) % 50 == 0:
            print(f"{name}: {i + 1} of {len(cases)}", flush=True)
    return columns


def digest(models: dict[str, Generator], cases: Sequence[Case]) -> str:
    """Returns a name for these weights and prompts, under which their measurements are kept."""
    parts = [SHA256, *(f"{case.seed} {case.donor_scene} {case.scene}" for case in cases)]
    for name, generator in sorted(models.items()):
        host = generator.model.host
        parts += [name, generator.model.weights_digest, host.weights_digest if host else ""]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def describe_cell(prefix: str, cell: Cell, truth: Tensor) -> Figures:
    """Returns what every cell reports: alignment, artefacts, sharpness and distance."""
    return {
        f"{prefix}_alignment_all": right_share(cell),
        f"{prefix}_artefact_share": mean_figure([m.artefact_share for m in cell], "share"),
        f"{prefix}_artefact_videos": results.share(sum(m.has_artefact for m in cell), len(cell)),
        f"{prefix}_rims": mean_figure([m.rims for m in cell], "x"),
        f"{prefix}_distance": distance(cell, truth),
    }


def prompt_figures(split: Split, count: int, models: dict[str, Generator]) -> Figures:
    """Measures plain runs."""
    student = models["student"]
    cases = prompt_cases(split, count)
    cells = {"steps_4": plain(student)} | {f"steps_{n}": plain(student, n) for n in (3, 2, 1)}
    rivals = {"two_step_student": "student-2", "one_step_student": "student-1", "teacher": "teacher"}
    cells |= {cell: plain(models[model]) for cell, model in rivals.items() if model in models}
    columns = measure_cells("prompts", cases, cells, models, split)
    full, truth = columns["steps_4"], embed_truth(cases, FIRST_SEED)
    figures: Figures = {}
    for field in ATTRIBUTES:
        named = [field != "place" or any(t.place for t in c.scene.things) for c in cases]
        figures[f"alignment_{_NAMES.get(field, field)}"] = right_share(full, field, named)
    alone = [len(c.scene.things) == 1 for c in cases]
    figures["alignment_all_single"] = right_share(full, "all", alone)
    figures["alignment_all_two_objects"] = right_share(full, "all", [not a for a in alone])
    figures["artefact_share"] = mean_figure([m.artefact_share for m in full], "share")
    for name, cell in columns.items():
        figures |= describe_cell(name, cell, truth)
        if name != "steps_4":
            figures[f"{name}_alignment_ratio"] = right_ratio(cell, full)
            figures[f"{name}_distance_ratio"] = distance_ratio(cell, full, truth)
    return figures


def word_figures(split: Split, count: int, models: dict[str, Generator]) -> Figures:
    """Measures prompts of held-out words; `alignment_heldout_words` is the lowest attribute."""
    cases = prompt_cases(split, count, unseen_words=True)
    cell = measure_cells("words", cases, {"steps_4": plain(models["student"])}, models, split)
    figures = {}
    for field in ATTRIBUTES:
        named = [field != "place" or any(t.place for t in c.scene.things) for c in cases]
        figures[f"heldout_words_{_NAMES.get(field, field)}"] = right_share(cell["steps_4"], field, named)
    lowest = min(figures.values(), key=lambda f: f.value)
    return figures | {"alignment_heldout_words": lowest, "heldout_words_all": right_share(cell["steps_4"])}


def edit_figures(split: Split, per_kind: int, models: dict[str, Generator]) -> Figures:
    """Measures reuse over all kinds of single edits; opening edits are also reported apart."""
    student = models["student"]
    cases = edit_cases(split, per_kind)
    cells: dict[str, Generate] = {"own": plain(student), "rerun": plain(student, donor_seed=True)}
    for name, model in (("rerun_two_step", "student-2"), ("rerun_one_step", "student-1")):
        if model in models:
            cells[name] = plain(models[model], donor_seed=True)
    ways = [("base", False, 0.0), ("base_contrast", False, 0.5)]
    if student.model.host is not None:
        ways = [("host", True, 0.0), ("host_contrast", True, 0.5), *ways]
    if "host-full" in models:
        ways.append(("host_full", False, 0.0))
    for way, host, contrast in ways:
        source = models["host-full"] if way == "host_full" else student
        cells |= {f"{way}_k{k}": reused(source, k, host, contrast) for k in (1, 2, 3)}
    columns = measure_cells("edits", cases, cells, models, split)
    truth = embed_truth(cases, FIRST_SEED)
    groups: dict[str, list[int]] = {"": list(range(len(cases)))}
    groups["closed_"] = [i for i, c in enumerate(cases) if not c.opening]
    groups["opening_"] = [i for i, c in enumerate(cases) if c.opening]
    groups |= {f"{kind}_": [i for i, c in enumerate(cases) if c.kind == kind] for kind in EDITS}
    figures: Figures = {}
    for name, column in columns.items():
        way, _, depth = name.rpartition("_")
        for group, chosen in groups.items():
            label = f"{way}_{group}{depth}" if depth.startswith("k") else f"{group}{name}"
            cell, own = ([c[i] for i in chosen] for c in (column, columns["own"]))
            figures[f"{label}_layout_kept"] = kept_share(cell)
            if name == "own":
                figures[f"{label}_alignment_all"] = right_share(cell)
                continue
            figures[f"{label}_alignment_ratio"] = right_ratio(cell, own)
            if group in ("", "closed_", "opening_"):
                figures[f"{label}_distance_ratio"] = distance_ratio(cell, own, truth[chosen])
                figures |= describe_cell(label, cell, truth[chosen])
                figures[f"{label}_donor_share"] = mean_figure([m.donor_share for m in cell], "share")
    return figures


def diversity_figures(split: Split, prompts: int, models: dict[str, Generator]) -> Figures:
    """Measures the spread of what prompts leave open, over 16 seeds each, over that of renders."""
    generated, rendered = [], []
    student = models["student"]
    for number, case in enumerate(prompt_cases(split, prompts)):
        runs = [student.run(case.states, 1000 * number + s).latents[-1] for s in range(16)]
        generated.append(measure_variances([read(student.video(x)) for x in runs], case.scene))
        rendered.append(measure_variances(render_readings(case.scene, 16, number), case.scene))
    ratios = diversity_ratios(generated, rendered)
    named = {"diversity_ratio": ratios.pop("mean")} | {f"diversity_{k}": v for k, v in ratios.items()}
    return {name: Figure(value, "x", 16 * prompts) for name, value in named.items()}


def speed_figures(split: Split, models: dict[str, Generator]) -> Figures:
    """Measures a denoiser process, the size of the weights, and parity."""
    states = [case.states.numpy() for case in prompt_cases(split, _TIMED)]
    load = serving.measure(states, 2)
    weights = (MODELS["student"].parent / "weights").glob("*.safetensors")
    return {
        "generate_seconds_p50": median(load.seconds, "s"),
        "denoiser_rss_mb": single(load.peak_rss_mb, "MB"),
        "weights_mb": single(sum(f.stat().st_size for f in weights) / 1e6, "MB"),
    } | parity.measure_figures()


def find_models(folder: Path) -> dict[str, Path]:
    """Returns the model files of a folder, by the name of the network."""
    return {name: folder / path.name for name, path in MODELS.items() if (folder / path.name).exists()}


PARTS: Final = ("prompts", "words", "edits", "diversity", "speed")


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "shapes.json",
    split: Annotated[str, typer.Option(help="test (final reports only) or calibration.")] = "calibration",
    count: Annotated[int, typer.Option(help="Number of prompts, half of them with two objects.")] = 500,
    per_kind: Annotated[int, typer.Option(help="Number of pairs of prompts for each kind of edit.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="Parts to run; all by default.")] = None,
    host_full: Annotated[Path | None, typer.Option(help="Model file of a fully trained host.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the model files.")] = MODELS["student"].parent,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.")] = 2,
) -> None:
    """Measures the model and writes the figures of the chosen parts into the result file."""
    if split not in ("test", "calibration"):
        raise typer.BadParameter(f"split: must be test or calibration, not {split}")
    if wrong := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"only: must be among {', '.join(PARTS)}, not {', '.join(sorted(wrong))}")
    chosen = cast(Split, split)
    torch.set_num_threads(threads)
    files = {k: v for k, v in find_models(folder).items() if k in ("student", "student-2", "student-1")}
    files |= {} if host_full is None else {"host-full": host_full}
    if "student" not in files:
        raise typer.BadParameter(f"folder: {folder} has no {MODELS['student'].name}")
    for name in ("student-2", "student-1"):
        if name not in files and "prompts" in (only or PARTS):
            print(f"{name}: {folder / MODELS[name].name} is missing; its figures are left out", flush=True)
    models = {name: Generator(LoadedModel.load(path)) for name, path in files.items()}
    parts: dict[str, Callable[[], Figures]] = {
        "prompts": lambda: prompt_figures(chosen, count, models),
        "words": lambda: word_figures(chosen, count, models),
        "edits": lambda: edit_figures(chosen, per_kind, models),
        "diversity": lambda: diversity_figures(chosen, 16, models),
        "speed": lambda: speed_figures(chosen, models),
    }
    figures: dict[str, Figure] = {}
    for name in only or PARTS:
        figures |= parts[name]()
    kept = results.read(out)["figures"] if only and out.exists() else {}
    results.write(out, f"python -m bench.shapes {shlex.join(sys.argv[1:])}".strip(), kept | figures)
    for label, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{label}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


if __name__ == "__main__":
    typer.run(main)
