"""Verifies masks of regions: the tokens of a grid that stage 2 computes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from services.denoiser.network.wan import Grid
from services.denoiser.reuse.region_masks import (
    compare_predictions,
    compute_edge_weights,
    dilate,
    find_attended_region,
    find_differing_region,
    pack_mask,
    refine_region,
    select_context,
    select_probe_tokens,
)

grids = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@st.composite
def masks(draw: st.DrawFn) -> tuple[Grid, Tensor]:
    grid = draw(grids)
    n = math.prod(grid)
    return grid, torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


@given(grids)
def test_probes_are_a_quarter_of_the_tokens_and_adjacent_to_all(grid: Grid) -> None:
    probes = select_probe_tokens(grid)
    assert probes.tolist() == sorted(set(probes.tolist()))
    assert len(probes) <= grid[0] * math.ceil(grid[1] / 2) * math.ceil(grid[2] / 2)
    probed = torch.zeros(math.prod(grid), dtype=torch.bool)
    probed[probes] = True
    assert dilate(probed, grid, 1).all()


def test_four_frames_probe_every_place() -> None:
    grid = (4, 6, 8)
    probed = torch.zeros(math.prod(grid), dtype=torch.bool)
    probed[select_probe_tokens(grid)] = True
    assert probed.view(grid).any(0).all()


@given(masks(), st.integers(0, 3))
def test_dilation_grows_along_rows_and_columns_of_one_frame(drawn: tuple[Grid, Tensor], by: int) -> None:
    grid, mask = drawn
    grown = dilate(mask, grid, by).view(grid)
    for t, y, x in grown.nonzero().tolist():
        near = mask.view(grid)[t, max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1]
        assert near.any()
    assert (grown.view(-1) | ~mask).all()


@given(masks(), st.integers(0, 2))
def test_region_contains_every_token_that_differs(drawn: tuple[Grid, Tensor], dilation: int) -> None:
    grid, differs = drawn
    found = find_differing_region(differs.float(), grid, threshold=0.5, dilation=dilation)
    assert (found | ~differs).all()
    assert found.any() == differs.any()


@given(masks())
def test_probes_stand_for_the_tokens_around_them(drawn: tuple[Grid, Tensor]) -> None:
    grid, differs = drawn
    probes = select_probe_tokens(grid)
    found = find_differing_region(
        differs[probes].float(), grid, threshold=0.5, dilation=0, probes=probes
    ).view(grid)
    for t, y, x in differs.view(grid).nonzero().tolist():
        if int(t * grid[1] * grid[2] + y * grid[2] + x) in probes.tolist():
            assert found[t, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()
            assert found[max(0, t - 1) : t + 2, y, x].all()


def test_gap_of_one_frame_is_closed() -> None:
    grid = (3, 1, 2)
    differs = torch.tensor([1.0, 0, 0, 0, 1.0, 0])
    found = find_differing_region(differs, grid, threshold=0.5, dilation=0)
    assert found.view(grid)[:, 0, 0].tolist() == [True, True, True]
    assert not found.view(grid)[:, 0, 1].any()


@given(masks(), masks())
def test_refined_region_is_a_subset(one: tuple[Grid, Tensor], other: tuple[Grid, Tensor]) -> None:
    grid, active = one
    differences = other[1].float().repeat(math.prod(grid))[: int(active.sum())]
    smaller = refine_region(active, differences, grid, threshold=0.5, dilation=1)
    assert (active | ~smaller).all()
    assert smaller[active][differences > 0.5].all()


@given(masks())
def test_edge_weights_are_partial_at_edges_and_full_inside(drawn: tuple[Grid, Tensor]) -> None:
    grid, mask = drawn
    weights = compute_edge_weights(mask, grid)
    assert (weights[~mask] == 0).all()
    assert ((weights[mask] > 0) & (weights[mask] <= 1)).all()
    inside = ~dilate(~mask, grid, 1)
    assert (weights[inside] == 1).all()


@given(masks())
def test_context_contains_only_inactive_tokens(drawn: tuple[Grid, Tensor]) -> None:
    grid, active = drawn
    context = select_context(active, grid)
    assert not active[context].any()
    assert len(context) <= len(active) - int(active.sum())


def test_attention_finds_the_places_of_lost_words() -> None:
    grid = (1, 2, 3)
    maps = torch.tensor([[1.0, 0.9, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0]])
    found = find_attended_region(maps, [(0, 1.0), (7, 1.0)], grid, threshold=0.5, dilation=0)
    assert found.tolist() == [True, True, False, False, False, False]
    assert not find_attended_region(maps, [], grid, threshold=0.5, dilation=2).any()


def test_differences_are_in_units_of_the_variance() -> None:
    donor = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    found = compare_predictions(donor + torch.tensor([[2.0, 0.0], [0.0, 0.0]]), donor, torch.tensor(4.0))
    assert found.tolist() == pytest.approx([0.5, 0.0])


@given(masks())
def test_packed_mask_has_one_bit_per_token(drawn: tuple[Grid, Tensor]) -> None:
    _, mask = drawn
    packed = pack_mask(mask)
    assert len(packed) == math.ceil(len(mask) / 8)
    bits = [bool(packed[i // 8] >> i % 8 & 1) for i in range(len(packed) * 8)]
    assert bits[: len(mask)] == mask.tolist()
    assert not any(bits[len(mask) :])
