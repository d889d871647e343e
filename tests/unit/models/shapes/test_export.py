"""Tests of the export of trained weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.shapes.export import export, write_digests
from services.denoiser.checkpoint.weights import weights_digest

MODEL = """id = "shapes"

[weights]
file = "weights/student.safetensors"
sha256 = "00"

[host]
id = "host-r16"
file = "weights/host.safetensors"
sha256 = "11"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.toml").write_text(MODEL)
    save_file({"proj_out.weight": torch.randn(4, 4)}, tmp_path / "ema.safetensors")
    return tmp_path


@pytest.mark.parametrize(("target", "other"), [("student", "11"), ("host", "00")])
def test_export_writes_half_precision_and_its_own_digest(folder: Path, target: str, other: str) -> None:
    weights = export(folder / "ema.safetensors", target, folder)
    exported = load_file(weights)["proj_out.weight"]
    assert exported.dtype == torch.float16
    assert torch.allclose(
        exported.float(), load_file(folder / "ema.safetensors")["proj_out.weight"], atol=2e-3
    )
    text = (folder / "model.toml").read_text()
    assert f'sha256 = "{weights_digest(weights)}"' in text
    assert f'sha256 = "{other}"' in text


def test_export_refuses_a_section_without_digest(folder: Path) -> None:
    (folder / "model.toml").write_text(MODEL.replace('sha256 = "11"\n', ""))
    with pytest.raises(ValueError, match="host"):
        export(folder / "ema.safetensors", "host", folder)


def test_digests_of_other_files_follow_their_contents(folder: Path) -> None:
    (folder / "weights").mkdir()
    refiner = folder / "weights" / "refiner.safetensors"
    refiner.write_bytes(b"weights")
    section = '\n[text.refiner]\nfile = "weights/refiner.safetensors"\nsha256 = "22"\nlayers = 2\n'
    (folder / "model.toml").write_text(MODEL + section)
    assert write_digests(folder) == {"weights/refiner.safetensors"}
    text = (folder / "model.toml").read_text()
    assert f'sha256 = "{weights_digest(refiner)}"\nlayers = 2' in text
    assert 'sha256 = "00"' in text  # of weights that are not there
