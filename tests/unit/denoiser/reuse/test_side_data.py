"""Tests of side data: packing and unpacking, and pooling of attention maps within a byte limit."""

from __future__ import annotations

import json
import math
import struct

import pytest
import safetensors.torch
import torch
from chorus_rpc.chunks import BlobFault
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from services.denoiser.network.wan import Grid
from services.denoiser.reuse.side_data import (
    SideData,
    pack_side_data,
    pool_maps,
    unpack_side_data,
    unpool_maps,
)

GRID = (2, 5, 6)
DIM = 6
MAX_TOKENS = 4

grids = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Tensor, Grid]:
    """Draws the attention of a few tokens over a grid; some may be zero everywhere."""
    grid, tokens = draw(grids), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    attention = torch.rand(tokens, math.prod(grid), generator=generator)
    scales = draw(st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 100.0]), min_size=tokens, max_size=tokens))
    return attention * torch.tensor(scales)[:, None], grid


def side(tokens: int = 3, grid: tuple[int, ...] = (2, 3, 3), dim: int = DIM) -> SideData:
    generator = torch.Generator().manual_seed(5)
    maps = torch.randint(0, 256, (tokens, *grid), generator=generator, dtype=torch.uint8)
    return SideData(maps, torch.randn(tokens, dim, generator=generator).half())


def unpack(data: bytes) -> SideData:
    return unpack_side_data(data, text_dim=DIM, max_tokens=MAX_TOKENS, token_grid=GRID)


@given(st.integers(1, MAX_TOKENS), st.sampled_from([(2, 5, 6), (2, 3, 3), (1, 3, 3), (1, 2, 2), (1, 1, 1)]))
def test_side_data_round_trips(tokens: int, grid: Grid) -> None:
    kept = side(tokens, grid)
    data = pack_side_data(kept)
    assert data == pack_side_data(side(tokens, grid))
    found = unpack(data)
    assert found.maps.dtype == torch.uint8
    assert found.text.dtype == torch.float16
    assert torch.equal(found.maps, kept.maps)
    assert torch.equal(found.text, kept.text)


def test_view_packs_to_the_bytes_of_a_copy() -> None:
    kept = side()
    turned = SideData(kept.maps.mT.contiguous().mT, kept.text.mT.contiguous().mT)
    assert not turned.maps.is_contiguous()
    assert pack_side_data(turned) == pack_side_data(kept)


def save(**tensors: Tensor) -> bytes:
    kept = side()
    data: bytes = safetensors.torch.save({"maps": kept.maps, "text": kept.text, **tensors})
    return data


