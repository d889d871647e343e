"""Verifies labels, search and several outputs of one prompt in the SDK and the command line."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chorus.scheduler.v1 import scheduler_pb2
from chorus_cli.filters import parse_labels, parse_moment
from chorus_cli.main import app
from chorus_client import AsyncChorusClient, ChorusClient, ChorusError, SpecOptions
from typer.testing import CliRunner

from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDeployment]:
    monkeypatch.chdir(tmp_path)
    with deployment_in_thread(FakeDeployment) as running:
        yield running


def chorus(deployment: FakeDeployment, *arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"CHORUS_TARGET": deployment.target})


def test_outputs_are_submitted_together_with_a_handle_each(deployment: FakeDeployment) -> None:
    with ChorusClient(deployment.target) as client:
        handles = client.submit_many("a red circle", 3, seed=7, request_id="r", labels={"project": "demo"})
        assert [handle.id for handle in handles] == ["gen-1", "gen-2", "gen-3"]
        accepted = [handle.accepted for handle in handles]
        assert [(each.output_index, each.output_count) for each in accepted if each] == [
            (1, 3),
            (2, 3),
            (3, 3),
        ]
        assert all(handle.result().data == VIDEO for handle in handles)
        status = handles[1].status()
        assert dict(status.labels) == {"project": "demo"}
        assert (status.timings.running_seconds, status.timings.waiting_seconds) == (1.25, 0.5)
        assert status.started is not None
        again = client.submit_many("a red circle", 3, seed=7, request_id="r")
        assert [handle.id for handle in again] == [handle.id for handle in handles]
        assert client.submit("one").accepted is not None
    [request, *_] = deployment.scheduler.requests
    assert (request.outputs, request.spec.seed, dict(request.spec.labels)) == (3, 7, {"project": "demo"})


def test_asyncio_client_submits_outputs_too(deployment: FakeDeployment) -> None:
    async def submit() -> list[str]:
        async with AsyncChorusClient(deployment.target) as client:
            return [handle.id for handle in await client.submit_many("a red circle", 2)]

    assert asyncio.run(submit()) == ["gen-1", "gen-2"]


def test_wrong_outputs_labels_and_filters_are_named_before_a_call(deployment: FakeDeployment) -> None:
    with ChorusClient(deployment.target) as client:
        calls: list[tuple[str, Any]] = [
            ("outputs", lambda: client.submit_many("x", 0)),
            ("outputs", lambda: client.submit_many("x", 17)),
            ("labels", lambda: client.submit("x", labels=["a"])),  # type: ignore[arg-type]
            ("labels['a']", lambda: client.submit("x", labels={"a": 1})),  # type: ignore[dict-item]
            ("labels['a']", lambda: client.list(labels={"a": "\ud800"})),
            ("prompt_contains", lambda: client.list(prompt_contains=5)),  # type: ignore[arg-type]
            ("created_after", lambda: client.list(created_after=datetime(2026, 1, 1))),
            ("created_before", lambda: client.list(created_before=5)),  # type: ignore[arg-type]
        ]
        for field, call in calls:
            with pytest.raises(ChorusError) as caught:
                call()
            assert [violation.field for violation in caught.value.violations] == [field]
        with pytest.raises(TypeError, match="submit_many"):
            client.submit("x", outputs=2)  # type: ignore[call-arg]
    assert not deployment.scheduler.requests
    assert not deployment.scheduler.lists


def test_list_sends_every_filter_with_every_page(deployment: FakeDeployment) -> None:
    with ChorusClient(deployment.target) as client:
        for number in range(5):
            client.submit("a red circle", labels={"kind": "even" if number % 2 == 0 else "odd"})
        found = client.list(
            labels={"kind": "even"},
            prompt_contains="Red",
            created_after=NOW - timedelta(hours=12),
            created_before=NOW,
        )
    assert [generation.id for generation in found] == ["gen-5", "gen-3", "gen-1"]
    first, second = deployment.scheduler.lists
    assert (first.page_token, second.page_token) == ("", "2")
    for request in (first, second):
        request.page_token, request.page_size = "", 0
        expected = scheduler_pb2.ListGenerationsRequest(labels={"kind": "even"}, prompt_contains="Red")
        expected.created_after.FromDatetime(NOW - timedelta(hours=12))
        expected.created_before.FromDatetime(NOW)
        assert request == expected


def test_generate_writes_a_file_for_each_output(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(
        deployment, "generate", "a red circle", "--outputs", "3", "-o", "out.mp4", "--label", "project=demo"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.mp4", "out-2.mp4", "out-3.mp4"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "out-1.mp4",
        "out-2.mp4",
        "out-3.mp4",
    ]
    progress = result.stderr.splitlines()
    for number in (1, 2, 3):
        own = [line for line in progress if line.startswith(f"{number} of 3: ")]
        assert own[0] == f"{number} of 3: gen-{number} accepted, seed 0"
        assert own[-1] == f"{number} of 3: step 4 of 4: full, 0.10 s"
    assert progress[-1] == "details: chorus explain gen-1"
    [request] = deployment.scheduler.requests
    assert (request.outputs, dict(request.spec.labels)) == (3, {"project": "demo"})


def test_json_lines_of_outputs_name_their_generation(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(deployment, "generate", "a red circle", "--outputs", "2", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["generation_id"] for line in lines if "event" in line} == {"gen-1", "gen-2"}
    assert [line["output"] for line in lines if "output" in line] == ["gen-1.mp4", "gen-2.mp4"]
    assert (tmp_path / "gen-2.mp4").read_bytes() == VIDEO


def test_failure_of_one_output_leaves_the_others(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(deployment, "generate", "second fails", "--outputs", "3", "-o", "x.mp4")
    assert result.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.mp4", "x-3.mp4"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["x-1.mp4", "x-3.mp4"]
    assert result.stderr.splitlines()[-1] == "error: gen-2 failed: the model produced NaN at step 3"


def test_outputs_can_be_detached_and_of_a_file(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus(deployment, "generate", "a red circle", "--outputs", "2", "--detach")
    assert result.stdout.split() == ["gen-1", "gen-2"]
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    result = chorus(deployment, "generate", "-f", "prompts.txt", "--outputs", "2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "001-one-1.mp4",
        "001-one-2.mp4",
        "002-two-1.mp4",
        "002-two-2.mp4",
    ]
    assert chorus(deployment, "generate", "x", "--outputs", "2", "--preview").exit_code == 2
    assert chorus(deployment, "generate", "x", "--outputs", "17").exit_code == 2


def test_interruption_cancels_every_output(deployment: FakeDeployment, tmp_path: Path) -> None:
    # Children inherit SIGINT as ignored from a background process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, "-m", "chorus_cli", "generate", "slow circle", "--outputs", "2"]
        with subprocess.Popen(
            [*command, "--target", deployment.target],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        ) as process:
            assert deployment.scheduler.watching.wait(30)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; 2 of 2 generations are cancelled"
    states = {generation.state for generation in deployment.scheduler.generations.values()}
    assert states == {scheduler_pb2.GENERATION_STATE_CANCELLED}


def test_jobs_are_listed_by_labels_prompt_and_time(deployment: FakeDeployment) -> None:
    chorus(deployment, "generate", "a red circle", "--detach", "--label", "a=1", "--label", "b=x=y")
    chorus(deployment, "generate", "a red circle", "--detach")
    result = chorus(
        deployment, "jobs", "--label", "b=x=y", "--prompt", "red", "--since", "2h", "--until", "2126-01-31"
    )
    assert [row.split("\t")[0] for row in result.stdout.splitlines()] == ["id", "gen-1"]
    [request] = deployment.scheduler.lists
    assert (dict(request.labels), request.prompt_contains) == ({"b": "x=y"}, "red")
    ago = datetime.now(UTC) - request.created_after.ToDatetime(tzinfo=UTC)
    assert timedelta(hours=2) <= ago < timedelta(hours=3)
    assert request.created_before.ToDatetime(tzinfo=UTC) == datetime(2126, 1, 31).astimezone(UTC)
    for arguments, words in (
        (("--label", "project"), "label: must be KEY=VALUE"),
        (("--label", "a=1", "--label", "a=2"), "label: has the key 'a' twice"),
        (("--since", "yesterday"), "since: must be an age such as 12h"),
    ):
        result = chorus(deployment, "jobs", *arguments)
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


def test_retry_keeps_the_labels(deployment: FakeDeployment) -> None:
    chorus(deployment, "generate", "a red circle", "--detach", "--label", "project=demo")
    chorus(deployment, "retry", "gen-1", "--detach")
    assert [dict(request.spec.labels) for request in deployment.scheduler.requests] == [
        {"project": "demo"}
    ] * 2


def test_webhook_is_sent_with_the_words_of_its_events(deployment: FakeDeployment) -> None:
    url = "https://hooks.example/a?b=c"
    with ChorusClient(deployment.target) as client:
        client.submit("x", webhook=url)
        client.submit("x", webhook=url, webhook_events=["cancelled", "completed"])
        wrong: list[SpecOptions] = [
            {"webhook_events": ["failed"]},
            {"webhook": url, "webhook_events": ["ended"]},
            {"webhook": url, "webhook_events": "failed"},
        ]
        for options in wrong:
            with pytest.raises(ChorusError) as caught:
                client.submit("x", **options)
            assert [violation.field for violation in caught.value.violations] == ["webhook_events"]
        with pytest.raises(ChorusError, match="webhook: must be text"):
            client.submit("x", webhook=7)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="use webhook"):
            client.submit("x", webhook_url=url)  # type: ignore[call-arg]
    chorus(deployment, "generate", "x", "--detach", "--webhook", url, "--webhook-events", "failed")
    chorus(deployment, "retry", "gen-3", "--detach")
    sent = [request.spec.webhook for request in deployment.scheduler.requests]
    assert [webhook.url for webhook in sent] == [url] * 4
    assert [list(webhook.events) for webhook in sent] == [[], [3, 1], [2], [2]]
    result = chorus(deployment, "generate", "x", "--webhook-events", "failed")
    assert result.exit_code == 2
    assert "webhook_events: needs webhook" in result.stderr


def test_labels_and_times_are_parsed() -> None:
    assert parse_labels(["a=", "b=c d"]) == {"a": "", "b": "c d"}
    assert parse_moment(None, "since", NOW) is None
    assert parse_moment("90s", "since", NOW) == NOW - timedelta(seconds=90)
    assert parse_moment("2026-01-31T18:00+02:00", "since", NOW) == datetime(2026, 1, 31, 16, tzinfo=UTC)
    with pytest.raises(ChorusError):
        parse_moment("999999999w", "since", NOW)
