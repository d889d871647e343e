"""Verifies the output of the commands on unusual streams, in a process of its own each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from pathlib import Path
from chorus_cli.output import LastingOutput, Output
from chorus_rpc.errors import not_found
from typer import Exit
out = Output(as_json=sys.argv[1] == "json")
try:
    with out.faults():
        if sys.argv[2] == "last":
            out = LastingOutput(out.as_json)
            for _ in range(3):
                out.print("text", text="x")
                out.status("status")
            Path(sys.argv[3]).write_text("done")
        if sys.argv[2] == "fail":
            raise not_found("generation", "x")
        out.print("– “a red circle”", text="x")
        out.is_interactive
except Exit as end:
    sys.exit(end.exit_code)
"""


def run(
    redirections: str, form: str = "text", action: str = "print", **variables: str
) -> tuple[int, str, str]:
    """Runs the script in a shell with the redirections; returns its status, stdout and stderr."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", _SCRIPT, form, action],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("redirections", [">&-", "<&-", "2>&-"])
def test_closed_stream_is_no_error(form: str, redirections: str) -> None:
    status, _, stderr = run(redirections, form)
    assert (status, stderr) == (0, "")


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    status, stdout, stderr = run("", PYTHONIOENCODING="ascii:strict")
    assert (status, stdout, stderr) == (0, "\\u2013 \\u201ca red circle\\u201d\n", "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
@pytest.mark.parametrize("form", ["text", "json"])
def test_full_disk_is_reported_without_a_traceback(form: str) -> None:
    status, _, stderr = run(">/dev/full", form)
    assert "Traceback" not in stderr
    assert status == 2


def test_error_on_a_closed_pipe_ends_with_its_status() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "text", "fail"], stdout=subprocess.PIPE, stderr=write, timeout=60
    )
    os.close(write)
    assert done.returncode == 141


@pytest.mark.fault("logging")
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("sink", ["closed pipe", "full disk"])
def test_lasting_command_continues_without_a_reader(form: str, sink: str, tmp_path: Path) -> None:
    if sink == "full disk":
        write = os.open("/dev/full", os.O_WRONLY)
    else:
        read, write = os.pipe()
        os.close(read)
    result = tmp_path / "result"
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, form, "last", str(result)], stdout=write, stderr=write, timeout=60
    )
    os.close(write)
    assert result.read_text() == "done"
