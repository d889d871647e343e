"""Starts Milvus and an S3 server side by side, runs a command against them, and stops them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from infra.testservers import milvus, rgw
from infra.testservers.processes import Processes, ServerError

HOME = Path(__file__).resolve().parents[2] / "build" / "testservers"
USAGE = "usage: infra/testservers/run COMMAND [ARGUMENT…]   (for instance: infra/testservers/run bash)"
GRACE_SECONDS = 20


def main(command: Sequence[str]) -> int:
    """Returns the command's exit status; 2 for wrong usage, 1 if a server does not start."""
    if not command:
        print(USAGE, file=sys.stderr)
        return 2
    if shutil.which(command[0]) is None:
        print(f"testservers: no such command: {command[0]}", file=sys.stderr)
        return 127
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return _serve(command)
    except ServerError as error:
        print(f"testservers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _serve(command: Sequence[str]) -> int:
    if sys.platform != "linux":
        raise ServerError(f"needs Linux, as the servers' packages are for it; this is {sys.platform}")
    logs = HOME / "logs"
    # From right to left: the processes are stopped first, then the threads end, then the state is removed.
    with (
        _alone(),
        tempfile.TemporaryDirectory(prefix="chorus-") as state,
        ThreadPoolExecutor(max_workers=2) as pool,
        Processes(logs) as processes,
    ):
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        (milvus_state := Path(state, "milvus")).mkdir()
        (rgw_state := Path(state, "rgw")).mkdir()
        starting = [
            pool.submit(_timed, "Milvus", lambda: milvus.start(processes, HOME, milvus_state, logs)),
            pool.submit(_timed, "S3", lambda: rgw.start(processes, rgw_state, logs)),
        ]
        found = {name: value for future in starting for name, value in future.result().items()}
        return _run(command, found)


@contextmanager
def _alone() -> Iterator[None]:
    """One run at a time installs into, and logs under, this checkout's directory."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(
                f"another run of this checkout is not over ({HOME / 'lock'} is held)"
            ) from error
        yield


def _timed(name: str, start: Callable[[], dict[str, str]]) -> dict[str, str]:
    began = time.monotonic()
    found = start()
    print(f"testservers: {name} ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
    return found


def _run(command: Sequence[str], found: Mapping[str, str]) -> int:
    child = subprocess.Popen(command, env={**os.environ, **found})
    try:
        status = child.wait()
    except KeyboardInterrupt:
        # The terminal sent it to the command too, which may have something to say before it ends.
        _wait_or_kill(child)
        raise
    except SystemExit:
        child.terminate()
        _wait_or_kill(child)
        raise
    return status if status >= 0 else 128 - status


def _wait_or_kill(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
