"""Tests of the network against diffusers', on a tiny random checkpoint."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st

from services.denoiser.checkpoint.weights import load_weights
from services.denoiser.network.positions import position_channels, position_count
from services.denoiser.network.wan import Grid, WanConfig, WanTransformer, patchify, rope_table, unpatchify

CONFIG = WanConfig(in_channels=9, out_channels=6, heads=3, head_dim=16, ffn_dim=80, layers=2, text_dim=20)
LATENTS = (3, 8, 12)
GRID = (3, 4, 6)


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(0)
    make: Any = WanTransformer3DModel
    model = make(
        patch_size=CONFIG.patch_size,
        num_attention_heads=CONFIG.heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.in_channels,
        out_channels=CONFIG.out_channels,
        text_dim=CONFIG.text_dim,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.layers,
    )
    for p in model.parameters():  # also the ones that start as zeros or ones
        p.data.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def ours(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> WanTransformer:
    """Returns our network with weights saved by diffusers in shards."""
    path = tmp_path_factory.mktemp("wan")
    reference.save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    model = WanTransformer(CONFIG)
    expected = {k: v.shape for k, v in model.state_dict().items()}
    index = path / "diffusion_pytorch_model.safetensors.index.json"
    model.load_state_dict(load_weights(index, expected))
    return model.eval()


@torch.no_grad()
def test_output_equals_that_of_diffusers(reference: Any, ours: WanTransformer) -> None:
    x, text = torch.randn(2, 9, *LATENTS), torch.randn(2, 7, 20)
    timestep = torch.tensor([1000.0, 625.0])
    expected = reference(x, timestep, text, return_dict=False)[0]
    tokens = patchify(x, CONFIG.patch_size)
    out = ours(tokens, *rope_table(CONFIG, GRID), ours.encode_text(text), None, timestep)
    got = unpatchify(out, GRID, CONFIG.patch_size)
    assert got.shape == expected.shape
    assert (got - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_hidden_padding_changes_nothing(ours: WanTransformer) -> None:
    tokens, text = torch.randn(1, 72, 36), torch.randn(1, 5, 20)
    rope, t = rope_table(CONFIG, GRID), torch.tensor([900.0])
    alone = ours(tokens, *rope, ours.encode_text(text), None, t)
    padded = torch.cat((text, torch.randn(1, 4, 20)), dim=1)
    bias = torch.tensor([[0.0] * 5 + [float("-inf")] * 4])
    torch.testing.assert_close(ours(tokens, *rope, ours.encode_text(padded), bias, t), alone)


@torch.no_grad()
def test_order_of_tokens_does_not_matter(ours: WanTransformer) -> None:
    """Verifies that shuffled tokens with their angles, per sample, give the shuffled velocity."""
    tokens, text = torch.randn(2, 72, 36), torch.randn(2, 5, 20)
    cos, sin = rope_table(CONFIG, GRID)
    kv, t = ours.encode_text(text), torch.tensor([900.0, 100.0])
    full = ours(tokens, cos, sin, kv, None, t)
    order = torch.stack([torch.randperm(72) for _ in range(2)])
    pick = order.unsqueeze(-1)
    shuffled = ours(tokens.gather(1, pick.expand(-1, -1, 36)), cos[order], sin[order], kv, None, t)
    expected = full.gather(1, pick.expand(-1, -1, full.shape[2]))
    torch.testing.assert_close(shuffled, expected, rtol=1e-4, atol=1e-5)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 2)] * 3), st.integers(1, 4))
def test_patches_are_invertible(grid: Grid, patch: Grid, channels: int) -> None:
    size = [g * p for g, p in zip(grid, patch, strict=True)]
    x = torch.randn(2, channels, *size)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], channels * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(tokens, grid, patch), x)


def test_position_channels_distinguish_every_cell() -> None:
    channels = position_channels(2, (4, 6, 5))
    assert channels.shape == (position_count(2), 4, 6, 5) == (9, 4, 6, 5)
    cells = channels.flatten(1).T
    distance = torch.cdist(cells, cells) + 10 * torch.eye(len(cells))
    assert distance.min() > 0.1
    assert position_channels(0, (2, 2, 2)).shape == (0, 2, 2, 2)
