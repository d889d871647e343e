"""The space-to-depth codec loses nothing and refuses what it cannot fold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.denoiser.codec import SpaceToDepthCodec


@given(st.integers(1, 3), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_invertible(temporal: int, spatial: int, cells: tuple[int, int, int]) -> None:
    codec = SpaceToDepthCodec(temporal, spatial)
    video = torch.randn(3, cells[0] * temporal, cells[1] * spatial, cells[2] * spatial)
    latents = codec.encode(video)
    assert latents.shape == codec.latent_shape(*video.shape[1:]) == (3 * temporal * spatial**2, *cells)
    assert torch.equal(codec.decode(latents), video)


def test_a_latent_cell_holds_its_own_block_of_pixels() -> None:
    codec = SpaceToDepthCodec(2, 2)
    video = torch.randn(3, 4, 6, 8)
    changed = video.clone()
    changed[:, 2:4, 2:4, 6:8] += 1
    difference = (codec.encode(changed) - codec.encode(video)).abs().sum(0)
    assert difference[1, 1, 3] > 0
    assert torch.count_nonzero(difference) == 1


@pytest.mark.parametrize(
    ("size", "field"),
    [((7, 32, 32), "frames"), ((8, 33, 32), "height"), ((8, 32, 1), "width"), ((0, 2, 2), "frames")],
)
def test_sizes_that_do_not_fold_are_refused_by_name(size: tuple[int, int, int], field: str) -> None:
    codec = SpaceToDepthCodec(2, 2)
    with pytest.raises(ValueError, match=f"^{field}: must be a multiple of 2"):
        codec.latent_shape(*size)


def test_foreign_tensors_are_refused() -> None:
    codec = SpaceToDepthCodec(2, 2)
    with pytest.raises(ValueError, match="latents"):
        codec.decode(torch.zeros(16, 2, 4, 4))
    with pytest.raises(ValueError, match="video"):
        codec.encode(torch.zeros(4, 8, 32, 32))
    with pytest.raises(ValueError, match="at least 1"):
        SpaceToDepthCodec(0, 2)
