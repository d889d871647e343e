"""Verifies the decisions of `chorus up`: ports, environment, model files, lock and requirements."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from chorus_cli.local import addresses, model_files, supervise, up
from chorus_cli.main import app
from chorus_cli.output import BAD_INPUT, Output
from chorus_client import endpoints
from chorus_rpc.errors import ChorusError
from typer.testing import CliRunner


@pytest.fixture
def default_ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Default ports that are free on this machine."""
    with contextlib.ExitStack() as bound:
        free = [addresses.bind_port(bound, 0) for _ in addresses.SERVICES]
    ports = {service: port for service, port in zip(addresses.SERVICES, free, strict=True) if port}
    monkeypatch.setattr(addresses, "DEFAULT_PORTS", ports)
    return ports


def test_default_ports_are_those_of_the_client() -> None:
    assert addresses.DEFAULT_PORTS == {
        "scheduler": 7400,
        "embedder": 7401,
        "cache": 7402,
        "denoiser": 7403,
        "gateway": 7404,
    }


def test_services_take_their_default_ports_if_they_are_free(default_ports: dict[str, int]) -> None:
    ports = addresses.choose_ports({})
    assert ports == default_ports
    assert addresses.describe_moved_ports({}, ports) == []


def test_port_in_use_is_replaced_by_a_free_one_and_reported(default_ports: dict[str, int]) -> None:
    with socket.create_server(("127.0.0.1", default_ports["scheduler"])):
        ports = addresses.choose_ports({})
    assert len(set(ports.values())) == 5
    assert {name for name in ports if ports[name] != default_ports[name]} == {"scheduler"}
    used, taken = default_ports["scheduler"], ports["scheduler"]
    assert addresses.describe_moved_ports({}, ports) == [
        f"port {used} is in use: the scheduler listens at 127.0.0.1:{taken}"
    ]


def test_ports_differ_and_the_environment_takes_precedence(default_ports: dict[str, int]) -> None:
    given = {"CHORUS_CACHE_PORT": str(default_ports["scheduler"])}
    ports = addresses.choose_ports(given)
    assert len(set(ports.values())) == 5
    assert ports["cache"] == default_ports["scheduler"] != ports["scheduler"]
    assert len(addresses.describe_moved_ports(given, ports)) == 1


@pytest.mark.parametrize("text", ["", "0", "65536", "http", "-1", "7.5"])
def test_variable_that_is_not_a_port_is_named(text: str) -> None:
    with pytest.raises(ChorusError, match=r"CHORUS_DENOISER_PORT: must be a port, 1 to 65535"):
        addresses.choose_ports({"CHORUS_DENOISER_PORT": text})


def test_port_of_two_services_is_refused() -> None:
    with pytest.raises(ChorusError, match=r"CHORUS_SCHEDULER_PORT: must differ .* not be 7505, too"):
        addresses.choose_ports({"CHORUS_CACHE_PORT": "7505", "CHORUS_SCHEDULER_PORT": "7505"})


def test_requested_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ChorusError, match=f"CHORUS_CACHE_PORT: port {port} of 127.0.0.1 is in use"):
            addresses.choose_ports({"CHORUS_CACHE_PORT": str(port)})


@pytest.mark.fault("helm")
def test_services_are_reached_where_they_listen(tmp_path: Path) -> None:
    given = {
        "CHORUS_EMBEDDER_HOST": "::",
        "CHORUS_CACHE_HOST": "::1",
        "CHORUS_DENOISER_HOST": "[::1]",
    }
    ports = addresses.choose_ports(given)
    assert addresses.build_targets(given, ports) == {
        "embedder": f"127.0.0.1:{ports['embedder']}",
        "cache": f"[::1]:{ports['cache']}",
        "denoiser": f"[::1]:{ports['denoiser']}",
        "scheduler": f"127.0.0.1:{ports['scheduler']}",
        "gateway": f"127.0.0.1:{ports['gateway']}",
    }
    variables = up.build_environment(given, tmp_path, ports)
    assert variables["CHORUS_SCHEDULER_CACHE_TARGET"] == f"[::1]:{ports['cache']}"
    assert variables["CHORUS_CACHE_HOST"] == "::1"


