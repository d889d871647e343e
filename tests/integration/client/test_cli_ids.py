"""Verifies the commands that list, find and repeat generations, and the global options of `chorus`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from chorus.scheduler.v1 import scheduler_pb2
from chorus_cli import plugins
from chorus_cli.commands import cache as cache_commands
from chorus_cli.main import app
from chorus_cli.output import (
    BAD_INPUT,
    EXIT_STATUSES,
    FAILED,
    INTERRUPTED,
    OK,
    PIPE_CLOSED,
    UNREACHABLE,
    Output,
)
from typer.testing import CliRunner

from services.cache.settings import CacheSettings
from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread
from tests.processes import ROOT

FIRST, SECOND, THIRD = "0123456789abcdef" * 2, "01234567ffffffff" * 2, "fedcba9876543210" * 2
RED = "a red circle that moves slowly from the left to the right on a background of navy blue"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CHORUS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


def chorus(deployment: FakeDeployment, *arguments: str, text: str | None = None) -> Any:
    environment = {"CHORUS_TARGET": deployment.target, "CHORUS_CACHE_TARGET": deployment.target}
    return CliRunner().invoke(app, list(arguments), env=environment, input=text)


def add(deployment: FakeDeployment, *ids: str) -> None:
    """Adds copies of a real generation with the given ids, oldest first."""
    chorus(deployment, "generate", RED, "--detach", "--seed", "7")
    template = deployment.scheduler.generations.pop("gen-1")
    events = deployment.scheduler.events.pop("gen-1")
    for id_ in ids:
        generation = scheduler_pb2.Generation()
        generation.CopyFrom(template)
        generation.generation_id, generation.request_id = id_, f"request-{id_}"
        deployment.scheduler.generations[id_] = generation
        deployment.scheduler.events[id_] = events


def on_terminal(deployment: FakeDeployment, *arguments: str, columns: int = 80, keys: str = "") -> str:
    """Runs the command on a terminal; returns what it shows there."""
    leader, follower = pty.openpty()
    environment = {
        **os.environ,
        "CHORUS_TARGET": deployment.target,
        "CHORUS_CACHE_TARGET": deployment.target,
        "COLUMNS": str(columns),
        "TERM": "dumb",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "chorus_cli", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        if keys:
            os.write(leader, keys.encode())
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # Linux: the last writer has closed the terminal
                break
            if not part:
                break
            shown += part
        process.wait(30)
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


def test_jobs_is_not_cut_when_piped(deployment: FakeDeployment) -> None:
    add(deployment, FIRST, SECOND, THIRD)
    heading, *rows = chorus(deployment, "jobs").stdout.splitlines()
    assert heading.split("\t") == ["id", "state", "age", "steps", "score", "seconds", "prompt"]
    assert [row.split("\t")[0] for row in rows] == [THIRD, SECOND, FIRST]
    assert all(row.split("\t")[1:] == ["succeeded", "0s", "2/4", "0.910", "1.50", RED] for row in rows)


@pytest.mark.parametrize("columns", [80, 40])
def test_jobs_on_a_terminal_cuts_the_prompt_only(deployment: FakeDeployment, columns: int) -> None:
    add(deployment, FIRST, SECOND, THIRD)
    heading, *rows = on_terminal(deployment, "jobs", columns=columns).splitlines()
    assert heading.split() == ["id", "state", "age", "steps", "score", "seconds", "prompt"]
    assert [row.split()[:2] for row in rows] == [
        ["fedcba98", "succeeded"],
        ["01234567f", "succeeded"],
        ["012345678", "succeeded"],
    ]
    assert all(row.endswith("…") for row in rows)
    if columns == 80:
        assert all(len(row) <= 80 for row in rows)


def test_ids_are_found_in_upper_case_and_with_spaces(deployment: FakeDeployment) -> None:
    add(deployment, FIRST, THIRD)
    for text in (THIRD.upper(), THIRD[:8].upper(), f" {THIRD} "):
        result = chorus(deployment, "cancel", text)
        assert (result.exit_code, result.stdout) == (OK, f"{THIRD} succeeded\n"), result.output


def test_empty_id_is_refused_by_name(deployment: FakeDeployment) -> None:
    for text in ("", " "):
        result = chorus(deployment, "get", text)
        assert result.exit_code == BAD_INPUT
        assert result.stderr == "error: id: must not be empty; `chorus jobs` lists the ids\n"


@pytest.mark.parametrize("arguments", [("get", FIRST), ("retry", FIRST), ("generate", "x"), ("watch", FIRST)])
def test_output_to_stdout_is_refused(deployment: FakeDeployment, arguments: Sequence[str]) -> None:
    add(deployment, FIRST)
    result = chorus(deployment, *arguments, "-o", "-")
    assert result.exit_code == BAD_INPUT
    assert "error: output: must be a path, not -" in result.stderr
    assert not Path("-").exists()
    assert len(deployment.scheduler.requests) == 1, "nothing but the one added was submitted"


@pytest.mark.parametrize("command", ["get", "watch", "cancel", "explain", "retry"])
def test_every_command_accepts_a_unique_beginning(deployment: FakeDeployment, command: str) -> None:
    add(deployment, FIRST, SECOND, THIRD)
    result = chorus(deployment, command, "012345678")
    assert result.exit_code == OK, result.output
    result = chorus(deployment, command, "0123456")
    assert result.exit_code == BAD_INPUT
    assert f"'0123456' begins 2 ids: {SECOND}, {FIRST}; give more characters" in result.stderr
    assert chorus(deployment, command, "0123beef").exit_code == BAD_INPUT
    assert chorus(deployment, command, "fed").exit_code == BAD_INPUT  # too short


def test_beginning_is_looked_up_among_a_bounded_number(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(deployment, FIRST, SECOND, THIRD)
    monkeypatch.setattr("chorus_cli.identifiers.SEARCHED", 2)
    assert chorus(deployment, "cancel", "012345678").exit_code == BAD_INPUT
    assert chorus(deployment, "cancel", FIRST).exit_code == OK


def test_get_downloads_the_video_of_a_generation_that_succeeded(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    add(deployment, FIRST)
    result = chorus(deployment, "get", FIRST[:8])
    assert result.stdout.startswith(f"{FIRST}.mp4: hit on “a [red] circle”, 2 of 4 steps computed")
    assert (tmp_path / f"{FIRST}.mp4").read_bytes() == VIDEO
    [line] = chorus(deployment, "get", FIRST[:8], "-o", "x.mp4", "--json").stdout.splitlines()
    assert json.loads(line)["output"] == "x.mp4"


def test_get_shows_the_state_of_a_generation_that_runs_or_failed(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    chorus(deployment, "generate", "slow circle", "--detach")
    result = chorus(deployment, "get", "gen-1")
    assert (result.exit_code, result.stdout) == (OK, "gen-1 running, 0 of 4 steps done\n")
    chorus(deployment, "generate", "fail please", "--detach")
    result = chorus(deployment, "get", "gen-2")
    assert result.exit_code == FAILED
    assert result.stderr == "error: gen-2 failed: the model produced NaN at step 3\n"
    assert list(tmp_path.iterdir()) == []


def test_retry_submits_the_same_specification_as_a_new_request(deployment: FakeDeployment) -> None:
    options = ("--seed", "7", "--sigmas", "1,0.5,0", "--frames", "8", "--height", "32", "--width", "64")
    plan = ("--reuse-steps", "1", "--region-end", "2", "--reuse", "fast", "--deadline", "60", "--model", "m")
    chorus(deployment, "generate", "a red circle", *options, *plan, "--no-store", "--detach")
    result = chorus(deployment, "retry", "gen-1", "-o", "again.mp4")
    assert result.exit_code == OK, result.output
    assert result.stdout.startswith("again.mp4: hit")
    first, again = deployment.scheduler.requests
    assert first.request_id != again.request_id
    first.spec.ClearField("timeout")  # a new generation has the server's default
    assert first.spec == again.spec


def prompt_file(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("# colours\na red circle\n\nfail: A/B “c”?\n  a red circle  \n", encoding="utf-8")
    return path


def test_prompt_file_becomes_a_folder_of_videos_despite_failures(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    result = chorus(deployment, "generate", "-f", str(prompt_file(tmp_path)), "-o", "videos", "--seed", "1")
    assert result.exit_code == FAILED
    names = ["001-a-red-circle.mp4", "003-a-red-circle.mp4"]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    assert (tmp_path / "videos" / names[1]).read_bytes() == VIDEO
    assert "error: gen-2 failed: the model produced NaN" in result.stderr
    assert result.stderr.endswith("2 of 3 generated, 1 failed\n")
    assert [request.spec.prompt for request in deployment.scheduler.requests] == [
        "a red circle",
        "fail: A/B “c”?",
        "a red circle",
    ]


def test_prompts_come_from_stdin_and_json_ends_with_a_summary(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    result = chorus(deployment, "generate", "-f", "-", "--json", text="one\ntwo\n")
    assert result.exit_code == OK, result.output
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "summary": {"prompts": 2, "succeeded": 2, "failed": 0}
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["001-one.mp4", "002-two.mp4"]
    assert chorus(deployment, "generate", "-f", "-", text="# nothing\n").exit_code == BAD_INPUT


def test_detached_prompts_are_all_submitted(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(deployment, "generate", "-f", str(prompt_file(tmp_path)), "--detach")
    assert (result.exit_code, result.stdout) == (OK, "gen-1\ngen-2\ngen-3\n")
    assert not (tmp_path / "out").exists()


def test_prompt_file_stops_when_a_service_is_down(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(deployment, "generate", "-f", str(prompt_file(tmp_path)), "--model", "nowhere")
    assert result.exit_code == UNREACHABLE
    assert "0 of 3 generated, 3 not started or not finished" in result.stderr


def test_purging_everything_needs_yes_without_a_terminal(deployment: FakeDeployment) -> None:
    result = chorus(deployment, "cache", "purge", "--all", text="y\n")
    assert result.exit_code == BAD_INPUT
    assert "error: all: needs --yes without a terminal" in result.stderr
    assert deployment.cache.purges == []
    assert chorus(deployment, "cache", "purge", "--all", "--yes").exit_code == OK
    assert deployment.cache.purges[0].all


def test_purging_everything_asks_on_a_terminal(deployment: FakeDeployment) -> None:
    shown = on_terminal(deployment, "cache", "purge", "--all", keys="n\n")
    assert f"Remove every entry of tenant 'default' from the cache at {deployment.target}? [y/N]" in shown
    assert deployment.cache.purges == []
    shown = on_terminal(deployment, "cache", "purge", "--all", keys="y\n")
    assert "3 entries, 1,000 bytes removed" in shown
    assert len(deployment.cache.purges) == 1


def test_time_until_space_is_freed_is_that_of_the_cache_settings() -> None:
    fields = CacheSettings.model_fields
    seconds = fields["grace_seconds"].default + fields["sweep_seconds"].default
    assert seconds == cache_commands.FREED_MINUTES * 60


def test_misspelt_variable_is_reported_with_the_nearest_name(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_TARGTE", "x")
    monkeypatch.setenv("CHORUS_SCHEDULAR_PORT", "7")
    monkeypatch.setenv("CHORUS_CACHE_GRACE_SECONDS", "7")  # the service checks its own
    result = chorus(deployment, "cache", "stats", "--json")
    assert result.stderr.splitlines() == [
        "warning: CHORUS_SCHEDULAR_PORT is set, but no such variable exists; "
        "did you mean CHORUS_SCHEDULER_PORT?",
        "warning: CHORUS_TARGTE is set, but no such variable exists; did you mean CHORUS_TARGET?",
    ]
    assert result.exit_code == OK
    json.loads(result.stdout)


def test_reader_that_closes_the_pipe_ends_the_command_without_a_traceback(
    deployment: FakeDeployment,
) -> None:
    add(deployment, FIRST)
    target = ("--target", deployment.target)
    for arguments in (
        ("jobs", *target), ("jobs", "--json", *target), ("cache", "stats", *target),
        ("--help",), ("jobs", "--help"), ("--version",),
    ):  # fmt: skip
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "chorus_cli", *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


@pytest.mark.parametrize("name", ["calibrate", "eval", "engine"])
def test_command_of_the_other_distribution_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])  # the client is installed alone
    alone = typer.Typer()
    alone.command("other")(lambda: None)
    plugins.add_commands(alone)
    result = CliRunner().invoke(alone, [name, "--pairs", "3"])
    assert result.exit_code == BAD_INPUT
    assert f"pip install -e ./client -e '.[{name}]'" in result.stderr
    assert "chorus-serving, which is not installed" in result.stderr


_INTERRUPTED_LOADING = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
class Interrupt:  # Ctrl-C while the named module is loaded
    def find_spec(self, name, path, target=None):
        if name == "chorus_cli.output":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("chorus_cli", run_name="__main__")
"""


def test_interrupt_while_the_command_is_loaded_ends_it_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_LOADING, "jobs"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (INTERRUPTED, "")


def test_help_lists_the_exit_statuses_and_the_choices() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for status, meaning in EXIT_STATUSES.items():
        assert f"{status}: {meaning}" in text
    page = (ROOT / "docs" / "cli.md").read_text()
    for status, meaning in EXIT_STATUSES.items():
        assert f"| {status} | {meaning} |" in page
    help_text = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "200"}).output
    assert "off|safe|balanced|fast" in help_text
    assert "probe|full-step|attention" in help_text


def test_completion_lists_the_commands() -> None:
    environment = {
        **os.environ,
        "_CHORUS_COMPLETE": "complete_bash",
        "COMP_WORDS": "chorus ca",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "chorus_cli"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.split() == ["cancel", "calibrate", "cache"]
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in help_text
    assert "--show-completion" in help_text


def test_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus_cli.main.version", lambda name: f"1.2.3 of {name}")
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (OK, "chorus 1.2.3 of chorus-client\n")


def test_output_is_interactive_only_with_a_terminal_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Output(as_json=False).is_interactive
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert Output(as_json=False).is_interactive
    assert not Output(as_json=True).is_interactive
