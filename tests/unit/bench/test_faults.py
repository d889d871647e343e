"""Verifies the figures of bench.faults, and the relay that its scenarios silence."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import typer

from bench.faults import scenarios
from bench.faults.__main__ import build_figures, main
from bench.faults.load import Job, Outcome, compare_tails
from bench.faults.marks import read_report
from bench.faults.relay import running_relay
from bench.faults.scenarios import Result
from tests.faults import FAULTS


def make_job(seconds: float, *, reused: bool = True, start: float = 10.0, outcome: str = "succeeded") -> Job:
    return Job(start, seconds, reused, Outcome(outcome))


def test_overhead_is_the_difference_of_the_tails_in_milliseconds() -> None:
    jobs = [make_job(1.0, reused=False)] * 20 + [make_job(1.05)] * 20
    figure = compare_tails(jobs)
    assert figure is not None
    assert figure.value == pytest.approx(50.0)
    assert figure.n == 20
    assert figure.ci95 == pytest.approx((50.0, 50.0))


def test_overhead_needs_jobs_of_both_groups() -> None:
    failed = make_job(1.0, reused=False, outcome="failed")
    assert compare_tails([make_job(1.0), failed]) is None


def test_refused_jobs_are_not_counted_as_accepted() -> None:
    jobs = [make_job(1.0), make_job(1.0, outcome="lost"), make_job(1.0, outcome="refused")]
    figures = build_figures("disk_full", Result(jobs, 2.0))
    values = {name.removeprefix("disk_full."): figure.value for name, figure in figures.items()}
    assert values == {
        "accepted": 2,
        "succeeded": 1,
        "not_succeeded": 1,
        "refused": 1,
        "recovery_seconds": 2.0,
    }


def test_settled_overhead_leaves_out_the_first_jobs() -> None:
    first = [make_job(1.0, reused=False, start=0.0), make_job(3.0, start=1.0)]
    later = [make_job(1.0, reused=False)] * 3 + [make_job(1.02)] * 3
    figures = build_figures("cache_silent", Result([*first, *later], 1.0))
    assert figures["cache_silent.overhead_settled_ms_p95"].value == pytest.approx(20.0)
    assert figures["cache_silent.overhead_ms_p95"].value > 1000
    assert figures["cache_silent.slowest_seconds"].value == 3.0


def test_kind_is_fixed_if_a_test_passed_and_none_failed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    kinds = iter(("logging", "proxy", "proxy", "fork"))
    bodies = ("", "", '<failure message="wrong"/>', "<skipped/>")
    cases = "".join(
        '<testcase classname="tests.a" name="b"><properties>'
        f'<property name="fault" value="{kind}"/></properties>{body}</testcase>'
        for kind, body in zip(kinds, bodies, strict=True)
    )
    report.write_text(f'<testsuites><testsuite>{cases}<testcase name="unmarked"/></testsuite></testsuites>')
    read = read_report(report)
    assert set(read) == set(FAULTS)
    assert [name for name, kind in read.items() if kind.fixed] == ["logging"]
    assert read["proxy"].failed == ["tests.a::b"]
    assert read["fork"].skipped == 1


def test_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(typer.BadParameter, match=r"unknown scenario flood; known: cache_silent, "):
        main(scenario=["flood"])


def test_scenario_names_the_servers_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHORUS_TEST_S3_ENDPOINT", raising=False)
    assert "infra/testservers/run" in scenarios.missing_requirement("s3_silent")


def test_silent_relay_accepts_and_forwards_only_after_it_resumes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=echo_once, args=(server,))
        thread.start()
        with running_relay(f"127.0.0.1:{server.getsockname()[1]}") as relay:
            host, port = relay.address.split(":")
            relay.silence()
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(b"ping")
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.recv(4)
                relay.resume()
                connection.settimeout(10)
                assert connection.recv(4) == b"ping"
        thread.join(10)


def echo_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(connection.recv(4))
