"""Verifies the settings: invalid values, misspelt variables, descriptions and `--help`."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.cache.settings import CacheSettings
from services.denoiser.settings import DenoiserSettings
from services.embedder.settings import EmbedderSettings
from services.runtime.settings import (
    ServerSettings,
    describe_settings,
    find_unknown_variables,
    load_settings,
)
from services.scheduler.settings import SchedulerSettings
from tests.processes import ROOT

KINDS = (SchedulerSettings, EmbedderSettings, CacheSettings, DenoiserSettings)


@pytest.mark.fault("named-limit")
def test_every_variable_that_a_message_names_is_a_setting() -> None:
    known = {row.variable for kind in KINDS for row in describe_settings(kind)}
    named = {
        variable
        for path in (ROOT / "services").rglob("*.py")
        for variable in re.findall(
            r"CHORUS_(?:SCHEDULER|EMBEDDER|CACHE|DENOISER)_[A-Z0-9_]*[A-Z0-9]", path.read_text()
        )
    }
    assert len(named) > 10
    # Beginnings of the names of several settings, from which messages build them.
    prefixes = {"CHORUS_CACHE_S3", "CHORUS_SCHEDULER_S3"}
    assert all(any(each.startswith(f"{prefix}_") for each in known) for prefix in prefixes)
    assert named - prefixes <= known


class ExampleSettings(ServerSettings):
    """Settings of a service that does not exist."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_EXAMPLE_")

    port: int = 7499
    names: Annotated[tuple[str, ...], Field(max_length=3)] = ("a", "b")
    """Names to use."""
    speed: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Speed,
    in metres per second."""
    colour: Literal["red", "blue"] = "red"
    """Colour."""
    secret: SecretStr = SecretStr("")
    """Secret."""


def test_invalid_value_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PORT", "70000")
    with pytest.raises(SystemExit) as caught:
        load_settings(ServerSettings)
    assert caught.value.code == 2
    assert "PORT" in capsys.readouterr().err


def test_invalid_part_of_a_list_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHORUS_EMBEDDER_LEXICONS", "/no/such/file")
    with pytest.raises(SystemExit):
        load_settings(EmbedderSettings)
    assert capsys.readouterr().err.startswith("CHORUS_EMBEDDER_LEXICONS: ")


@pytest.mark.fault("helm")
@pytest.mark.parametrize("target", ["::1:7402", "http://cache:7402"])
def test_ambiguous_target_is_named(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHORUS_SCHEDULER_CACHE_TARGET", target)
    with pytest.raises(SystemExit):
        load_settings(SchedulerSettings)
    assert capsys.readouterr().err.startswith("CHORUS_SCHEDULER_CACHE_TARGET: ")


def test_misspelt_variables_are_found_with_the_nearest_setting() -> None:
    environment = {
        "CHORUS_EXAMPLE_PROT": "1",
        "CHORUS_EXAMPLE_QQQQQQQQ": "1",
        "chorus_example_port": "1",
        "CHORUS_EXAMPLE_COLOUR": "red",
        "CHORUS_OTHER_PROT": "1",
        "PATH": "/bin",
    }
    assert find_unknown_variables(ExampleSettings, environment) == {
        "CHORUS_EXAMPLE_PROT": "CHORUS_EXAMPLE_PORT",
        "CHORUS_EXAMPLE_QQQQQQQQ": None,
    }


def test_settings_are_described_by_their_docstrings() -> None:
    rows = {row.variable.removeprefix("CHORUS_EXAMPLE_"): row for row in describe_settings(ExampleSettings)}
    assert [(r.default, r.bound, r.description) for r in (rows[n] for n in ("NAMES", "SPEED", "COLOUR"))] == [
        ("a, b", "0 to 3 entries", "Names to use."),
        ("0.5", "above 0, at most 2", "Speed, in metres per second."),
        ("red", "red, blue", "Colour."),
    ]
    assert rows["SECRET"].default == ""
    assert rows["PORT"].default == "7499"
    assert "TCP port" in rows["PORT"].description, "shared description of a changed default"


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_description(kind: type[ServerSettings]) -> None:
    assert [row.variable for row in describe_settings(kind) if not row.description] == []


def test_help_prints_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(CacheSettings, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python -m services.cache" in text
    assert "CHORUS_CACHE_PORT  (default: 7402; 0 to 65535)" in text
    for row in describe_settings(CacheSettings):
        assert row.variable in text
        assert row.description.split()[0] in text


def test_other_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(CacheSettings, ["--port", "3"])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_command_of_a_service_prints_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.scheduler", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CHORUS_SCHEDULER_QUEUE_LIMIT" in done.stdout
