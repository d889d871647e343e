"""Verifies the suggestions for misspelt names."""

import pytest
from chorus_rpc.suggestions import closest

OPTIONS = ("seed", "steps", "num_frames", "guidance_scale")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sede", "seed"), ("frames", "num_frames"), ("STEPS", "steps"), ("guidance-scale", "guidance_scale")],
)
def test_closest_finds_the_misspelt_name(name: str, expected: str) -> None:
    assert closest(name, OPTIONS) == expected


def test_closest_returns_none_without_a_similar_name() -> None:
    assert closest("negative_prompt", OPTIONS) is None
    assert closest("seed", ()) is None