def build_header(maps: list[int], text: list[int], values: int) -> bytes:
    """Builds a header that declares the shapes, followed by `values` bytes."""
    header = {
        "maps": {"dtype": "U8", "shape": maps, "data_offsets": [0, values // 2]},
        "text": {"dtype": "F16", "shape": text, "data_offsets": [values // 2, values]},
    }
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + bytes(values)


def with_text(value: float) -> bytes:
    text = side().text
    text[1, 2] = value
    return save(text=text)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        pytest.param(b"", "not a safetensors file", id="nothing"),
        pytest.param(pack_side_data(side())[:-1], "declares", id="cut"),
        pytest.param(save(more=torch.zeros(1)), "expected only maps and text", id="one more"),
        pytest.param(
            safetensors.torch.save({"maps": side().maps}), "expected only maps and text", id="no text"
        ),
        pytest.param(save(maps=torch.zeros(3, 2, 3, 3)), "expected U8", id="maps of float"),
        pytest.param(save(text=torch.zeros(3, DIM)), "expected F16", id="text of float32"),
        pytest.param(save(text=torch.zeros(2, DIM).half()), r"expected F16 \[3, 6\]", id="fewer states"),
        pytest.param(save(text=torch.zeros(3, DIM + 1).half()), "expected F16", id="wider states"),
        pytest.param(save(maps=torch.zeros((), dtype=torch.uint8)), "0 tokens", id="a scalar"),
        pytest.param(pack_side_data(side(0)), "1 to 4", id="no token"),
        pytest.param(pack_side_data(side(5)), "1 to 4", id="too many tokens"),
        pytest.param(pack_side_data(side(grid=(2, 3))), "pooled", id="no columns"),
        pytest.param(pack_side_data(side(grid=(2, 5, 7))), "pooled", id="beyond the grid"),
        pytest.param(pack_side_data(side(grid=(2, 4, 4))), "pooled", id="another pool"),
        pytest.param(pack_side_data(side(grid=(0, 3, 3))), "pooled", id="an empty grid"),
        pytest.param(with_text(math.nan), "NaN", id="NaN"),
        pytest.param(with_text(-math.inf), "infinity", id="infinity"),
        pytest.param(build_header([1 << 40, 2, 3, 3], [1 << 40, DIM], 100), "50 bytes, expected", id="huge"),
        pytest.param(build_header([3, 2, 3, 3], [3, DIM], 10), "5 bytes, expected 54", id="too few bytes"),
        pytest.param(build_header([1] * 100_000, [1, DIM], 10), "more than 8 dimensions", id="a long shape"),
    ],
)
def test_invalid_side_data_is_rejected(data: bytes, word: str) -> None:
    with pytest.raises(BlobFault, match=word) as failed:
        unpack(data)
    assert len(str(failed.value)) < 200


@given(st.data())
def test_altered_byte_gives_valid_side_data_or_a_blob_fault(data: st.DataObject) -> None:
    packed = bytearray(pack_side_data(side()))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack(bytes(packed))
    except BlobFault:
        return
    assert (found.maps.shape, found.text.shape) == ((3, 2, 3, 3), (3, DIM))


@given(attentions(), st.integers(-5, 2000))
def test_pooled_maps_stay_within_the_limit(drawn: tuple[Tensor, Grid], limit: int) -> None:
    attention, grid = drawn
    maps = pool_maps(attention, grid, limit)
    if maps is None:
        assert limit < len(attention) * grid[0]
        return
    assert maps.dtype == torch.uint8
    assert maps.numel() <= limit
    assert len(maps) == len(attention)
    assert all(1 <= pooled <= size for pooled, size in zip(maps.shape[1:], grid, strict=True))
    # The result must be accepted by unpack_side_data.
    kept = SideData(maps, torch.zeros(len(maps), DIM).half())
    assert unpack_side_data(pack_side_data(kept), text_dim=DIM, max_tokens=4, token_grid=grid)


@given(attentions(), st.integers(1, 2000))
def test_pooling_keeps_peaks_and_zero_maps(drawn: tuple[Tensor, Grid], limit: int) -> None:
    attention, grid = drawn
    maps = pool_maps(attention, grid, limit)
    if maps is None:
        return
    for each, values in zip(maps, attention, strict=True):
        assert each.max() == (255 if values.any() else 0)
    # A map records where its token acted, not how strongly.
    again = pool_maps(attention * 4, grid, limit)
    assert again is not None
    assert torch.equal(again, maps)


@given(attentions())
def test_maps_that_fit_are_restored_within_half_a_level(drawn: tuple[Tensor, Grid]) -> None:
    attention, grid = drawn
    maps = pool_maps(attention, grid, attention.numel())
    assert maps is not None
    assert maps.shape == (len(attention), *grid)
    largest = attention.amax(1, keepdim=True)
    shares = torch.where(largest > 0, attention / largest, 0.0)
    assert (unpool_maps(maps, grid) - shares).abs().max() <= 0.5 / 255 + 1e-6
    peaks = shares.argmax(1, keepdim=True)
    assert torch.equal(unpool_maps(maps, grid).gather(1, peaks), shares.gather(1, peaks))


@given(attentions(), st.integers(1, 2000))
def test_pooled_maps_are_restored_as_the_means_of_their_pools(drawn: tuple[Tensor, Grid], limit: int) -> None:
    attention, grid = drawn
    maps = pool_maps(attention, grid, limit)
    if maps is None:
        return
    found = unpool_maps(maps, grid)
    assert found.shape == attention.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    # By the definition of a pool, token by token.
    sides = [
        next(k for k in (1, 2, 4, 8, 16) if -(-n // k) == m)
        for n, m in zip(grid, maps.shape[1:], strict=True)
    ]
    pools: dict[tuple[int, ...], list[int]] = {}
    for token, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).view(-1, 3).tolist()):
        pools.setdefault(tuple(at // k for at, k in zip(place, sides, strict=True)), []).append(token)
    means = torch.zeros_like(attention)
    for tokens in pools.values():
        means[:, tokens] = attention[:, tokens].mean(1, keepdim=True)
    largest = means.amax(1, keepdim=True)
    expected = torch.where(largest > 0, means / largest, 0.0)
    assert (found - expected).abs().max() <= 0.5 / 255 + 1e-5


def test_pools_grow_in_space_before_time() -> None:
    attention = torch.rand(1, 4 * 8 * 8)
    shapes = []
    for limit in (256, 255, 63, 31, 7):
        maps = pool_maps(attention, (4, 8, 8), limit)
        shapes.append(None if maps is None else tuple(maps.shape[1:]))
    assert shapes == [(4, 8, 8), (4, 4, 4), (2, 4, 4), (2, 2, 2), (1, 2, 2)]
    assert pool_maps(attention, (4, 8, 8), 3) is None


def test_maps_of_another_grid_are_rejected() -> None:
    with pytest.raises(ValueError, match="not pooled"):
        unpool_maps(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), GRID)
