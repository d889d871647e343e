"""Verifies that every property of a model that changes its latents changes their identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from pydantic import BaseModel
from safetensors.torch import save_file

from services.contract.identity import identity_digest
from services.denoiser.checkpoint.weights import weights_digest
from services.denoiser.device_thread import DeviceThread
from services.denoiser.model.identity import IRRELEVANT, model_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.model.spec import load_spec
from services.denoiser.model_registry import ModelRegistry
from services.denoiser.request import DenoiseJob
from services.denoiser.settings import DenoiserSettings
from services.scheduler.peers.messages import build_latent_identity
from tests.tiny_model import save_host_adapter, save_refiner, save_tiny_model, write_host_section

Identify = Callable[[str, str], str]


def identify(path: Path) -> latents_pb2.LatentIdentity:
    """Returns the identity of one request's latents, on which denoiser and scheduler must agree."""
    model = LoadedModel.load(path)
    plan, states = plan_pb2.Plan(), np.zeros((1, 16), np.float32)
    job = DenoiseJob("g", model, (12, 2, 4, 4), (1.0, 0.0), 0, states, plan, "r", 1, None)
    request = scheduler_pb2.GenerationSpec(
        shape=video_pb2.VideoShape(frames=2, height=8, width=8),
        schedule=latents_pb2.Schedule(sigmas=(1.0, 0.0)),
    )
    [info] = ModelRegistry([Predictor.eager(model)], DeviceThread(1)).describe()
    assert job.identity == build_latent_identity(request, info)
    return job.identity


@pytest.fixture
def identify_changed(tmp_path: Path) -> Identify:
    """Returns the digest of the identity after one replacement in the file of a model."""
    path = save_tiny_model(tmp_path)
    content = path.read_text()

    def change(old: str, new: str) -> str:
        assert old in content
        path.write_text(content.replace(old, new))
        return identity_digest(identify(path))

    return change


@pytest.mark.fault("identity")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("attend_padding = false", "attend_padding = true"),
        ("max_tokens = 8", "max_tokens = 7"),
        ("heads = 2\nhead_dim = 12", "heads = 4\nhead_dim = 6"),
        ("freq_dim = 16", "freq_dim = 16\neps = 1e-5"),
        ("freq_dim = 16", 'freq_dim = 16\nprediction = "data"'),
        ('encoder_id = "test-encoder@', 'encoder_id = "other-encoder@'),
        ('id = "tiny"', 'id = "tiny-2"'),
    ],
)
def test_field_that_changes_latents_changes_the_identity(
    identify_changed: Identify, old: str, new: str
) -> None:
    assert identify_changed(old, new) != identify_changed(old, old)


@pytest.mark.fault("identity")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fps = 8", "fps = 24"),
        ("upscale = 2", "upscale = 1"),
        ("max = 150", "max = 50"),
        ("shift = 5.0", "shift = 3.0"),
        ("freq_dim = 16", 'freq_dim = 16\ndtype = "bfloat16"'),
        ("freq_dim = 16", "freq_dim = 16\neps = 1e-6\nposition_order = 0"),
    ],
)
def test_field_that_does_not_change_latents_keeps_the_identity(
    identify_changed: Identify, old: str, new: str
) -> None:
    assert identify_changed(old, new) == identify_changed(old, old)


@pytest.mark.fault("identity")
def test_every_field_of_the_identity_is_set(tmp_path: Path) -> None:
    fields = {field.name for field, _ in identify(save_adapted_model(tmp_path)).ListFields()}
    # Only results that reused a donor have an approximation.
    known = {field.name for field in latents_pb2.LatentIdentity.DESCRIPTOR.fields}
    assert fields == known - {"approximation"}


@pytest.mark.fault("identity")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that no file may hold
def test_every_field_of_a_model_file_is_part_of_the_digest_unless_listed(tmp_path: Path) -> None:
    listed = set()
    for spec in (load_spec(save_adapted_model(tmp_path)), load_spec(save_model_with_vae(tmp_path / "vae"))):
        digest = model_digest(spec, fp8=False)
        for path, changed in change_every_field(spec):
            found = {name for name in IRRELEVANT if path == name or path.startswith(f"{name}.")}
            listed |= found
            assert (model_digest(changed, fp8=False) == digest) == bool(found), path
    assert listed == set(IRRELEVANT)  # no entry without a field


@pytest.mark.fault("identity")
def test_host_adapter_keeps_the_identity_and_is_described(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    plain = identify(path)
    file = save_host_adapter(path)
    assert identify(path) == plain
    model = LoadedModel.load(path)
    [info] = ModelRegistry([Predictor.eager(model)], DeviceThread(1)).describe()
    assert model.host is not None
    [adapter] = model.host.adapters
    described = info.host_adapter
    assert (described.adapter_id, described.digest, described.scale) == ("host", adapter.digest, 1.0)
    write_host_section(path, file, scale="0.5")
    assert identify(path) == plain


@pytest.mark.fault("identity")
def test_8_bit_floats_change_the_digest(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    assert LoadedModel.load(path, fp8=True).model_digest != LoadedModel.load(path).model_digest
    for backend, fp8, expected in (
        ("tensorrt", True, True),
        ("tensorrt", False, False),
        ("torch", True, False),
    ):
        settings = DenoiserSettings.model_validate({"backend": backend, "engine_fp8": fp8})
        assert settings.computes_in_fp8 == expected


def save_adapted_model(folder: Path) -> Path:
    """Writes a model with one adapter and a text refiner."""
    path, file = save_tiny_model(folder), folder / "style.safetensors"
    save_refiner(path)
    save_file({"diffusion_model.head.head.diff_b": torch.ones(48)}, file)
    adapter = f'\n[[adapters]]\nid = "style"\nfile = "style.safetensors"\nsha256 = "{weights_digest(file)}"\n'
    path.write_text(path.read_text() + adapter)
    return path


def save_model_with_vae(folder: Path) -> Path:
    """Writes the file of a model with Wan's autoencoder, without weights."""
    path = save_tiny_model(folder)
    config = {"_class_name": "AutoencoderKLWan", "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vae.safetensors").touch()
    codec = f'kind = "wan-vae"\nfile = "vae.safetensors"\nsha256 = "{"0" * 64}"'
    content = path.read_text().replace('kind = "space-to-depth"\ntemporal = 1\nspatial = 2', codec)
    for old, new in (
        ("channels = 12", "channels = 16"),
        ("min = 1, max = 12", "min = 1, max = 13, multiple = 4"),
        ("min = 8, max = 64, multiple = 4", "min = 16, max = 64, multiple = 16"),
        ("frames = 2\nheight = 8\nwidth = 8", "frames = 1\nheight = 16\nwidth = 16"),
    ):
        assert old in content
        content = content.replace(old, new)
    path.write_text(content)
    return path


def change_every_field(value: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name of every field below a model, and a copy of the model in which only it is changed."""
    for name in type(value).model_fields:
        below = f"{path}.{name}".removeprefix(".")
        for leaf, changed in change(getattr(value, name), below):
            yield leaf, value.model_copy(update={name: changed})


def change(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        yield from change_every_field(value, path)
    elif isinstance(value, tuple):
        for i, element in enumerate(value):
            for leaf, changed in change(element, path):
                yield leaf, (*value[:i], changed, *value[i + 1 :])
    elif isinstance(value, bool):
        yield path, not value
    elif isinstance(value, int | float):
        yield path, value + 1
    else:
        yield path, f"{value}x"
