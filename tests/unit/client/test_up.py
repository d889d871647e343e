"""What `chorus up` decides before and around the children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chorus_cli.local import model_files, up
from chorus_cli.main import app
from chorus_cli.output import BAD_INPUT
from chorus_client import endpoints
from chorus_rpc.errors import ChorusError
from typer.testing import CliRunner


def test_ports_differ_and_said_ones_win() -> None:
    ports = up.choose_ports({"CHORUS_CACHE_PORT": "7999"})
    assert len(set(ports.values())) == 4
    assert ports["cache"] == 7999


@pytest.mark.parametrize("said", ["", "0", "65536", "http", "-1", "7.5"])
def test_a_variable_that_is_no_port_is_named(said: str) -> None:
    with pytest.raises(ChorusError, match=r"CHORUS_DENOISER_PORT: must be a port, 1 to 65535"):
        up.choose_ports({"CHORUS_DENOISER_PORT": said})


def test_services_find_each_other_and_keep_everything_in_the_directory(tmp_path: Path) -> None:
    ports = {"embedder": 1, "cache": 2, "denoiser": 3, "scheduler": 4}
    variables = up.build_environment({"PATH": "/bin"}, tmp_path, ports)
    assert (
        variables["CHORUS_SCHEDULER_CACHE_TARGET"]
        == variables["CHORUS_DENOISER_CACHE_TARGET"]
        == "127.0.0.1:2"
    )
    assert variables["CHORUS_SCHEDULER_DENOISER_TARGET"] == "127.0.0.1:3"
    assert variables["PATH"] == "/bin"
    stores = [
        variables[f"CHORUS_{name}"] for name in ("CACHE_MILVUS_URI", "CACHE_BLOB_DIR", "SCHEDULER_DATABASE")
    ]
    assert all(Path(store).is_relative_to(tmp_path) for store in stores)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    said = {"CHORUS_CACHE_MILVUS_URI": "http://milvus:19530", "CHORUS_DENOISER_DRAIN_SECONDS": "90"}
    variables = up.build_environment(said, tmp_path, up.choose_ports({}))
    assert variables["CHORUS_CACHE_MILVUS_URI"] == "http://milvus:19530"
    assert up.longest_drain(variables) == 90


def model_file(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_models_bring_the_encoders_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model_file(tmp_path / "own" / "model.toml", '[text]\nencoder = "umt5:../pipeline"')
    hub = model_file(tmp_path / "hub.toml", '[text]\nencoder = "umt5:hf://team/wan@main"')
    small = model_file(tmp_path / "small.toml", '[text]\nencoder_id = "all-minilm-l6-v2@0"')
    monkeypatch.chdir(tmp_path)
    found = up.build_environment({}, tmp_path, up.choose_ports({}), [Path("own/model.toml"), hub, small, own])
    assert found["CHORUS_DENOISER_MODELS"] == f"{own},{hub},{small},{own}"
    assert (
        found["CHORUS_EMBEDDER_CONDITIONING"]
        == f"umt5:{tmp_path / 'pipeline'},umt5:hf://team/wan@main,minilm"
    )
    assert model_files.choose_models([], {}) == {}


def test_models_of_the_environment_bring_theirs_unless_it_says_otherwise(tmp_path: Path) -> None:
    file = model_file(tmp_path / "model.toml", '[text]\nencoder = "clip:/encoders/clip"')
    base, ports = {"CHORUS_DENOISER_MODELS": str(file)}, up.choose_ports({})
    assert (
        up.build_environment(base, tmp_path, ports)["CHORUS_EMBEDDER_CONDITIONING"] == "clip:/encoders/clip"
    )
    said = {**base, "CHORUS_EMBEDDER_CONDITIONING": "umt5:/mine"}
    assert up.build_environment(said, tmp_path, ports)["CHORUS_EMBEDDER_CONDITIONING"] == "umt5:/mine"
    with pytest.raises(ChorusError, match="CHORUS_DENOISER_MODELS says which models, too"):
        model_files.choose_models([file], base)


@pytest.mark.parametrize("text", ["[text", "text = 1", "[text]\nencoder = 7", None])
def test_a_model_file_that_is_none_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "model.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ChorusError, match=str(file)):
        model_files.choose_models([file], {})


def test_the_command_refuses_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    done = CliRunner().invoke(app, ["up", "--dir", str(tmp_path), "--model", str(missing), "--json"])
    assert done.exit_code == BAD_INPUT
    assert f"{missing}: cannot be read" in json.loads(done.stdout)["error"]["message"]


def test_a_second_up_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        up.locked(tmp_path),
        pytest.raises(ChorusError, match=rf"process {os.getpid()}\) runs in"),
        up.locked(tmp_path),
    ):
        pass
    with up.locked(tmp_path):
        pass


def test_the_lock_holds_while_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    with up.locked(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
        )
    with child, pytest.raises(ChorusError, match="another `chorus up`"), up.locked(tmp_path):
        pass
    with up.locked(tmp_path):
        pass


def test_missing_packages_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(up._NEEDS, "denoiser", ("torch_that_is_not_there",))
    assert up.missing_modules()["denoiser"] == ["torch_that_is_not_there"]
    with pytest.raises(ChorusError, match=r"pip install '\.\[all\]'.*denoiser needs torch_that"):
        up._require_installed()


def test_endpoints_of_a_running_up_are_found_and_stale_ones_are_not(tmp_path: Path) -> None:
    assert endpoints.resolve("scheduler", None, tmp_path) == "localhost:7400"
    endpoints.write(
        tmp_path, endpoints.Endpoints(os.getpid(), {"scheduler": "127.0.0.1:5", "cache": "127.0.0.1:6"})
    )
    assert endpoints.resolve("scheduler", None, tmp_path) == "127.0.0.1:5"
    assert endpoints.resolve("cache", None, tmp_path) == "127.0.0.1:6"
    assert endpoints.resolve("cache", "there:1", tmp_path) == "there:1"

    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait()
    endpoints.write(tmp_path, endpoints.Endpoints(gone.pid, {"scheduler": "127.0.0.1:5"}))
    assert endpoints.resolve("scheduler", None, tmp_path) == "localhost:7400"
    assert [path.name for path in tmp_path.iterdir()] == [endpoints.FILE]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": "x"}', json.dumps({"pid": -1, "targets": {}})]
)
def test_a_damaged_endpoints_file_is_no_up(tmp_path: Path, text: str) -> None:
    (tmp_path / endpoints.FILE).write_text(text)
    assert endpoints.running(tmp_path) is None
