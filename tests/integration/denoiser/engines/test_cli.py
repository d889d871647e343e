"""`chorus engine`, as a user runs it, on a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.denoiser.engines.cli import app
from tests.tiny_model import save_tiny_model

pytest.importorskip("onnxruntime")


def engine(*arguments: object, status: int = 0) -> list[dict[str, Any]]:
    """The JSON lines of a command that ends with `status`."""
    found = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"])
    assert found.exit_code == status, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=2)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    [line] = engine("build", model, "--runtime", "onnxruntime", "--engines", made)
    assert line["engine"]["key"]["precision"] == "float32"
    return made


def test_built_is_listed_and_inspected(folder: Path) -> None:
    [listed] = engine("list", "--engines", folder)
    assert listed["key"]["model_id"] == "tiny"
    [line] = engine("inspect", listed["engine"][:6], "--engines", folder)
    assert line["engine"]["digest"] == listed["engine"]
    assert "export_seconds" in line["engine"]["facts"]


def test_verified_against_torch_and_refused_when_damaged(model: Path, folder: Path) -> None:
    [listed] = engine("list", "--engines", folder)
    [line] = engine("verify", listed["engine"], model, "--engines", folder)
    assert set(line["relative_error"]) == {"1", "2", "7", "8"}
    assert max(line["relative_error"].values()) <= 1e-5
    data = next((folder / listed["engine"]).glob("*.data"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    [line] = engine("verify", listed["engine"], model, "--engines", folder, status=2)
    assert data.name in line["error"]["message"]
    data.write_bytes(whole)


def test_an_engine_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path, layers=2, seed=1)
    [listed] = engine("list", "--engines", folder)
    [line] = engine("verify", listed["engine"], other, "--engines", folder, status=2)
    assert "other weights" in line["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int4"], "precision: must be one of bfloat16, float16, float32"),
        (["--tokens", "5,1,9"], "--tokens: must be MIN,OPT,MAX"),
        (["--keys", "many"], "--keys: must be MIN,OPT,MAX"),
        (["--runtime", "tensorrt_x"], "TensorRT cannot be imported"),
    ],
)
def test_bad_input_is_named(model: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    [line] = engine("build", model, "--engines", tmp_path, *arguments, status=2)
    assert words in line["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_built_is_nothing_listed(tmp_path: Path) -> None:
    assert engine("list", "--engines", tmp_path) == []
    [line] = engine("inspect", "ab", "--engines", tmp_path, status=2)
    assert "0 engines" in line["error"]["message"]
