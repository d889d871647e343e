"""Verifies the map of vectors: its bounds, and what it keeps of the vectors' distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.cache.projection import project

VECTORS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.integers(1, 6)),
    elements=st.floats(-1, 1, width=32),
)


def distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(points[:, None] - points[None, :], axis=-1), np.float64)


@given(VECTORS)
def test_places_are_bounded_centred_and_the_same_again(vectors: NDArray[np.float32]) -> None:
    found = project(vectors)
    assert found.places.shape == (len(vectors), 2)
    assert np.all(np.abs(found.places) <= 1)
    assert 0 <= found.explained_share <= 1
    if len(vectors):
        assert found.places.mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
        assert found.places[:, 0].var() >= found.places[:, 1].var() - 1e-9
    assert np.array_equal(project(vectors.copy()).places, found.places)


@given(st.integers(4, 40), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_plane_is_a_view_of_the_vectors_on_one_scale(count: int, dimension: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    places = project(vectors).places
    axes = np.linalg.pinv(centred) @ places
    assert centred @ axes == pytest.approx(places, abs=1e-6)
    products = axes.T @ axes
    assert products[0, 0] == pytest.approx(products[1, 1], rel=1e-4)
    assert products[0, 1] == pytest.approx(0, abs=1e-4 * products[0, 0])
    assert np.abs(places).max() == pytest.approx(1)


@given(st.integers(2, 40), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_vectors_of_a_plane_keep_all_their_distances(count: int, dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((dimension, 2)))
    flat = random.standard_normal((count, 2)) @ axes.T + random.standard_normal(dimension)
    found = project(flat.astype(np.float32))
    expected, kept = distances(flat), distances(found.places)
    assert kept / kept.max() == pytest.approx(expected / expected.max(), abs=1e-3)
    assert found.explained_share == pytest.approx(1, abs=1e-4)


@given(st.permutations(range(6)))
def test_order_of_the_vectors_does_not_matter(order: list[int]) -> None:
    vectors = np.random.default_rng(3).standard_normal((6, 5)).astype(np.float32)
    assert project(vectors[order]).places == pytest.approx(project(vectors).places[order], abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_equal_vectors_have_one_place(count: int) -> None:
    vectors = np.full((count, 384), 1 / np.sqrt(384), np.float32)
    assert np.array_equal(project(vectors).places, np.zeros((count, 2)))


def test_sign_of_an_axis_is_that_of_its_farthest_place() -> None:
    line = np.array([[0.0, 1], [0.1, 1], [0.9, 1]], np.float32)
    for vectors in (line, -line):
        assert project(vectors).places[2] == pytest.approx([1, 0], abs=1e-6)