@pytest.mark.fault("helm")
def test_port_in_use_on_the_address_of_the_service_is_refused() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        given = {"CHORUS_CACHE_PORT": str(port), "CHORUS_CACHE_HOST": "::1"}
        with pytest.raises(ChorusError, match=f"CHORUS_CACHE_PORT: port {port} of ::1 is in use"):
            addresses.choose_ports(given)


@pytest.mark.fault("helm")
@pytest.mark.parametrize("host", ["", "127.0.0.1:7402", "192.0.2.1", "no-such-host.invalid"])
def test_address_at_which_no_service_can_listen_is_named(host: str) -> None:
    with pytest.raises(ChorusError, match="CHORUS_CACHE_HOST: "):
        addresses.choose_ports({"CHORUS_CACHE_HOST": host})


def test_cache_serves_every_tenant_if_the_keys_name_them_and_it_is_reachable_from_here_only(
    tmp_path: Path,
) -> None:
    ports = {"embedder": 1, "cache": 2, "denoiser": 3, "scheduler": 4, "gateway": 5}
    keys = {"CHORUS_SCHEDULER_API_KEYS": "keys.json", "CHORUS_TOKEN": "chorus_x"}
    for given, tenants in (
        ({}, "default"),
        ({"CHORUS_SCHEDULER_TENANT": "studio"}, "studio"),
        (keys, "*"),
        ({**keys, "CHORUS_CACHE_HOST": "::1"}, "*"),
        ({**keys, "CHORUS_CACHE_HOST": "0.0.0.0"}, "default"),
        ({**keys, "CHORUS_CACHE_KEYLESS_TENANTS": "acme"}, "acme"),
    ):
        variables = up.build_environment(given, tmp_path, ports)
        assert variables["CHORUS_CACHE_KEYLESS_TENANTS"] == tenants
        assert "CHORUS_TOKEN" not in variables, "the services need no token of a client"


@pytest.mark.parametrize("service", ["SCHEDULER", "GATEWAY"])
async def test_tls_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setenv(f"CHORUS_{service}_TLS_CERTIFICATE", "server.pem")
    with pytest.raises(ChorusError, match="chorus up does not support TLS"):
        await up.run_up(tmp_path / "chorus", [], 1.0, Output(as_json=False))
    assert not (tmp_path / "chorus").exists()


def test_services_find_each_other_and_keep_everything_in_the_directory(tmp_path: Path) -> None:
    ports = {"embedder": 1, "cache": 2, "denoiser": 3, "scheduler": 4, "gateway": 5}
    variables = up.build_environment({"PATH": "/bin"}, tmp_path, ports)
    assert (
        variables["CHORUS_SCHEDULER_CACHE_TARGET"]
        == variables["CHORUS_DENOISER_CACHE_TARGET"]
        == "127.0.0.1:2"
    )
    assert variables["CHORUS_SCHEDULER_DENOISER_TARGET"] == "127.0.0.1:3"
    assert variables["CHORUS_GATEWAY_SCHEDULER_TARGET"] == "127.0.0.1:4"
    assert variables["PATH"] == "/bin"
    stores = [
        variables[f"CHORUS_{name}"] for name in ("CACHE_MILVUS_URI", "CACHE_BLOB_DIR", "SCHEDULER_DATABASE")
    ]
    assert all(Path(store).is_relative_to(tmp_path) for store in stores)


def test_variables_of_the_user_take_precedence(tmp_path: Path) -> None:
    given = {"CHORUS_CACHE_MILVUS_URI": "http://milvus:19530", "CHORUS_DENOISER_DRAIN_SECONDS": "90"}
    variables = up.build_environment(given, tmp_path, addresses.choose_ports({}))
    assert variables["CHORUS_CACHE_MILVUS_URI"] == "http://milvus:19530"
    assert up.longest_drain(variables) == 90


