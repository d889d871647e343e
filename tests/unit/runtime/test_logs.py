"""Verifies that a logger neither raises nor waits, whatever happens to stderr, and that it recovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.runtime.log_sink import LogSink
from tests.processes import ROOT

pytestmark = pytest.mark.fault("logging")

_SCRIPT = """
import logging, os, resource, sys
from services.runtime.logs import configure_logs, get_logger
log = get_logger("test")
configure_logs("cache", "info", "json")

def say(text, **fields):
    log.info(text, **fields)
    logging.getLogger("library").warning("warning of a library")
    print("printed by a library", file=sys.stderr)

class Broken:
    def __repr__(self):
        raise RuntimeError("no repr")

"""


def run(body: str, stderr: Any = subprocess.PIPE, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a process that logs; it prints to stdout what the test needs."""
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT + body],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def test_reader_that_has_gone_ends_no_caller() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run("for _ in range(3): say('a line')\nprint('done')", stderr=writing)
    finally:
        os.close(writing)
    assert (result.stdout, result.returncode) == ("done\n", 0)


def test_full_disk_ends_no_caller() -> None:
    with Path("/dev/full").open("w") as full:
        result = run("for _ in range(3): say('a line')\nprint('done')", stderr=full)
    assert (result.stdout, result.returncode) == ("done\n", 0)


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_file_opened_later_receives_no_log_lines(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """With stderr closed, the first file that a process opens would take its place."""
    database = tmp_path / "database"

    def close_streams() -> None:
        for descriptor in closed:
            os.close(descriptor)

    result = run(
        f"file = open({str(database)!r}, 'wb', buffering=0)\nsay('a line')\nfile.write(b'data')",
        preexec_fn=close_streams,
    )
    assert result.returncode == 0
    assert database.read_bytes() == b"data"


def test_lines_are_written_again_after_space_was_freed(tmp_path: Path) -> None:
    """A limit on the size of files takes the place of the full disk, since anyone may raise it again."""
    path = tmp_path / "log"
    body = (
        "say('before')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(2).st_size + 10, resource.RLIM_INFINITY))\n"
        "for _ in range(5): log.info('while full')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "log.info('after')\n"
    )
    with path.open("wb") as log:
        result = run(body, stderr=log)
    assert result.returncode == 0
    lines = path.read_text().splitlines()
    assert [parse(line).get("event") for line in lines if line.startswith('{"')][-2:] == [
        "after",
        "log lines lost",
    ]
    assert parse(lines[-1])["lines"] == 5
    assert parse(lines[-1])["cause"] == "File too large"


def parse(line: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return fields


def test_field_that_cannot_be_rendered_does_not_raise() -> None:
    result = run("say('a line', field=Broken())\nprint('done')")
    assert (result.stdout, result.returncode) == ("done\n", 0)
    assert "log line not rendered" in result.stderr
    assert "warning of a library" in result.stderr


def test_text_that_is_not_unicode_is_escaped() -> None:
    result = run("say('a \\udc80 line')\nprint('done')")
    assert (result.stdout, result.returncode) == ("done\n", 0)
    assert "\\udc80 line" in result.stderr


def test_reader_that_does_not_read_delays_one_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the waits: a pipe whose reader is stopped must not stop the service."""
    reading, writing = os.pipe()
    try:
        sink = LogSink(writing)
        waits = 0
        for _ in range(100):
            waits += count_waits(sink, monkeypatch, lambda: sink.write("x" * 4_000 + "\n"))
        assert waits == 1
        assert sink.take_loss() is None, "not reported before lines are written again"
        reader = threading.Thread(target=drain, args=(reading,))
        reader.start()
        while sink.take_loss() is None:
            sink.write("after\n")
    finally:
        os.close(writing)
    reader.join(10)
    os.close(reading)
    assert not reader.is_alive()


def drain(descriptor: int) -> None:
    while os.read(descriptor, 1 << 16):
        pass


def count_waits(sink: LogSink, monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> int:
    """Returns how often `action` waited for the reader with a time limit above 0."""
    waits = 0
    poll = sink._writable

    class Counting:
        def poll(self, milliseconds: float) -> Any:
            nonlocal waits
            ready = poll.poll(milliseconds)
            waits += not ready and milliseconds > 0
            return ready

    with monkeypatch.context() as patch:
        patch.setattr(sink, "_writable", Counting())
        action()
    return waits
