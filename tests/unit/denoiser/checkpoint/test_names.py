"""Tests of parameter names: every released spelling maps to ours."""

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from hypothesis import given
from hypothesis import strategies as st

from services.denoiser.checkpoint.names import build_renamer, to_original_name
from services.denoiser.network.wan import WanConfig, WanTransformer

with torch.device("meta"):
    NAMES = list(WanTransformer(WanConfig(layers=11)).state_dict())
RENAME = build_renamer(NAMES)


def test_diffusers_converts_original_names_back() -> None:
    convert: Any = convert_wan_transformer_to_diffusers
    for name in NAMES:
        converted = convert({to_original_name(name): torch.zeros(1)})
        assert list(converted) == [name]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
def test_every_spelling_maps_to_ours(prefix: str) -> None:
    assert [RENAME(prefix + to_original_name(name)) for name in NAMES] == NAMES
    assert [RENAME(prefix + name) for name in NAMES] == NAMES


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("patch_embedding.weight", "patch_embedding.weight"),
        ("blocks.10.attn1.to_out.0.bias", "blocks.10.self_attn.o.bias"),
        ("blocks.0.attn2.norm_k.weight", "blocks.0.cross_attn.norm_k.weight"),
        ("blocks.0.norm2.weight", "blocks.0.norm3.weight"),
        ("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.0.weight"),
        ("blocks.0.scale_shift_table", "blocks.0.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("proj_out.weight", "head.head.weight"),
    ],
)
def test_released_names_map_to_ours(ours: str, original: str) -> None:
    assert to_original_name(ours) == original
    assert RENAME(original) == ours


@given(st.text(max_size=30).filter(lambda name: RENAME(name) == name))
def test_unknown_names_are_kept_and_original_names_are_unique(name: str) -> None:
    assert RENAME(name) == name
    assert len({to_original_name(n) for n in NAMES}) == len(NAMES)