def test_variables_of_the_command_line_are_not_passed_to_the_services(tmp_path: Path) -> None:
    given = {"CHORUS_CACHE_TARGET": "there:1", "CHORUS_TARGET": "there:2", "CHORUS_CACHE_LOG_LEVEL": "debug"}
    variables = up.build_environment(given, tmp_path, addresses.choose_ports({}))
    assert not {"CHORUS_CACHE_TARGET", "CHORUS_TARGET"} & set(variables)
    assert variables["CHORUS_CACHE_LOG_LEVEL"] == "debug"


def model_file(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_encoders_of_the_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model_file(tmp_path / "own" / "model.toml", '[text]\nencoder = "umt5:../pipeline"')
    hub = model_file(tmp_path / "hub.toml", '[text]\nencoder = "umt5:hf://team/wan@main"')
    small = model_file(tmp_path / "small.toml", '[text]\nencoder_id = "all-minilm-l6-v2@0"')
    monkeypatch.chdir(tmp_path)
    found = up.build_environment(
        {}, tmp_path, addresses.choose_ports({}), [Path("own/model.toml"), hub, small, own]
    )
    assert found["CHORUS_DENOISER_MODELS"] == f"{own},{hub},{small},{own}"
    assert (
        found["CHORUS_EMBEDDER_CONDITIONING"]
        == f"umt5:{tmp_path / 'pipeline'},umt5:hf://team/wan@main,minilm"
    )
    assert model_files.choose_models([], {}) == {}


def test_encoders_of_models_in_the_environment_are_loaded_unless_it_names_others(tmp_path: Path) -> None:
    file = model_file(tmp_path / "model.toml", '[text]\nencoder = "clip:/encoders/clip"')
    base, ports = {"CHORUS_DENOISER_MODELS": str(file)}, addresses.choose_ports({})
    assert (
        up.build_environment(base, tmp_path, ports)["CHORUS_EMBEDDER_CONDITIONING"] == "clip:/encoders/clip"
    )
    given = {**base, "CHORUS_EMBEDDER_CONDITIONING": "umt5:/mine"}
    assert up.build_environment(given, tmp_path, ports)["CHORUS_EMBEDDER_CONDITIONING"] == "umt5:/mine"
    with pytest.raises(ChorusError, match="CHORUS_DENOISER_MODELS names models, too"):
        model_files.choose_models([file], base)


@pytest.mark.parametrize("text", ["[text", "text = 1", "[text]\nencoder = 7", None])
def test_invalid_model_file_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "model.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ChorusError, match=str(file)):
        model_files.choose_models([file], {})


def test_command_rejects_a_model_file_that_does_not_exist(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    done = CliRunner().invoke(app, ["up", "--dir", str(tmp_path), "--model", str(missing), "--json"])
    assert done.exit_code == BAD_INPUT
    assert f"{missing}: cannot be read" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.fault("misleading-refusals")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x10\0\0\0\0\0\0\0{}              \xff",
            "it is a safetensors file; a model is described by a TOML file",
        ),
        (b"GGUF\x03\0\0\0\xff", "it is a GGUF file"),
        (None, "is a folder; a model is described by a TOML file"),
    ],
)
def test_weights_in_the_place_of_a_model_file_are_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    given = tmp_path / "given"
    given.mkdir() if content is None else given.write_bytes(content)
    done = CliRunner().invoke(app, ["up", "--dir", str(tmp_path), "--model", str(given), "--json"])
    assert done.exit_code == BAD_INPUT
    assert message in json.loads(done.stdout)["error"]["message"]


def test_second_up_in_the_same_directory_is_rejected(tmp_path: Path) -> None:
    with (
        up.locked(tmp_path),
        pytest.raises(ChorusError, match=rf"process {os.getpid()}\) runs in"),
        up.locked(tmp_path),
    ):
        pass
    with up.locked(tmp_path):
        pass


def test_lock_holds_while_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    with up.locked(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
        )
    with child, pytest.raises(ChorusError, match="another `chorus up`"), up.locked(tmp_path):
        pass
    with up.locked(tmp_path):
        pass


