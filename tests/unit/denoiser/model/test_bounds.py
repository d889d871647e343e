"""Verifies that a model file states only sizes that its codec, its patches and the services can serve."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.denoiser.codec import Geometry
from services.denoiser.model.sizes import AXES, find_size_fault
from services.denoiser.model.spec import ModelSpec, SpecError, load_spec
from services.denoiser.model_registry import check_message_sizes
from services.denoiser.settings import DenoiserSettings
from tests.tiny_model import save_tiny_model

HEIGHT = "height = { min = 8, max = 64, multiple = 4 }"
FRAMES = "frames = { min = 1, max = 12 }"
CODEC = 'kind = "space-to-depth"\ntemporal = 1\nspatial = 2'


def load(folder: Path, *changes: tuple[str, str]) -> ModelSpec:
    """Loads a model file with replacements."""
    path = save_tiny_model(folder)
    content = path.read_text()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    path.write_text(content)
    return load_spec(path)


def replace_height(low: int, high: int, multiple: int) -> list[tuple[str, str]]:
    return [(HEIGHT, f"height = {{ min = {low}, max = {high}, multiple = {multiple} }}")]


def with_vae(folder: Path, temporal: int, spatial: int, channels: int) -> list[tuple[str, str]]:
    """Returns the replacements that give a model Wan's autoencoder; Wan2.2-TI2V-5B has 4, 16 and 48."""
    config = {
        "_class_name": "AutoencoderKLWan",
        "z_dim": channels,
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
        "scale_factor_temporal": temporal,
        "scale_factor_spatial": spatial,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vae.safetensors").touch()
    return [
        (CODEC, f'kind = "wan-vae"\nfile = "vae.safetensors"\nsha256 = "{"0" * 64}"'),
        ("channels = 12", f"channels = {channels}"),
    ]


@pytest.mark.fault("bounds")
def test_multiple_below_that_of_codec_and_patch_is_refused_with_the_right_one(tmp_path: Path) -> None:
    changes = with_vae(tmp_path, 4, 16, 48)
    sizes = "{{ min = {}, max = {}, multiple = {} }}"
    changes += [
        (FRAMES, "frames = { min = 1, max = 81, multiple = 4 }"),
        (HEIGHT, "height = " + sizes.format(256, 832, 16)),
        ("width = { min = 8, max = 64, multiple = 4 }", "width = " + sizes.format(240, 840, 8)),
        ("frames = 2\nheight = 8\nwidth = 8", "frames = 5\nheight = 480\nwidth = 832"),
    ]
    with pytest.raises(SpecError) as caught:
        load(tmp_path, *changes)
    message = str(caught.value)
    assert "bounds.height: must be multiples of 32 (codec 16, patch 2), for instance " in message
    assert f"height = {sizes.format(256, 832, 32)}" in message
    changes[3] = (HEIGHT, "height = " + sizes.format(256, 832, 32))
    with pytest.raises(SpecError, match=r"width = \{ min = 256, max = 832, multiple = 32 \}"):
        load(tmp_path, *changes)
    changes[4] = (changes[4][0], "width = " + sizes.format(256, 832, 32))
    assert load(tmp_path, *changes).codec.geometry.latent_shape(81, 480, 832) == (48, 21, 30, 52)


@pytest.mark.fault("bounds")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (replace_height(8, 64, 2), "bounds.height: must be multiples of 4 (codec 2, patch 2)"),
        (replace_height(6, 66, 4), "height = { min = 8, max = 64, multiple = 4 }"),
        (replace_height(8, 62, 6), "height = { min = 8, max = 56, multiple = 12 }"),
        (replace_height(10, 10, 1), "bounds.height: must be multiples of 4 (codec 2, patch 2)"),
        ([("[1, 2, 2]", "[2, 2, 2]")], "bounds.frames: must be multiples of 2 (codec 1, patch 2)"),
        ([("max = 150", "max = 201")], "bounds.steps.max: must be at most 200"),
        (
            [
                ("[1, 2, 2]", "[1, 1, 1]"),
                ("spatial = 2", "spatial = 1"),
                ("channels = 12", "channels = 3"),
                ("multiple = 4", "multiple = 1"),
                ("upscale = 2", "upscale = 1"),
            ],
            "video.upscale: H.264 needs even sizes; bounds.height allows 9",
        ),
        ([("test-encoder", "x" * 513)], "text.encoder_id: String should have at most 512"),
    ],
)
def test_bound_that_cannot_be_served_is_refused(
    tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, *changes)
    assert message in str(caught.value)


@pytest.mark.fault("bounds")
def test_frames_of_a_causal_codec_are_one_more_than_a_multiple(tmp_path: Path) -> None:
    changes = with_vae(tmp_path, 4, 8, 16)
    changes += [
        (HEIGHT, "height = { min = 16, max = 64, multiple = 16 }"),
        ("width = { min = 8, max = 64, multiple = 4 }", "width = { min = 16, max = 64, multiple = 16 }"),
        ("frames = 2\nheight = 8\nwidth = 8", "frames = 8\nheight = 16\nwidth = 16"),
        (FRAMES, "frames = { min = 8, max = 80, multiple = 4 }"),
    ]
    with pytest.raises(SpecError, match=r"bounds.frames: must be 1 plus multiples of 4 .*min = 9, max = 77"):
        load(tmp_path, *changes)


@pytest.mark.fault("bounds")
@given(
    geometry=st.builds(Geometry, st.just(1), st.integers(1, 5), st.integers(1, 9), causal=st.booleans()),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    axis=st.sampled_from(AXES),
    low=st.integers(1, 40),
    steps=st.integers(0, 4),
    multiple=st.integers(1, 30),
)
def test_bound_is_accepted_exactly_if_every_size_has_whole_patches(
    geometry: Geometry, patch: tuple[int, int, int], axis: str, low: int, steps: int, multiple: int
) -> None:
    sizes = range(low, low + steps * multiple + 1, multiple)
    bound = {"min": low, "max": sizes[-1], "multiple": multiple}
    fault = find_size_fault(geometry, patch, axis, bound)
    assert (fault is None) == all(has_whole_patches(geometry, patch, axis, size) for size in sizes)
    if fault is not None and "min" in fault:
        found = [int(number) for number in re.findall(r"= (\d+)", fault)]
        proposed = dict(zip(("min", "max", "multiple"), found, strict=True))
        assert find_size_fault(geometry, patch, axis, proposed) is None
        assert low <= proposed["min"] <= proposed["max"] <= bound["max"]


def has_whole_patches(geometry: Geometry, patch: tuple[int, int, int], axis: str, size: int) -> bool:
    """Returns whether a video that fits otherwise can have this size."""
    fitting = {"frames": 1 if geometry.causal else geometry.temporal_factor, "height": 1, "width": 1}
    fitting |= dict.fromkeys(("height", "width"), geometry.spatial_factor)
    try:
        cells = geometry.latent_shape(**(fitting | {axis: size}))[1:]
    except ValueError:
        return False
    return cells[AXES.index(axis)] % patch[AXES.index(axis)] == 0


@pytest.mark.fault("bounds")
def test_token_states_larger_than_a_message_are_refused(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    path.write_text(path.read_text().replace("max_tokens = 8", "max_tokens = 4096"))
    settings = DenoiserSettings.model_validate({"max_message_bytes": 256 << 10})
    with pytest.raises(SpecError, match=r"max_tokens: 4096 token .* CHORUS_DENOISER_MAX_MESSAGE_BYTES, now"):
        check_message_sizes(path, load_spec(path), settings)
    check_message_sizes(path, load_spec(path), DenoiserSettings())
