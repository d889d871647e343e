"""Main figures of the project, on prompts not used for tuning: `python -m bench.chorus`.

Runs `chorus eval` on the whole stack over gRPC, on the split `test`: every policy, the baselines, fewer steps
without a cache, and students distilled for two steps and for one, on the same prompts in the same run, with
all overheads included. It also measures exact repeats (`bench.repeats`), the spread over seeds
(`bench.diversity`) and, in its own processes, the cost of a step on 30 % of the tokens, the cost of side
data, false reuse, the gain of amplification at the deepest reuse, that of donors of the same seed
(`bench.seed_gain`), and caches within a request (`bench.cache_dit`, if cache-dit is installed). Writes
bench/results/chorus.json, docs/images/eval.png, and all measurements into --folder. Takes about 80 minutes on
two cores with the default numbers.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import torch
import typer
from chorus_cli.local.model_files import MODELS
from chorus_cli.output import Output
from chorus_rpc.tenancy import DEFAULT_TENANT
from rich.progress import track

from bench import cache_dit, results
from bench.ablation import build_amplification
from bench.diversity import measure_diversity
from bench.in_process import Harness, Variant, run_trials
from bench.languages import LANGUAGES
from bench.repeats import measure_repeats
from bench.results import Figure
from bench.seed_gain import measure_seed_gain
from evaluation import run as evaluation
from evaluation.methods import build_methods
from evaluation.scenes import KINDS, SINGLE_EDITS, UNRELATED, make_groups
from services.contract.edits import EditKind
from services.denoiser.model.spec import load_spec
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.side_data import SideData, pack_side_data, pool_maps
from services.denoiser.settings import SHIPPED_MODEL
from services.scheduler.planning.calibration import Policy
from services.scheduler.planning.calibration_files import load_shipped

MODEL: Final = load_spec(SHIPPED_MODEL)
POLICIES: Final[tuple[Policy, ...]] = ("safe", "balanced", "fast")
BASELINES: Final = ("nirvana", "threshold", "modm")
FEWER: Final = (3, 2, 1)
# Students distilled for fewer steps, by name of the method: their model files. The shipped model is served
# beside them.
STUDENTS: Final = {f"student_{n}": SHIPPED_MODEL.with_name(f"student-{n}.toml") for n in (2, 1)}
# Methods of `bench.cache_dit` that are measured, by the prefix of their figures.
IN_REQUEST: Final = {
    "cache_dit_threshold": "threshold 0.24",
    "cache_dit_steps_1_3_4": "steps 1, 3, 4",
    "reuse_1": "reuse of 1 step",
    "reuse_1_cache_dit": "reuse of 1 step, then steps 1, 3",
    "reuse_2": "reuse of 2 steps",
    "reuse_2_cache_dit": "reuse of 2 steps, then step 1",
    "reuse_3": "reuse of 3 steps",
}
# Amplification of a depth that was calibrated without any.
CONTRAST: Final = build_amplification("contrast", 0.5)
EQUAL: Final = "steps_2"  # rival of equal computation
REGION_SHARE: Final = 0.3  # share of the tokens in the measured region step
# Figures of the methods that the policies are compared with.
_COMPARED_FIGURES: Final = (
    "single_edit_hit_share",
    "single_edit_speedup_p50",
    "single_edit_alignment_ratio",
    "single_edit_drift_points",
    "single_edit_layout_kept",
    "speedup_p50",
    "alignment_all",
    "artefact_rate",
    "sharpness",
    "distance",
    "distance_excess",
)


def run_evaluation(folder: Path, pairs: int, seed: int, rivals: bool) -> dict[str, Any]:
    """Runs `chorus eval` and returns the figures of its result file.

    Args:
        rivals: Whether to measure all rivals; else only those that compute about as much as a hit.
    """
    students = {name: load_spec(file).id for name, file in STUDENTS.items()} if rivals else {}
    options = evaluation.EvalOptions(
        target=None,
        cache_target=None,
        tenant=DEFAULT_TENANT,
        groups=make_groups("test", pairs, seed, "unseen"),
        methods=build_methods(POLICIES, {}, BASELINES if rivals else (), FEWER if rivals else (2,), students),
        seed=seed,
        model=None,
        token_pixels=4,
        target_seed="mixed",
        settings={MODELS: ",".join(map(str, (SHIPPED_MODEL, *STUDENTS.values())))},
    )
    evaluation.run_evaluation(options, folder, Output(as_json=False))
    figures: dict[str, Any] = results.read(folder / evaluation.FIGURES)["figures"]
    return figures


def select_headlines(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the figures that the project is judged by, and gives them short names."""
    headlines = {}
    for policy in POLICIES:
        for name, figure in (
            ("hit_speedup", "single_edit_speedup_p50"),
            ("all_pairs_speedup", "whole_set_speedup"),
            ("alignment_ratio", "single_edit_alignment_ratio"),
            ("drift_points", "single_edit_drift_points"),
            ("hit_share", "single_edit_hit_share"),
            ("layout_kept", "single_edit_layout_kept"),
            ("artefact_ratio", "single_edit_artefact_ratio"),
            ("overhead_ms", "single_edit_overhead_ms_p50"),
        ):
            # Requests that keep the donor's seed, and those that ask for another video.
            for prefix, seeds in (("", "seed_kept"), ("other_seed_", "seed_other")):
                if (key := f"{policy}.{seeds}.{figure}") in measured:
                    headlines[f"{policy}_{prefix}{name}"] = measured[key]
        if f"{policy}.distance_excess" in measured:
            headlines[f"{policy}_distance_excess"] = measured[f"{policy}.distance_excess"]
            headlines[f"{policy}_distance_ratio"] = _compute_distance_ratio(measured, policy)
    for method in (*BASELINES, *(f"steps_{steps}" for steps in FEWER), *STUDENTS, "full"):
        for figure in _COMPARED_FIGURES:
            if f"{method}.{figure}" in measured:
                headlines[f"{method}_{figure}"] = measured[f"{method}.{figure}"]
    # Two steps without a cache take as long as hits of `balanced` and `fast`.
    for policy in ("balanced", "fast"):
        for name in ("alignment", "artefact", "layout"):
            if (key := f"versus.{policy}.{EQUAL}.{name}_points") in measured:
                gain = headlines[f"{policy}_equal_compute_{name}_gain_points"] = measured[key]
                if name == "alignment" and policy == "balanced":
                    headlines["equal_compute_alignment_gain_points"] = gain
                    low = Figure(gain["ci95"][0], gain["unit"], gain["n"])
                    headlines["equal_compute_alignment_gain_low"] = low
    for student in STUDENTS:
        for name in ("speedup", "alignment_points", "artefact_points", "layout_points"):
            if (key := f"versus.balanced.{student}.{name}") in measured:
                headlines[f"balanced_over_{student}_{name}"] = measured[key]
    if f"versus.balanced.{EQUAL}.distance" in measured:
        headlines["equal_compute_distance_ratio"] = _compute_rival_ratio(measured)
    headlines["false_reuse_rate_served"] = measured["balanced.false_reuse_rate"]
    if "balanced.seed_kept.single_edit_overhead_ms_p50" in measured:
        headlines["hit_overhead_ms"] = measured["balanced.seed_kept.single_edit_overhead_ms_p50"]
    return headlines