def test_up_without_the_services_reports_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "services" else find_spec(name)
    )
    done = CliRunner().invoke(app, ["up", "--dir", str(tmp_path / "new")])
    assert done.exit_code == BAD_INPUT
    assert (
        "error: chorus up starts the services, which are not part of chorus-client: run it from a checkout "
        "(make run / make up)" in done.stderr
    )
    assert not (tmp_path / "new").exists()


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(up._REQUIRED, "denoiser", ("torch_that_is_not_there",))
    assert up.missing_modules()["denoiser"] == ["torch_that_is_not_there"]
    with pytest.raises(ChorusError, match=r"`make up` in a checkout \(denoiser needs torch_that"):
        up._require_services()


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
def test_damaged_endpoints_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / endpoints.FILE).write_text(text)
    assert endpoints.running(tmp_path) is None


def test_lexicons_of_the_models_are_loaded(tmp_path: Path) -> None:
    own = model_file(tmp_path / "own" / "model.toml", '[text]\nlexicon = "words.toml"')
    none = model_file(tmp_path / "none" / "model.toml", "")
    assert model_files.choose_models([own, none], {})["CHORUS_EMBEDDER_LEXICONS"] == str(
        tmp_path / "own/words.toml"
    )
    assert model_files.choose_models([none], {})["CHORUS_EMBEDDER_LEXICONS"] == ""
    wrong = model_file(tmp_path / "wrong.toml", "[text]\nlexicon = 3")
    with pytest.raises(ChorusError, match=r"text\.lexicon"):
        model_files.choose_models([wrong], {})


def test_calibrations_of_the_models_are_used(tmp_path: Path) -> None:
    own = model_file(tmp_path / "own" / "model.toml", 'calibration = "measured.json"')
    none = model_file(tmp_path / "none" / "model.toml", "")
    assert model_files.choose_models([own, none], {})["CHORUS_SCHEDULER_CALIBRATIONS"] == str(
        tmp_path / "own/measured.json"
    )
    assert model_files.choose_models([none], {})["CHORUS_SCHEDULER_CALIBRATIONS"] == ""
    wrong = model_file(tmp_path / "wrong.toml", "calibration = 3")
    with pytest.raises(ChorusError, match="calibration must be a path"):
        model_files.choose_models([wrong], {})


@pytest.mark.parametrize("as_json", [False, True])
def test_unknown_setting_of_a_service_is_reported_when_it_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    log = tmp_path / "cache.log"
    fields = "did_you_mean=CHORUS_CACHE_PORT variable=CHORUS_CACHE_PROT"
    log.write_text(f"… [warning  ] unknown setting ignored    {fields}\n… [info] serving\n")
    child = supervise.Child("cache", (), {}, log)
    up._Report(Output(as_json)).ready(child, 1.5)
    out, err = capsys.readouterr()
    if as_json:
        ready, warning = map(json.loads, out.splitlines())
        assert ready["ready"]["service"] == warning["warning"]["service"] == "cache"
        assert "CHORUS_CACHE_PROT" in warning["warning"]["log"]
    else:
        assert err == (
            "cache ready after 1.5 s\n"
            "warning: CHORUS_CACHE_PROT is set, but the cache has no such setting; "
            "did you mean CHORUS_CACHE_PORT?\n"
        )


def test_slow_start_is_reported_with_the_last_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "denoiser.log"
    log.write_text("[info] backend selected\n[info] exporting part 1 of 1\n")
    child = supervise.Child("denoiser", (), {}, log)
    up._Report(Output(False)).slow(child)
    assert capsys.readouterr().err == "denoiser is still starting: [info] exporting part 1 of 1\n"
    up._Report(Output(True)).slow(child)
    record = json.loads(capsys.readouterr().out)
    assert record == {"starting": {"service": "denoiser", "log": ["[info] exporting part 1 of 1"]}}


def test_unknown_settings_are_read_from_json_logs_and_without_a_suggestion() -> None:
    line = '{"variable": "CHORUS_CACHE_XY", "did_you_mean": null, "event": "unknown setting ignored"}'
    described = up.describe_unknown_setting("cache", line)
    assert described == "CHORUS_CACHE_XY is set, but the cache has no such setting"
