"""Tests of the measure of weights during training, on renders instead of generated videos."""

import torch

from models.shapes.layout import draw_layout
from models.shapes.progress import draw_sheet, enlarge, summarise
from models.shapes.render import render
from models.shapes.world import draw_scenes, scene_table
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.reader import read

SCENES = draw_scenes("calibration", 6, 4)


def test_enlarged_renders_show_what_was_asked_for() -> None:
    table = scene_table(SCENES)
    videos = enlarge(render(table, draw_layout(table, torch.Generator().manual_seed(2)), 32))
    assert videos.shape == (6, 3, 16, 64, 64)
    right = [compare(read(v).scene, s) for v, s in zip(videos, SCENES, strict=True)]
    shares = summarise(right, SCENES)
    assert {name: row["all"] for name, row in shares.items()} == {"one object": 1.0, "two objects": 1.0}


def test_shares_count_the_videos_of_one_number_of_objects() -> None:
    right = [{"shape": len(s.things) == 1, "all": False} for s in SCENES]
    assert summarise(right, SCENES) == {
        "one object": {"shape": 1.0, "all": 0.0},
        "two objects": {"shape": 0.0, "all": 0.0},
    }


def test_sheet_has_two_videos_in_a_row() -> None:
    assert draw_sheet([torch.zeros(3, 16, 64, 64)] * 3).size == (2 * 4 * 64, 2 * 64)
