"""Validates the yardstick of the world of shapes: `python -m bench.yardstick` writes yardstick.json.

Detection rates on renders of the split `test`, clean and corrupted. `--only` measures some parts and keeps
the other figures of the file. How the figures are defined: docs/yardstick.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from bench import results
from bench.results import RESULTS, Figure, mean, median, share, single
from models.shapes.yardstick.classifier import embed_videos, frechet_distance, load_classifier
from models.shapes.yardstick.corrupt import blur, pass_codec
from models.shapes.yardstick.diversity import diversity_ratios, measure_variances, render_readings
from models.shapes.yardstick.reader import read
from models.shapes.yardstick.residue import measure_artefacts
from models.shapes.yardstick.train_classifier import measure_accuracy
from models.shapes.yardstick.validate import (
    draw_videos,
    soften,
    validate_artefacts,
    validate_layout_kept,
    validate_reader,
    validate_sharpness,
)

OUT: Final = RESULTS / "yardstick.json"
READ: Final = 500  # videos that are read
CORRUPTED: Final = 60  # videos that are corrupted in every way; three ghosts each
DISTANCE: Final = 500  # videos in each set of a distribution distance
PROMPTS, SEEDS = 8, 16  # of the diversity
BLURS: Final = (0.5, 1.0, 2.0)  # pixels, of the distribution distances
Figures = dict[str, Figure]


def _shares(prefix: str, outcomes: dict[str, list[bool]]) -> Figures:
    return {f"{prefix}_{name}": share(sum(hits), len(hits)) for name, hits in outcomes.items()}


def measure_reader() -> Figures:
    """Measures how often each attribute is read right, directly and after the codec, and the time."""
    scenes, videos = draw_videos("test", READ, 1)
    seconds = []

    def timed(video: Tensor) -> Tensor:
        start = time.perf_counter()
        read(video)
        seconds.append(time.perf_counter() - start)
        return video

    figures = _shares("read", validate_reader(scenes, videos))
    figures |= _shares("read_mp4", validate_reader(scenes, map(pass_codec, videos)))
    for video in videos[:50]:
        timed(video)
    return figures | {"read_seconds_p50": median(seconds, "s")}


def measure_artefact_rates() -> Figures:
    """Measures how often artefacts are found in clean and in corrupted videos, and the donor's shares."""
    _, videos = draw_videos("test", CORRUPTED, 2)
    rng = random.Random(2)
    outcomes, shares = validate_artefacts(map(pass_codec, videos), 2)
    figures = _shares("artefact", outcomes)
    soft, _ = validate_artefacts((soften(v, rng) for v in videos[: CORRUPTED // 2]), 3)
    figures |= _shares("artefact_soft", soft)
    figures |= {f"{name}_share": mean(values, "share") for name, values in shares.items()}
    pixels = [measure_artefacts(read(pass_codec(v))).share for v in videos]
    return figures | {"artefact_pixels_mp4": mean(pixels, "share")}


def measure_layout_kept() -> Figures:
    """Measures how often the layout is found to be kept, with the donor's layout and with another."""
    return _shares("layout_kept", validate_layout_kept(CORRUPTED, 4))


def measure_sharpness_rates() -> Figures:
    """Measures the sharpness of renders under blur."""
    _, videos = draw_videos("test", 50, 5)
    return {f"sharpness_blur_{s:g}": mean(v, "ratio") for s, v in validate_sharpness(list(videos)).items()}


def measure_distances() -> Figures:
    """Measures the classifier's accuracy, and distances between sets of renders, some of them blurred."""
    accuracy = measure_accuracy_figures()
    _, first = draw_videos("test", DISTANCE, 6)
    _, second = draw_videos("test", DISTANCE, 7)
    reference = embed_videos(first)

    def distance(videos: Sequence[Tensor] | Tensor) -> Figure:
        return Figure(
            frechet_distance(reference, embed_videos(videos)), "squared standard deviations", DISTANCE
        )

    figures = {"distance_renders": distance(second)}
    for sigma in BLURS:
        figures[f"distance_blur_{sigma:g}"] = distance([blur(v, sigma) for v in second])
    return accuracy | figures


def measure_accuracy_figures() -> Figures:
    """Measures the classifier's accuracy on renders of the split `test`."""
    accuracy = measure_accuracy(load_classifier(), "test", DISTANCE, 8)
    return {f"classifier_{k}": share(round(v * DISTANCE), DISTANCE) for k, v in accuracy.items()}


def measure_diversity() -> Figures:
    """Measures the diversity ratios of renders against renders, and of renders with one layout for all."""
    scenes, _ = draw_videos("test", PROMPTS, 9)
    first, second = (
        [measure_variances(render_readings(s, SEEDS, seed), s) for s in scenes] for seed in (1, 2)
    )
    return {f"diversity_{k}": single(v, "ratio") for k, v in diversity_ratios(first, second).items()}


PARTS: Final[dict[str, Callable[[], Figures]]] = {
    "reader": measure_reader,
    "artefacts": measure_artefact_rates,
    "layout": measure_layout_kept,
    "sharpness": measure_sharpness_rates,
    "distance": measure_distances,
    "diversity": measure_diversity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.only:
        measured = PARTS[part]()
        kept: dict[str, Any] = results.read(OUT)["figures"] if OUT.exists() else {}
        results.write(OUT, "python -m bench.yardstick", kept | measured)
        for name, figure in measured.items():
            print(name, figure.value, figure.ci95, flush=True)


if __name__ == "__main__":
    main()
