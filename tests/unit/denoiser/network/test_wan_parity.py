"""Tests of network, sampler and codec against diffusers, on a random pipeline saved by diffusers."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import parity

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity.save_checkpoint(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_network_equals_diffusers(model_file: Path, dtype: torch.dtype) -> None:
    errors = parity.measure_network_errors(model_file, dtype)
    assert len(errors) == len(parity.VIDEOS)
    assert max(errors.values()) <= BOUNDS[dtype], errors


@pytest.mark.parametrize("dtype", BOUNDS)
def test_four_steps_and_codec_equal_the_pipeline(model_file: Path, dtype: torch.dtype) -> None:
    errors = parity.measure_loop_errors(model_file, dtype)
    assert len(errors) == 2 * len(parity.VIDEOS)
    assert max(errors.values()) <= BOUNDS[dtype], errors


def test_four_steps_on_onnxruntime_equal_the_pipeline(model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    errors = parity.measure_loop_errors(
        model_file, torch.float32, partial(parity.run_on_onnxruntime, tmp_path)
    )
    assert max(errors.values()) <= BOUNDS[torch.float32], errors
    eager = parity.measure_loop_errors(model_file, torch.float32)
    assert errors != eager  # onnxruntime did run


@pytest.mark.fault("partial-model")
def test_pipeline_with_a_timestep_per_token_is_equalled(model_file: Path, tmp_path: Path) -> None:
    """Verifies text-to-video of Wan2.2-TI2V-5B, whose pipeline expands the timestep to every token."""
    folder = shutil.copytree(model_file.parent, tmp_path / "ti2v")
    index = folder / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_bytes()) | {"expand_timesteps": True}))
    errors = parity.measure_loop_errors(folder / model_file.name, torch.float32)
    assert max(errors.values()) <= BOUNDS[torch.float32], errors


def test_bfloat16_is_as_close_to_float32_as_in_diffusers(model_file: Path) -> None:
    assert 0 < parity.measure_rounding(model_file, torch.bfloat16) <= BOUNDS[torch.bfloat16]


def test_error_is_relative_to_the_reference() -> None:
    want = torch.tensor([3.0, 4.0])
    assert parity.relative_error(want, want) == 0
    assert parity.relative_error(want * 1.01, want) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ValueError, match="shapes differ"):
        parity.relative_error(want, want[None])
