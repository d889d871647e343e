"""Starts Milvus and an S3 server side by side, with a browser installed, runs a command against them, and
stops them."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.testservers import command as commands
from infra.testservers import install, milvus, rgw
from infra.testservers.processes import Processes

HOME = Path(__file__).resolve().parents[2] / "build" / "testservers"
USAGE = "usage: infra/testservers/run COMMAND [ARGUMENT…]   (for instance: infra/testservers/run bash)"


def main(command: Sequence[str]) -> int:
    """Returns the command's exit status, or 2 for wrong usage."""
    if not command:
        print(USAGE, file=sys.stderr)
        return 2
    return commands.run_program(_serve, command)


def _serve(command: Sequence[str]) -> int:
    logs = HOME / "logs"
    # Exits from bottom to top: stops the processes, ends the threads, removes the state.
    with (
        commands.exclusive(HOME),
        tempfile.TemporaryDirectory(prefix="chorus-") as state,
        milvus.remove_leftovers(),
        ThreadPoolExecutor(max_workers=2) as pool,
        Processes(logs) as processes,
    ):
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        install.install_debian_packages({"chromium": ["chromium"]}, logs / "apt.log")
        (milvus_state := Path(state, "milvus")).mkdir()
        (rgw_state := Path(state, "rgw")).mkdir()
        starting = [
            pool.submit(_timed, "Milvus", lambda: milvus.start(processes, HOME, milvus_state, logs)),
            pool.submit(_timed, "S3", lambda: rgw.start(processes, rgw_state, logs)),
        ]
        variables = {name: value for future in starting for name, value in future.result().items()}
        return commands.run(command, variables)


def _timed(name: str, start: Callable[[], dict[str, str]]) -> dict[str, str]:
    began = time.monotonic()
    variables = start()
    print(f"testservers: {name} ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
    return variables
