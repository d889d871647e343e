"""Cost of the pictures of steps: `python -m bench.step_previews` writes bench/results/step_previews.json.

Every prompt is computed in full twice in direct succession on services of its own, with pictures and without.
The order of the two alternates.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_client import ChorusClient
from rich.progress import track

from bench import results
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.scenes import KINDS, UNRELATED, make_groups
from evaluation.timing import warm_up

WARM_UP_PAIRS: Final = 3


@dataclass(frozen=True)
class Run:
    """One full computation.

    Attributes:
        seconds: Time from the start of the run to the complete video.
        step_seconds: Mean duration of its steps.
        picture_bytes: Size of each picture.
    """

    seconds: float
    step_seconds: float
    picture_bytes: tuple[int, ...]


def measure_run(client: ChorusClient, prompt: str, seed: int, *, previews: bool) -> Run:
    handle = client.submit(prompt, seed=seed, reuse="off", no_store=True, step_previews=previews)
    steps = [event.step for event in handle.events() if event.step is not None]
    pictures = tuple(len(step.preview) for step in steps if step.preview)
    if len(pictures) != (len(steps) if previews else 0):
        raise SystemExit(f"{len(pictures)} pictures of {len(steps)} steps: {prompt}")
    seconds = handle.status().timings.total_seconds
    return Run(seconds, sum(step.seconds for step in steps) / len(steps), pictures)


def measure_pairs(client: ChorusClient, count: int, seed: int) -> Iterator[tuple[Run, Run]]:
    """Measures `count` prompts of the calibration split, each without pictures and with them."""
    groups = make_groups("calibration", count * len(KINDS), seed, "seen")
    for number, group in enumerate([group for group in groups if group.kind == UNRELATED][:count]):
        runs = {
            previews: measure_run(client, group.targets[0].prompt, seed + number, previews=previews)
            for previews in ((False, True) if number % 2 else (True, False))
        }
        yield runs[False], runs[True]


def build_figures(pairs: Sequence[tuple[Run, Run]]) -> dict[str, Figure]:
    """Computes medians, and medians of the paired differences and ratios."""
    extra = [(asked.seconds - plain.seconds) / len(asked.picture_bytes) for plain, asked in pairs]
    return {
        "plain_seconds_p50": results.median([plain.seconds for plain, _ in pairs], "s"),
        "step_seconds_p50": results.median([plain.step_seconds for plain, _ in pairs], "s"),
        "extra_seconds_per_step_p50": results.median(extra, "s"),
        "seconds_ratio_p50": results.median([asked.seconds / plain.seconds for plain, asked in pairs], "x"),
        "picture_bytes_p50": results.median(
            [float(size) for _, asked in pairs for size in asked.picture_bytes], "B"
        ),
    }


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "step_previews.json",
    count: Annotated[int, typer.Option(min=2, help="Number of prompts.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and videos.")] = 0,
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        local_deployment(Path(directory)) as targets,
        ChorusClient(targets["scheduler"]) as client,
    ):
        warm_up(client)
        list(measure_pairs(client, WARM_UP_PAIRS, seed + count))
        pairs = list(track(measure_pairs(client, count, seed), "pictures", count))
    figures = build_figures(pairs)
    results.write(out, f"python -m bench.step_previews {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4f} {figure.unit} {figure.ci95}, n = {figure.n}")


if __name__ == "__main__":
    typer.run(main)
