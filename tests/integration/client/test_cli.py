"""Verifies `chorus generate`, `watch` and `cancel`, and the errors of every command, by a scripted server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_cli.main import app
from chorus_client import endpoints
from typer.testing import CliRunner

from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CHORUS_TARGET", "CHORUS_CACHE_TARGET", "CHORUS_TENANT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


def chorus(*arguments: str, target: str | None = None) -> Any:
    return CliRunner().invoke(
        app, list(arguments), env={"CHORUS_TARGET": target, "CHORUS_CACHE_TARGET": target}
    )


def lines(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_generate_writes_the_video_and_reports_the_hit_in_one_line(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    result = chorus("generate", "a red circle", "-o", "out.mp4", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.mp4").read_bytes() == VIDEO
    # The donor's prompt is shown unchanged, square brackets included.
    assert result.stdout == (
        "out.mp4: hit on “a [red] circle”, 2 of 4 steps computed, 1.50 s (waited 0.50 s, ran 1.25 s),"
        " 0.70 s saved\n"
    )
    assert result.stderr.splitlines() == [
        "gen-1 accepted, seed 0",
        "cache hit: 2 of 4 steps reused from “a [red] circle”, score 0.910",
        "step 1 of 4: reused",
        "step 2 of 4: reused",
        "step 3 of 4: full, 0.10 s",
        "step 4 of 4: full, 0.10 s",
        "details: chorus explain gen-1",
    ]


def test_generate_reports_an_exact_repeat(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus("generate", "repeat a red circle", "-o", "out.mp4", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert "0 of 4 steps computed" in result.stdout
    reported = result.stderr.splitlines()
    assert reported[1] == "exact repeat, no step is computed: the result of “a [red] circle”, score 0.910"
    assert [line for line in reported if line.startswith("step ")] == [
        f"step {number} of 4: reused" for number in range(1, 5)
    ]


@pytest.mark.fault("logging")
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
def test_video_that_does_not_fit_on_the_disk_can_be_downloaded_again(deployment: FakeDeployment) -> None:
    result = chorus("generate", "a red circle", "-o", "/dev/full", target=deployment.target)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert "`chorus get gen-1 -o FILE` downloads it again" in result.stderr


def test_generate_json_is_events_then_the_result(deployment: FakeDeployment, tmp_path: Path) -> None:
    result = chorus("generate", "a red circle", "--json", target=deployment.target)
    found = lines(result)
    assert "accepted" in found[0]
    assert [line["event"]["sequence"] for line in found[1:-1]] == [str(n) for n in range(1, 7)]
    assert found[-1]["generation"]["state"] == "GENERATION_STATE_SUCCEEDED"
    assert Path(found[-1]["output"]).read_bytes() == VIDEO
    assert result.stderr == ""


def test_generate_passes_its_options_on(deployment: FakeDeployment) -> None:
    result = chorus(
        *("generate", "x", "--detach", "--model", "m", "--seed", "5", "--sigmas", "1,0.5,0", "--frames", "8"),
        *("--height", "32", "--width", "64", "--reuse", "fast", "--no-store", "--deadline", "60"),
        *("--request-id", "r1", "--step-previews"),
        target=deployment.target,
    )
    assert result.stdout == "gen-1\n"
    [request] = deployment.scheduler.requests
    assert request.request_id == "r1"
    assert (request.spec.model_id, request.spec.seed, request.spec.no_store) == ("m", 5, True)
    assert request.spec.step_previews
    assert list(request.spec.schedule.sigmas) == [1, 0.5, 0]
    assert (request.spec.shape.frames, request.spec.shape.height, request.spec.shape.width) == (8, 32, 64)
    assert (request.spec.timeout.seconds, request.spec.HasField("deadline")) == (60, False)


def test_named_donor_is_sent_with_its_complete_id(deployment: FakeDeployment) -> None:
    chorus("generate", "x", "--detach", target=deployment.target)
    chorus("generate", "y", "--detach", "--donor", "GEN-1", target=deployment.target)
    assert [r.spec.donor_generation_id for r in deployment.scheduler.requests] == ["", "gen-1"]
    unknown = chorus("generate", "y", "--donor", "nothing", target=deployment.target)
    assert unknown.exit_code != 0
    assert "nothing" in unknown.stderr


EXPLICIT = ("--reuse-steps", "1", "--region-end", "3", "--region", "attention", "--amplify", "value-gain:0.5")


def test_explicit_plan_is_sent_and_every_step_has_a_line(deployment: FakeDeployment) -> None:
    result = chorus("generate", "x", *EXPLICIT, "--min-score", "0.5", target=deployment.target)
    assert result.exit_code == 0, result.output
    requested = deployment.scheduler.requests[0].spec.explicit_reuse
    assert (requested.reuse_steps, requested.region_end, requested.min_score) == (1, 3, 0.5)
    assert requested.region.source == plan_pb2.REGION_SOURCE_ATTENTION
    assert (requested.amplification.form, requested.amplification.strength) == (
        plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
        0.5,
    )
    steps = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert steps == [
        "step 1 of 4: reused",
        "step 2 of 4: region, 38% of the tokens computed, 0.10 s",
        "step 3 of 4: region, 38% of the tokens computed, 0.10 s",
        "step 4 of 4: full, 0.10 s",
    ]
    watched = chorus("watch", "gen-1", target=deployment.target).stderr.splitlines()
    assert [line for line in watched if line.startswith("step ")] == steps
    explained = chorus("explain", "gen-1", target=deployment.target).stdout
    for part in (
        "region     steps 2–3: attention, threshold",
        "value-gain 0.5",
        "colour",
        "+1.5 points predicted",
    ):
        assert part in explained
    assert "because    score 0.910 allows 2 steps" in explained


def test_renoised_plan_is_requested_and_explained(deployment: FakeDeployment) -> None:
    result = chorus("generate", "x", "--reuse-steps", "2", "--renoised", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert deployment.scheduler.requests[0].spec.explicit_reuse.renoised
    explained = chorus("explain", "gen-1", target=deployment.target).stdout
    assert "2 of 4 steps reused, the donor's clean latents noised again" in explained
    refused = chorus("generate", "x", "--renoised", target=deployment.target)
    assert refused.exit_code == 2
    assert "reuse_steps: must be given with renoised" in refused.stderr


def test_plan_with_a_draft_is_requested_and_explained(deployment: FakeDeployment) -> None:
    result = chorus("generate", "x", "--reuse-steps", "2", "--draft-step", "3", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert deployment.scheduler.requests[0].spec.explicit_reuse.draft_step == 3
    assert "2 of 4 steps reused from a draft from" in result.stderr
    assert "step 2 of 4: draft, 0.10 s" in result.stderr
    explained = chorus("explain", "gen-1", target=deployment.target).stdout
    assert "2 of 4 steps reused, from a draft by step 4, noised again" in explained
    assert [line.split()[:2] for line in explained.splitlines() if line.strip()[:1].isdigit()][:4] == [
        ["1", "reused"],
        ["2", "draft"],
        ["3", "full"],
        ["4", "full"],
    ]


def test_step_on_a_fallback_backend_names_it(deployment: FakeDeployment) -> None:
    shown = chorus("generate", "x without a GPU", target=deployment.target).stderr
    assert "step 4 of 4: full, 0.10 s; ran on torch: needs a CUDA device" in shown


def test_json_contains_the_plan_and_the_regions(deployment: FakeDeployment) -> None:
    found = lines(chorus("generate", "x", *EXPLICIT, "--json", target=deployment.target))
    events = [line["event"] for line in found if "event" in line]
    [planned] = [event["planned"]["plan"] for event in events if "planned" in event]
    assert (planned["region"]["source"], planned["edit"]) == ("REGION_SOURCE_ATTENTION", "colour")
    steps = [event["step_completed"] for event in events if "step_completed" in event]
    assert [step["computed_share"] for step in steps] == [0.375, 0.375, 0]
    assert (steps[0]["active_tokens"], steps[0]["token_grid"]) == ("Bw==", [1, 2, 4])


def test_without_plan_options_no_explicit_plan_is_sent(deployment: FakeDeployment) -> None:
    chorus("generate", "x", "--detach", target=deployment.target)
    assert not deployment.scheduler.requests[0].spec.HasField("explicit_reuse")


def test_watch_that_times_out_fails_and_does_not_claim_that_nothing_answers(
    deployment: FakeDeployment,
) -> None:
    identifier = chorus("generate", "slow circle", "--detach", target=deployment.target).stdout.strip()
    result = chorus("watch", identifier, "--timeout", "0.3", target=deployment.target)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"error: {identifier} had not ended after 0.3 s\n")


def test_watch_follows_a_detached_generation_and_fetches_its_video(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    identifier = chorus("generate", "x", "--detach", target=deployment.target).stdout.strip()
    result = chorus("watch", identifier, "-o", "x.mp4", "--json", target=deployment.target)
    assert result.exit_code == 0
    assert lines(result)[-1]["output"] == "x.mp4"
    assert (tmp_path / "x.mp4").read_bytes() == VIDEO
    result = chorus("watch", identifier, target=deployment.target)
    assert result.stdout == (
        "hit on “a [red] circle”, 2 of 4 steps computed, 1.50 s (waited 0.50 s, ran 1.25 s), 0.70 s saved\n"
    )


def test_jobs_lists_and_cancel_ends_generations(deployment: FakeDeployment) -> None:
    empty = chorus("jobs", target=deployment.target)
    assert (empty.stdout, empty.stderr) == ("", "no generations\n")
    for prompt in ("a red circle", "slow circle", "fail please"):
        chorus("generate", prompt, "--detach", target=deployment.target)
    found = lines(chorus("jobs", "--json", "--limit", "2", target=deployment.target))
    assert [line["generation"]["generation_id"] for line in found] == ["gen-3", "gen-2"]
    assert "slow circle" in chorus("jobs", "--state", "running", target=deployment.target).stdout
    assert chorus("cancel", "gen-2", target=deployment.target).stdout == "gen-2 cancelled\n"
    [line] = lines(chorus("cancel", "gen-2", "--json", target=deployment.target))
    assert line["generation"]["state"] == "GENERATION_STATE_CANCELLED"


def test_cache_commands_print_stats_and_purge(deployment: FakeDeployment) -> None:
    [line] = lines(chorus("cache", "stats", "--json", target=deployment.target))
    assert line["cache"]["entries"] == "7"
    assert "20, 9 with a donor" in chorus("cache", "stats", target=deployment.target).stdout
    result = chorus("cache", "purge", "--older-than", "2h", "--model", "m", target=deployment.target)
    assert result.stdout == "3 entries, 1,000 bytes removed\n"
    assert "frees the space when its sweeper runs: within 15 minutes" in result.stderr
    [request] = deployment.cache.purges
    assert (request.older_than.seconds, request.model_id) == (7200, "m")
    assert chorus("cache", "purge", target=deployment.target).exit_code == 2
    assert chorus("cache", "purge", "--older-than", "soon", target=deployment.target).exit_code == 2


@pytest.mark.fault("swallowed-errors")
def test_cache_stats_lists_the_rejected_admissions(deployment: FakeDeployment) -> None:
    shown = chorus("cache", "stats", target=deployment.target).stdout
    assert "3 admissions: 2 INVALID_FIELD, 1 DISK_FULL" in shown
    [line] = lines(chorus("cache", "stats", "--json", target=deployment.target))
    assert line["cache"]["rejected_admissions"][1] == {"reason": "ERROR_REASON_DISK_FULL", "count": "1"}


def test_cache_list_and_show_print_the_entries(deployment: FakeDeployment) -> None:
    first, second = "a" * 64, "ab" * 32
    rows = chorus("cache", "list", "--order", "saved", target=deployment.target).stdout.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["id", first, second]
    assert rows[2].split("\t")[2:] == ["3.0 MiB", "2", "1.5s", "pinned", "7", "a red circle"]
    assert deployment.cache.lists[0].order == cache_pb2.ENTRY_ORDER_SECONDS_SAVED
    found = lines(chorus("cache", "list", "--limit", "1", "--json", target=deployment.target))
    assert [line["entry"]["entry"]["entry_id"] for line in found] == [first]
    deployment.cache.entries, kept = [], deployment.cache.entries
    assert chorus("cache", "list", target=deployment.target).stderr == "no entries\n"
    deployment.cache.entries = kept

    shown = chorus("cache", "show", "abab", target=deployment.target).stdout
    assert "x_1, x_4, side data" in shown
    assert "a red circle" in shown
    assert second in shown
    assert chorus("cache", "show", first, target=deployment.target).stdout.startswith("entry")
    for wrong, text in (("a", "at least 4 characters"), ("beef", "no entry 'beef'"), ("f" * 64, "no entry")):
        result = chorus("cache", "show", wrong, target=deployment.target)
        assert (result.exit_code, text in result.stderr) == (2, True), result.stderr


def test_cache_verify_reports_damage_and_repair_removes_it(deployment: FakeDeployment) -> None:
    result = chorus("cache", "verify", target=deployment.target)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{'a' * 64}: latents of step 2 missing",
        "2 entries, 3.0 MiB verified, 1 damaged",
    ]
    result = chorus("cache", "repair", "--entry", "abab", "--json", target=deployment.target)
    assert result.exit_code == 0
    [damaged, verified] = lines(result)
    assert damaged["damaged"]["deleted"] is True
    assert verified["verified"] == {"entries": 2, "bytes": 3 << 20, "damaged": 1}
    assert [(each.entry_id, each.repair) for each in deployment.cache.verifications] == [
        ("", False),
        ("ab" * 32, True),
    ]


def test_generate_passes_the_retention_on(deployment: FakeDeployment, tmp_path: Path) -> None:
    file = str(tmp_path / "x.mp4")
    assert (
        chorus("generate", "x", "-o", file, "--lifetime", "2h", "--pin", target=deployment.target).exit_code
        == 0
    )
    retention = deployment.scheduler.requests[0].spec.retention
    assert (retention.lifetime.seconds, retention.pinned) == (7_200, True)
    for wrong in (["--lifetime", "soon"], ["--lifetime", "0"], ["--pin", "--no-store"]):
        assert chorus("generate", "x", "-o", file, *wrong, target=deployment.target).exit_code == 2


@pytest.mark.fault("store-ownership")
def test_cache_adopt_asks_and_reports_what_is_deleted(deployment: FakeDeployment) -> None:
    assert f"owned by another index ({'2' * 32})" in chorus("cache", "stats", target=deployment.target).stdout
    # Without a terminal the question cannot be answered.
    assert chorus("cache", "adopt", target=deployment.target).exit_code == 2
    assert chorus("cache", "adopt", "--json", target=deployment.target).exit_code == 2
    assert deployment.cache.adoptions == []
    shown = chorus("cache", "adopt", "--dry-run", target=deployment.target).stdout
    assert "1,200 blobs without an entry (3.0 MiB) and 5 entries without their blobs" in shown
    [line] = lines(chorus("cache", "adopt", "--yes", "--json", target=deployment.target))
    assert line["adoption"]["previous_owners"] == ["2" * 32]
    assert [request.validate_only for request in deployment.cache.adoptions] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("generate", " "), 2, "error: spec.prompt: must hold 1 to 2,000 characters\n"),
        (
            ("generate", "x", "--frames", "65", "--height", "8", "--width", "8"),
            2,
            "error: spec.shape.frames: must be 1 to 64\n",
        ),
        (("generate", "x", "--frames", "-1"), 2, "error: frames: must be 0 to 2^32 − 1, not -1\n"),
        (
            ("generate", "x", "--steps", "4", "--sigmas", "1,0"),
            2,
            "error: sigmas: give steps or sigmas, not both\n",
        ),
        (("generate", "x", "--sigmas", "1,a"), 2, "error: sigmas: must be numbers separated by commas"),
        (("generate", "x", "--reuse", "all"), 2, "'all' is not one of 'off', 'safe'"),
        (("generate", "x", "--region", "all"), 2, "'all' is not one of 'probe'"),
        (("generate", "x", "--reuse-steps", "0"), 2, "error: reuse_steps: must be 1 to 199, not 0\n"),
        (
            ("generate", "x", "--region-end", "2"),
            2,
            "error: reuse_steps: must be given with region_end: 1 to the number of steps − 1",
        ),
        (
            ("generate", "x", "--reuse-steps", "1", "--amplify", "bias:9"),
            2,
            "error: amplify.strength: must be 0 to 4, not 9\n",
        ),
        (("generate", "x", "-o", "no/such/x.mp4"), 2, "no/such does not exist\n"),
        (
            ("generate", "x", "--model", "nowhere"),
            3,
            "error: denoiser is not available: connection refused\n",
        ),
        (("generate", "fail please"), 1, "error: gen-1 failed: the model produced NaN at step 3\n"),
        (("watch", "gen-9"), 2, "error: no generation 'gen-9'\n"),
        (("cancel", "gen-9"), 2, "error: no generation 'gen-9'\n"),
        (("get", "gen-9"), 2, "error: no generation 'gen-9'\n"),
        (("retry", "gen-9"), 2, "error: no generation 'gen-9'\n"),
        (("explain", "gen-9"), 2, "error: no generation 'gen-9'\n"),
        (("jobs", "--state", "asleep"), 2, "'asleep' is not one of 'queued'"),
        (("generate",), 2, "error: prompt: give a PROMPT, or a file of prompts with --file\n"),
        (("generate", "x", "-f", "p.txt"), 2, "error: file: give PROMPT or --file, not both\n"),
        (("generate", "-f", "none.txt"), 2, "No such file or directory: 'none.txt'"),
        (
            ("generate", "-f", "p.txt", "--request-id", "r"),
            2,
            "request_id: cannot be given with --file",
        ),
    ],
)
def test_errors_end_with_their_status_and_one_line(
    deployment: FakeDeployment, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = chorus(*arguments, target=deployment.target)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_error_as_json_names_every_field(deployment: FakeDeployment) -> None:
    result = chorus(
        "generate", " ", "--frames", "65", "--height", "8", "--width", "8", "--json", target=deployment.target
    )
    assert result.exit_code == 2
    [line] = lines(result)
    assert line["error"]["reason"] == "INVALID_FIELD"
    assert [v["field"] for v in line["error"]["violations"]] == ["spec.prompt", "spec.shape.frames"]


def test_target_without_a_server_is_named_with_the_remedy() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{holder.getsockname()[1]}"
        for arguments, variable in (
            (("jobs",), "CHORUS_TARGET"),
            (("generate", "x"), "CHORUS_TARGET"),
            (("watch", "gen-1"), "CHORUS_TARGET"),
            (("explain", "gen-1"), "CHORUS_TARGET"),
            (("cache", "stats"), "CHORUS_CACHE_TARGET"),
        ):
            result = chorus(*arguments, target=target)
            assert result.exit_code == 3
            remedy = f"start one with `chorus up`, or pass --target / {variable}"
            assert result.stderr == f"error: nothing answers at {target}: {remedy}\n"


def test_running_up_of_this_directory_is_the_default_target(
    deployment: FakeDeployment, tmp_path: Path
) -> None:
    directory = tmp_path / ".chorus"
    directory.mkdir()
    endpoints.write(directory, endpoints.Endpoints(os.getpid(), {"scheduler": deployment.target}))
    assert chorus("jobs").exit_code == 0
    assert chorus("jobs", "--target", "127.0.0.1:1").exit_code == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Makes children handle SIGINT, which they inherit as ignored from a background process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("arguments", [("slow circle",), ("--file", "prompts.txt")])
def test_interrupting_generate_cancels_the_generation(
    deployment: FakeDeployment, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "prompts.txt").write_text("slow circle\nnever started\n")
    command = [sys.executable, "-m", "chorus_cli", "generate", *arguments, "--target", deployment.target]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert deployment.scheduler.watching.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; gen-1 is cancelled" in errors
    assert "Traceback" not in errors
    assert deployment.scheduler.events["gen-1"][-1].HasField("cancelled")
    assert len(deployment.scheduler.requests) == 1
    assert list(tmp_path.rglob("*.mp4*")) == []
    if "--file" in arguments:
        assert errors.endswith("0 of 2 generated, 2 not started or not finished\n")


def test_client_imports_no_heavy_dependency() -> None:
    script = (
        "import sys, chorus_cli.main, chorus_cli.local.up\n"
        "heavy = {'torch', 'numpy', 'pymilvus', 'pydantic', 'structlog', 'PIL', 'av', 'opentelemetry'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment,
    )
    assert found.stdout.strip() == "[]"


def test_preview_shows_the_plan_and_submits_nothing(deployment: FakeDeployment) -> None:
    result = chorus("generate", "a blue circle", "--preview", "--priority", "high", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "cache hit: 2 of 4 steps reused from “a red circle”, score 0.910",
        "expected: 0.8 s instead of 1.2 s, after 3.0 s in the queue",
    ]
    assert not deployment.scheduler.requests
    result = chorus("generate", "a blue circle", "--preview", "--json", target=deployment.target)
    assert lines(result)[0]["preview"]["spec"]["prompt"] == "a blue circle"


def test_models_are_listed_with_their_bounds(deployment: FakeDeployment) -> None:
    result = chorus("models", target=deployment.target)
    assert result.exit_code == 0, result.output
    header, small, large = result.stdout.splitlines()
    assert header.split() == ["model", "frames", "height", "width", "steps", "default", "s/step"]
    assert small.startswith("small  8-64 by 8  32-64 by 32")
    assert small.endswith("16 x 64 x 64, 4 steps    0.25")
    assert large.startswith("large")


def test_report_is_stored_listed_and_withdrawn(deployment: FakeDeployment) -> None:
    chorus("generate", "a red circle", "--json", target=deployment.target)
    chorus("generate", "repeat a circle", "--json", target=deployment.target)
    result = chorus(
        "report", "gen-1", "--problem", "donor-visible", "--comment", "a square", target=deployment.target
    )
    assert (result.exit_code, result.stdout) == (0, "gen-1 reported: donor-visible\n"), result.output
    report = deployment.scheduler.generations["gen-1"].report
    assert (report.problem, report.comment) == (scheduler_pb2.REPORTED_PROBLEM_DONOR_VISIBLE, "a square")
    for options, ids in (
        (("--reported",), ["gen-1"]),
        (("--decision", "exact"), ["gen-2"]),
        (("--model", "none"), []),
    ):
        listed = lines(chorus("jobs", *options, "--json", target=deployment.target))
        assert [each["generation"]["generation_id"] for each in listed] == ids
    chorus("jobs", "--edit", "colour", target=deployment.target)
    assert deployment.scheduler.lists[-1].edit_kind == "colour"
    for _ in range(2):
        result = chorus("report", "gen-1", "--withdraw", target=deployment.target)
        assert (result.exit_code, result.stdout) == (0, "gen-1 has no report\n")
    for wrong in ((), ("--withdraw", "--problem", "other"), ("--withdraw", "--comment", "x")):
        result = chorus("report", "gen-1", *wrong, target=deployment.target)
        assert result.exit_code == 2
        assert "give --problem, with --comment if you like, or --withdraw alone" in result.stderr


def test_priority_changes_the_class_of_what_waits(deployment: FakeDeployment) -> None:
    chorus("generate", "slow circle", "--detach", target=deployment.target)
    generation = deployment.scheduler.generations["gen-1"]
    generation.state, generation.queue_position = scheduler_pb2.GENERATION_STATE_QUEUED, 3
    result = chorus("priority", "gen-1", "high", target=deployment.target)
    assert (result.exit_code, result.stdout) == (0, "gen-1 high, position 3\n"), result.output
    assert generation.spec.priority == scheduler_pb2.PRIORITY_HIGH
    assert chorus("priority", "gen-1", "urgent", target=deployment.target).exit_code == 2


def test_rm_deletes_generations_that_all_exist(deployment: FakeDeployment) -> None:
    for prompt in ("a red circle", "a blue circle"):
        chorus("generate", prompt, "-o", "out.mp4", target=deployment.target)
    result = chorus("rm", "gen-1", "none", target=deployment.target)
    assert result.exit_code != 0
    assert len(deployment.scheduler.generations) == 2, "nothing is deleted if one id is unknown"
    result = chorus("rm", "gen-1", "gen-2", target=deployment.target)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["gen-1 deleted", "gen-2 deleted"]
    assert not deployment.scheduler.generations