def _compute_distance_ratio(measured: Mapping[str, Any], policy: str) -> Figure:
    """Returns a policy's distance to renders divided by the full computation's, both above that of renders.

    The excess is over the same requests; the full computation's distance and that of renders over all.
    """
    excess = measured[f"{policy}.distance_excess"]
    scale = measured["full.distance"]["value"] - measured["renders.distance"]["value"]
    low, high = (1 + bound / scale for bound in excess["ci95"])
    return Figure(1 + excess["value"] / scale, "of full", excess["n"], (low, high))


def _compute_rival_ratio(measured: Mapping[str, Any]) -> Figure:
    """Returns the distance of `balanced` to renders divided by that of two steps, above that of renders.

    There is no interval if that of two steps may be as small as the distance between renders.
    """
    difference = measured[f"versus.balanced.{EQUAL}.distance"]
    own = measured["balanced.distance"]["value"] - measured["renders.distance"]["value"]
    low, high = (own + bound for bound in difference["ci95"])
    interval = (own / high, own / low) if low > 0 else None
    return Figure(own / (own + difference["value"]), "of two steps", difference["n"], interval)


def group_by_kind(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures by kind of edit, nested: method → kind → name of the figure."""
    nested: dict[str, Any] = {}
    for key, figure in measured.items():
        method, *rest = key.split(".")
        if len(rest) == 2:
            nested.setdefault(method, {}).setdefault(rest[0], {})[rest[1]] = figure
    return nested


def measure_step_costs(harness: Harness, repeats: int = 40) -> dict[str, Figure]:
    """Measures the costs of a step on part of the tokens and of recording side data, in full steps."""
    torch.set_num_threads(2)
    encoded = harness.encoder.encode(["a small red circle moving left on a navy background"])[0]
    text = harness.model.prepare_text(encoded.states)
    tokens = harness.model.to_tokens(harness.model.noise(0, harness.shape))
    part = torch.randperm(len(tokens))[: round(REGION_SHARE * len(tokens))].sort().values

    def step(index: torch.Tensor | None = None, on_attention: Any = None) -> None:
        harness.predictor.velocity(tokens, 0.9, text, harness.shape, index, on_attention)

    actions: dict[str, Callable[[], None]] = {
        "full": step,
        "part": lambda: step(part),
        "recorded": lambda: step(on_attention=AttentionMaps(len(encoded.tokens)).observe),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 2):  # alternating, so that a change of the machine's speed affects all alike
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            taken[name].append(time.perf_counter() - begin)
    full, region, recorded = (values[2:] for values in taken.values())
    seen = AttentionMaps(len(encoded.tokens))
    step(on_attention=seen.observe)
    maps = seen.maps()
    assert maps is not None
    latents = 4 * harness.model.noise(0, harness.shape).nbytes
    pooled = pool_maps(maps, harness.grid, latents // 10)
    assert pooled is not None
    side = len(pack_side_data(SideData(pooled, torch.as_tensor(encoded.states).half())))
    return {
        "region_step_cost_30": results.median(
            [r / f for r, f in zip(region, full, strict=True)], "of a full step"
        ),
        "side_data_step_cost": results.median(
            [r / f - 1 for r, f in zip(recorded, full, strict=True)], "of a full step"
        ),
        "side_data_ratio": results.single(side / latents, "of the latents' bytes"),
    }


def measure_false_reuse(harness: Harness, pairs: int, seed: int) -> dict[str, Figure]:
    """Computes the share of unrelated pairs that any policy would reuse. Builds only plans.

    The pairs are described in English, and in languages that the lexicon does not know.
    """
    calibration = load_shipped(MODEL.id)
    assert calibration is not None

    def is_reused(donor: str, target: str) -> bool:
        edit = harness.find_edit(donor, harness.encoder.encode([target])[0], target)
        return any(calibration.allowed(edit.kind, policy) for policy in POLICIES)

    groups = [g for g in make_groups("test", pairs * len(KINDS), seed, "unseen") if g.kind == UNRELATED]
    english = [(group.donor.prompt, group.targets[0].prompt) for group in groups]
    foreign = [
        (language.caption(donor), language.caption(target))
        for language in LANGUAGES.values()
        for group in groups[: max(1, pairs // len(LANGUAGES))]
        if (donor := group.donor.scene) and (target := group.targets[0].scene)
    ]
    return {
        name: results.share(sum(is_reused(*pair) for pair in track(found, "unrelated prompts")), len(found))
        for name, found in (("false_reuse_rate", english), ("false_reuse_rate_other_languages", foreign))
    }


def measure_amplification_gain(pairs: int, seed: int, processes: int) -> dict[str, Figure]:
    """Measures how much alignment amplification adds at the deepest reuse that `fast` allows each kind.

    A depth that was calibrated without amplification is amplified by contrast.
    """
    calibration = load_shipped(MODEL.id)
    assert calibration is not None
    deepest = {
        edit: min(rows, key=lambda row: row.computed_steps(MODEL.schedule.sigmas)).depth
        for edit in get_args(EditKind)
        if (rows := calibration.allowed(edit, "fast"))
    }
    depths = list(dict.fromkeys(map(repr, deepest.values())))  # several kinds share a depth
    numbers = {edit: depths.index(repr(depth)) for edit, depth in deepest.items()}
    plans: dict[str, Variant] = {}
    for edit, depth in deepest.items():
        plans[f"{numbers[edit]} on"] = replace(depth, amplification=depth.amplification or CONTRAST)
        plans[f"{numbers[edit]} off"] = replace(depth, amplification=None)
    groups = [g for g in make_groups("test", pairs, seed, "unseen") if g.kind in SINGLE_EDITS]
    if not deepest:
        return {}
    completed = list(track(run_trials(groups, plans, seed, processes), "amplification", len(groups)))
    figures, gains = {}, []
    for kind in SINGLE_EDITS:
        points = [
            100.0 * (t.videos[f"{numbers[t.edit]} on"].right - t.videos[f"{numbers[t.edit]} off"].right)
            for t in completed
            if t.kind == kind and t.edit in deepest
        ]
        gains += points
        if points:
            figures[f"tgaa_gain_points_{kind}"] = results.mean(points, "percentage points")
    if gains:
        figures["tgaa_gain_points"] = results.mean(gains, "percentage points")
    return figures


def measure_in_request(pairs: int, seed: int) -> dict[str, Figure]:
    """Measures caches within a request, alone and after reuse. Returns no figure if cache-dit is missing."""
    wanted = set(IN_REQUEST.values())
    try:
        harness = cache_dit.Harness({k: s for k, s in cache_dit.SETTINGS.items() if k in wanted})
    except ImportError:
        print("cache-dit is not measured: pip install -e ./client -e '.[rivals]'")
        return {}
    groups = [group for group in make_groups("test", pairs, seed, "unseen") if group.kind in SINGLE_EDITS]
    harness.measure_difference(groups[0].targets[0].prompt, seed)  # warms up
    found = cache_dit.build_figures(cache_dit.run_trials(harness, groups, seed))
    return {
        f"in_request_{prefix}_{name}": found[f"{method}.{name}"]
        for prefix, method in {**IN_REQUEST, "plain": cache_dit.PLAIN}.items()
        for name in ("speedup", "alignment")
    }


def main(
    pairs: Annotated[int, typer.Option(min=10, help="Number of prompt pairs over gRPC.")] = 400,
    amplified: Annotated[
        int, typer.Option(min=10, help="Number of prompt pairs for the gain of amplification.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first video.")] = 9000,
    unrelated: Annotated[
        int, typer.Option(min=10, help="Number of unrelated pairs that are planned, not generated.")
    ] = 1000,
    seeded: Annotated[
        int, typer.Option(min=10, help="Number of prompt pairs for donors of the same and of another seed.")
    ] = 110,
    repeated: Annotated[int, typer.Option(min=5, help="Number of prompts that are repeated.")] = 22,
    spread: Annotated[
        int, typer.Option(min=10, help="Number of prompt pairs for the spread over seeds.")
    ] = 33,
    in_request: Annotated[
        int, typer.Option(min=10, help="Number of prompt pairs for caches within a request.")
    ] = 44,
    folder: Annotated[Path, typer.Option(help="Output folder of `chorus eval`.")] = Path("out/chorus"),
    measured_before: Annotated[
        bool,
        typer.Option(
            "--measured-before",
            help="Read the figures of an earlier `chorus eval` from --folder; measure only the rest.",
        ),
    ] = False,
    policies_only: Annotated[
        bool,
        typer.Option(
            "--policies-only",
            help="Measure only the policies and two steps without a cache; write policies.json.",
        ),
    ] = False,
) -> None:
    """Measures the main figures and writes result file and plot."""
    if measured_before:
        measured: dict[str, Any] = results.read(folder / evaluation.FIGURES)["figures"]
    else:
        measured = run_evaluation(folder, pairs, seed, rivals=not policies_only)
    if policies_only:
        write_results(folder, "policies", measured, select_headlines(measured))
        return
    shutil.copy(folder / evaluation.PLOT, results.ROOT / "docs" / "images" / "eval.png")
    harness = Harness()
    in_process = measure_step_costs(harness) | measure_false_reuse(harness, unrelated, seed + 2)
    in_process |= measure_amplification_gain(amplified, seed + 1, 2)
    in_process |= measure_seed_gain(seeded, seed + 3, 2)
    in_process |= measure_in_request(in_request, seed)
    in_process |= measure_diversity(folder / "seeds", spread, seed + 5, POLICIES)
    in_process |= measure_repeats(folder / "repeats", repeated, seed + 4)
    write_results(folder, "chorus", measured, {**select_headlines(measured), **in_process})


def write_results(folder: Path, name: str, measured: Mapping[str, Any], figures: dict[str, Any]) -> None:
    """Writes and prints a result file."""
    command = f"python -m bench.chorus {shlex.join(sys.argv[1:])}".strip()
    out = results.RESULTS / f"{name}.json"
    verdict = results.read(folder / evaluation.FIGURES).get("verdict", [])
    results.write(out, command, figures, by_kind=group_by_kind(measured), verdict=verdict)
    print(*verdict, sep="\n")
    for name, figure in results.read(out)["figures"].items():
        print(name, figure["value"], figure["unit"], figure["ci95"], f"n = {figure['n']}")


if __name__ == "__main__":
    typer.run(main)
