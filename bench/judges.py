"""Compares the judges of `chorus calibrate`: `python -m bench.judges` writes bench/results/judges.json.

The judge by the full computation serves every model; the analyzer reads only the shipped model's world. Here
both judge the same videos: the plain student of four steps, without its host adapter, on pairs of the
calibration split, over gRPC.
"""

from __future__ import annotations

import itertools
import re
import shlex
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_cli.output import Output
from rich.progress import track

from bench import results
from bench.results import Figure
from calibration.judges import Case, Judge, ReferenceJudge, WorldJudge
from calibration.measure import DONOR, FULL
from calibration.run import CalibrateOptions, open_bench
from evaluation.scenes import UNRELATED, make_groups
from services.denoiser.settings import SHIPPED_MODEL

MODEL_ID: Final = "shapes-plain"
_HOST: Final = re.compile(r"^\[host\]\n(?:.+\n)+\n", re.MULTILINE)


def write_plain_model(folder: Path) -> Path:
    """Writes a model file of the shipped student without its host adapter, and links its files."""
    text = SHIPPED_MODEL.read_text("utf-8").replace('id = "shapes"', f'id = "{MODEL_ID}"', 1)
    for name in ("weights", "lexicon.toml"):
        (folder / name).symlink_to(SHIPPED_MODEL.parent / name)
    model = folder / "model.toml"
    model.write_text(_HOST.sub("", text), "utf-8")
    return model


def build_figures(scores: dict[str, dict[str, list[float]]]) -> dict[str, Figure]:
    """Computes the mean alignment by judge and depth, and how far the judges agree.

    Args:
        scores: By judge and depth, the alignment of every pair.
    """
    figures = {
        f"{judge}_alignment_{depth.replace(' ', '_')}": results.mean(values, "share")
        for judge, by_depth in scores.items()
        for depth, values in by_depth.items()
    }
    judged = list(
        zip(*(itertools.chain(*scores[name].values()) for name in ("reference", "world")), strict=True)
    )
    right, wrong = ([given for given, shows in judged if bool(shows) == wanted] for wanted in (True, False))
    # Probability that of a right and a wrong video the reference judge gives the right one more.
    better = [1.0 if a > b else 0.5 * (a == b) for a in right for b in wrong]
    figures["right_above_wrong"] = results.single(statistics.mean(better), "share")
    reference, world = (
        [statistics.mean(values) for values in scores[name].values()] for name in ("reference", "world")
    )
    figures["correlation_of_depths"] = results.single(statistics.correlation(reference, world), "1")
    return figures


def main(
    pairs: Annotated[
        int, typer.Option(min=11, help="Number of prompt pairs, cycling through all kinds.")
    ] = 66,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first video.")] = 4000,
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "judges.json",
) -> None:
    """Judges the videos of every pair and depth with both judges, and writes the result file."""
    groups = [group for group in make_groups("calibration", pairs, seed, "unseen") if group.kind != UNRELATED]
    judges: dict[str, Judge] = {"reference": ReferenceJudge(), "world": WorldJudge()}
    scores: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in judges}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = CalibrateOptions(
            write_plain_model(folder), groups, tuple(judges.values()), seed, max_depths=4, spreads=0
        )
        Output(as_json=False).status(f"starting a temporary deployment of {options.model.name}")
        with open_bench(options, folder / "chorus", Output(as_json=False)) as bench:
            for number, group in enumerate(track(groups, "judging")):
                _, shown = bench.measure_pair(group, seed + number)
                case = Case(group.targets[0], group.donor, shown[FULL], shown[DONOR], shown[FULL])
                for depth in bench.depths:
                    for judge_name, judge in judges.items():
                        score = judge.judge(replace(case, shown=shown[depth]))
                        assert score is not None, "the analyzer reads every video of this world"
                        scores[judge_name][depth].append(score.alignment)
    figures = build_figures(scores)
    results.write(out, f"python -m bench.judges {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.3f} {figure.unit} {figure.ci95 or ''}")


if __name__ == "__main__":
    typer.run(main)
