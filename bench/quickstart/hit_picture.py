"""Draws a donor, a hit and the hit's prompt computed in full, one below the other: docs/images/hit.png.

`python -m bench.quickstart.hit_picture --out docs/images/hit.png`
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_client import ChorusClient
from PIL import Image, ImageDraw, ImageFont

from bench.quickstart.sheet import FRAMES, sample_frames, wrap
from evaluation.deployment import local_deployment
from evaluation.timing import TimedGeneration, generate_timed, warm_up

DONOR: Final = "a small red circle moving left and a large blue square moving up on a gray background"
PROMPT: Final = "a small red circle moving left and a large purple square moving up on a gray background"
SEED: Final = 11  # of 7, the model draws the square twice without reuse
REPEATS: Final = 5

_CELL, _GAP, _MARGIN, _CAPTION = 128, 6, 20, 330
_INK, _FAINT, _ACCENT = (25, 25, 30), (110, 110, 118), (20, 120, 70)


@dataclass(frozen=True)
class PictureRow:
    """One video of the picture with its caption."""

    title: str
    prompt: str
    detail: str
    video: bytes
    accent: bool = False


def measure_rows(client: ChorusClient) -> list[PictureRow]:
    """Generates the donor once, then the edited prompt REPEATS times with reuse and in full.

    The captions of the last two rows show medians.
    """
    warm_up(client)
    donor = generate_timed(client, DONOR, seed=SEED)
    hits, full = list[TimedGeneration](), list[TimedGeneration]()
    for _ in range(REPEATS):
        full.append(generate_timed(client, PROMPT, seed=SEED, reuse="off", no_store=True))
        hits.append(generate_timed(client, PROMPT, seed=SEED, no_store=True))
    if any(run.generation.donor.generation_id != donor.generation.generation_id for run in hits):
        raise SystemExit("the edited prompt did not reuse its donor")
    return [
        PictureRow("Donor: an earlier request", DONOR, describe([donor]), donor.video),
        PictureRow(
            "Hit: starts from the donor's latents", PROMPT, describe(hits), hits[0].video, accent=True
        ),
        PictureRow("The same prompt without reuse", PROMPT, describe(full), full[0].video),
    ]


def describe(runs: Sequence[TimedGeneration]) -> str:
    """Returns the number of computed steps and the median time of equal runs."""
    generation = runs[0].generation
    seconds = statistics.median(run.seconds for run in runs)
    return f"{generation.steps_run} of {generation.plan.total_steps} steps computed, {seconds:.2f} s"


def draw_picture(rows: Sequence[PictureRow]) -> Image.Image:
    """Draws one row per video: the caption at the left, the frames at the right."""
    width = _MARGIN + _CAPTION + FRAMES * (_CELL + _GAP) - _GAP + _MARGIN
    height = _MARGIN + len(rows) * (_CELL + 2 * _GAP) - 2 * _GAP + _MARGIN
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        y = _MARGIN + number * (_CELL + 2 * _GAP)
        draw.text(
            (_MARGIN, y + 8), row.title, fill=_ACCENT if row.accent else _INK, font=ImageFont.load_default(16)
        )
        font = ImageFont.load_default(14)
        assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
        for i, line in enumerate(wrap(draw, row.prompt, font, _CAPTION - _MARGIN)[:3]):
            draw.text((_MARGIN, y + 36 + 19 * i), line, fill=_INK, font=font)
        draw.text((_MARGIN, y + 100), row.detail, fill=_ACCENT if row.accent else _FAINT, font=font)
        for i, frame in enumerate(sample_frames(row.video)):
            scaled = frame.resize((_CELL, _CELL), Image.Resampling.NEAREST)
            picture.paste(scaled, (_MARGIN + _CAPTION + i * (_CELL + _GAP), y))
    return picture


def main(
    out: Annotated[Path, typer.Option(help="Path of the picture.")] = Path("docs/images/hit.png"),
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        local_deployment(Path(directory), cache_embeddings=False) as targets,
        ChorusClient(targets["scheduler"]) as client,
    ):
        rows = measure_rows(client)
    for row in rows:
        print(f"{row.title}: {row.detail}")
    draw_picture(rows).save(out)


if __name__ == "__main__":
    typer.run(main)
