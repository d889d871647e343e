"""Tests of the refiner's training: what the reader must name, and that it learns to."""

from __future__ import annotations

import argparse

import torch

from models.shapes.prompts import Prompts
from models.shapes.refine import hide_tokens, labels, shares_read, train
from models.shapes.world import Scene, Thing, scene_table

RED = Thing("circle", "red", "left", "small", "upper right")
BLUE = Thing("square", "blue", "still", "large")
SCENES = [
    Scene("pink", "striped", (RED,)),
    Scene("gray", "plain", (RED, BLUE)),
    Scene("gray", "plain", (BLUE, RED)),
]


def test_missing_objects_and_places_are_values_of_their_own() -> None:
    one, two, _ = labels(scene_table(SCENES)).tolist()
    assert one == [8, 1, 0, 0, 0, 0, 1, 3, 13, 5, 2, 4]
    assert two == [11, 0, 0, 0, 0, 0, 1, 1, 5, 4, 1, 4]


def test_reader_learns_to_name_every_attribute() -> None:
    g = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 5, 12, 20])
    prompts = Prompts(["a caption"] * 3, scene_table(SCENES), torch.randn(20, 384, generator=g), offsets)
    args = argparse.Namespace(seed=0, updates=40, batch=6, lr=3e-3, blur=0.1, noise=0.5, compile=False)
    model = train(args, prompts, {})
    assert shares_read(model, prompts) == {"one object": 1, "two objects": 1, "lowest attribute": 1}


def test_at_least_two_tokens_remain_to_be_read() -> None:
    bias = torch.zeros(200, 12)
    bias[:, 8:] = float("-inf")
    read = hide_tokens(bias, torch.Generator().manual_seed(0))
    seen = (read == 0).sum(1)
    assert int(seen.min()) == 2
    assert int(seen.max()) == 8
    assert (read[:, 8:] < -1e3).all()
