"""Verifies the layout and the captions of the picture of one hit."""

from __future__ import annotations

from chorus.scheduler.v1.scheduler_pb2 import Generation

from bench.quickstart.hit_picture import PictureRow, describe, draw_picture
from evaluation.timing import TimedGeneration
from tests.unit.bench.test_sheet import BLUE, RED, mp4, near


def test_describe_reports_the_median_of_the_runs() -> None:
    generation = Generation(steps_run=1)
    generation.plan.total_steps = 4
    runs = [TimedGeneration(generation, b"", seconds) for seconds in (0.5, 0.1, 0.25)]
    assert describe(runs) == "1 of 4 steps computed, 0.25 s"


def test_draw_picture_places_one_row_per_video() -> None:
    rows = [PictureRow("Donor", "a circle", "", mp4([RED] * 4)), PictureRow("Hit", "a", "", mp4([BLUE] * 4))]
    picture = draw_picture(rows)
    right = picture.width - 40
    assert near(picture.getpixel((right, 60)), RED)
    assert near(picture.getpixel((right, picture.height - 60)), BLUE)
