"""Verifies the commands of `chorus engine` on a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.denoiser.engines.cli import app
from tests.tiny_model import save_host_adapter, save_tiny_model

pytest.importorskip("onnxruntime")


def engine(*arguments: object, status: int = 0) -> list[dict[str, Any]]:
    """Runs a command, checks its exit status and returns its JSON lines."""
    result = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"])
    assert result.exit_code == status, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=2)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines")
    [line] = engine("build", model, "--runtime", "onnxruntime", "--engines", path)
    assert line["engine"]["key"]["precision"] == "float32"
    return path


def test_built_engine_is_listed_and_inspected(folder: Path) -> None:
    [listed] = engine("list", "--engines", folder)
    assert listed["key"]["model_id"] == "tiny"
    [line] = engine("inspect", listed["engine"][:6], "--engines", folder)
    assert line["engine"]["digest"] == listed["engine"]
    assert "export_seconds" in line["engine"]["facts"]


def test_verify_compares_with_torch_and_rejects_damaged_engines(model: Path, folder: Path) -> None:
    [listed] = engine("list", "--engines", folder)
    [line] = engine("verify", listed["engine"], model, "--engines", folder)
    assert set(line["relative_error"]) == {"1", "2", "7", "8"}
    assert max(line["relative_error"].values()) <= 1e-5
    data = next((folder / listed["engine"]).glob("*.data"))
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    [line] = engine("verify", listed["engine"], model, "--engines", folder, status=2)
    assert data.name in line["error"]["message"]
    data.write_bytes(content)


def test_verify_rejects_an_engine_of_other_weights(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path, layers=2, seed=1)
    [listed] = engine("list", "--engines", folder)
    [line] = engine("verify", listed["engine"], other, "--engines", folder, status=2)
    assert "other weights" in line["error"]["message"]


def test_model_with_a_host_adapter_has_two_engines(tmp_path: Path) -> None:
    path, folder = save_tiny_model(tmp_path / "model", layers=2), tmp_path / "engines"
    save_host_adapter(path)
    plain, host = engine("build", path, "--runtime", "onnxruntime", "--engines", folder)
    assert [line["engine"]["facts"]["adapters"] for line in (plain, host)] == [[], ["host"]]
    assert engine("build", path, "--runtime", "onnxruntime", "--engines", folder) == [plain, host]
    for line in (plain, host):
        [verified] = engine("verify", line["engine"]["digest"], path, "--engines", folder)
        assert max(verified["relative_error"].values()) <= 1e-5
    listed = CliRunner().invoke(app, ["list", "--engines", str(folder)]).stdout.splitlines()
    assert sorted("float32 with host" in line for line in listed) == [False, True]
    # Another adapter needs another engine for the host only.
    save_host_adapter(path, seed=2)
    rebuilt = engine("build", path, "--runtime", "onnxruntime", "--engines", folder)
    assert rebuilt[0] == plain
    assert rebuilt[1]["engine"]["digest"] != host["engine"]["digest"]
    [line] = engine("verify", host["engine"]["digest"], path, "--engines", folder, status=2)
    assert "other weights or adapters" in line["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "precision: must be one of bfloat16, float16, float32"),
        (["--tokens", "5,1,9"], "--tokens: must be MIN,OPT,MAX"),
        (["--keys", "many"], "--keys: must be MIN,OPT,MAX"),
        (["--runtime", "tensorrt_x"], "TensorRT cannot be imported"),
    ],
)
def test_build_names_the_invalid_option(
    model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    [line] = engine("build", model, "--engines", tmp_path, *arguments, status=2)
    assert message in line["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_lists_no_engines(tmp_path: Path) -> None:
    assert engine("list", "--engines", tmp_path) == []
    [line] = engine("inspect", "ab", "--engines", tmp_path, status=2)
    assert "0 engines" in line["error"]["message"]
