"""Tests of the figures of a comparison."""

import math

import pytest
import torch

from models.shapes.figures import distance, distance_ratio, kept_share, mean_figure, right_ratio, right_share
from models.shapes.measure import Measurement


def measurement(right: bool, shift: float = 0.0, seed: int = 0) -> Measurement:
    features = torch.randn(4, generator=torch.Generator().manual_seed(seed)) + shift
    return Measurement({"all": right}, 0.01, False, 1.0, math.nan, features, {"all": right})


def test_shares_count_only_prompts_that_name_the_attribute() -> None:
    cell = [measurement(True), measurement(False), measurement(False)]
    assert right_share(cell).value == pytest.approx(1 / 3)
    assert right_share(cell, "all", [True, True, False]).value == 0.5
    assert kept_share(cell).value == pytest.approx(1 / 3)


def test_ratio_compares_with_the_reference_cell() -> None:
    cell = [measurement(i % 2 == 0) for i in range(40)]
    reference = [measurement(True) for _ in range(40)]
    figure = right_ratio(cell, reference)
    assert figure.value == 0.5
    assert figure.ci95 is not None
    assert figure.ci95[0] < 0.5 < figure.ci95[1]


def test_distance_grows_with_the_shift_of_the_features() -> None:
    truth = torch.stack([measurement(True, seed=1000 + i).features for i in range(60)])
    near = [measurement(True, 0.5, i) for i in range(60)]
    far = [measurement(True, 3.0, i) for i in range(60)]
    assert distance(near, truth).value < distance(far, truth).value
    figure = distance_ratio(far, near, truth)
    assert figure.value > 3
    assert figure.ci95 is not None
    assert figure.ci95[0] > 1


def test_mean_ignores_missing_values() -> None:
    assert mean_figure([1.0, math.nan, 3.0], "x").value == 2.0
    assert mean_figure([1.0, math.nan, 3.0], "x").n == 2
