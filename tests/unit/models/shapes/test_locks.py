"""Tests of the measure of what is settled at a level."""

import pytest
import torch

from models.shapes.layout import draw_layout
from models.shapes.locks import FIELDS, fine_schedule, settled_shares
from models.shapes.render import render
from models.shapes.world import Scene, draw_scenes, scene_table
from models.shapes.yardstick.reader import Reading, read
from services.contract.schedule import find_schedule_fault


@pytest.fixture(scope="module")
def scenes() -> list[list[Scene]]:
    return [draw_scenes("calibration", 6, seed, pairs=0.0) for seed in (1, 2)]


def readings(scenes: list[Scene], seed: int) -> list[Reading]:
    table = scene_table(scenes)
    return [read(v) for v in render(table, draw_layout(table, torch.Generator().manual_seed(seed)))]


def test_donors_own_video_is_settled_in_everything(scenes: list[list[Scene]]) -> None:
    donors, targets = scenes
    own = readings(donors, 0)
    assert settled_shares(list(zip(own, own, strict=True)), donors, targets) == dict.fromkeys(
        (*FIELDS, "place"), 1.0
    )


def test_targets_own_video_is_settled_in_nothing(scenes: list[list[Scene]]) -> None:
    donors, targets = scenes
    pairs = list(zip(readings(donors, 0), readings(targets, 1), strict=True))
    shares = settled_shares(pairs, donors, targets)
    assert [shares[f] for f in FIELDS] == [0.0] * len(FIELDS)


def test_fine_schedule_passes_through_the_levels() -> None:
    schedule = fine_schedule(3)
    assert len(schedule) == 13
    assert find_schedule_fault(schedule) is None
    assert schedule[3] == pytest.approx(0.9375)
