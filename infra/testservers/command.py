"""Shared functions of the programs in this folder: exclusive runs, child processes and exit statuses."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from infra.testservers.processes import ServerError

GRACE_SECONDS = 20


def run_program(serve: Callable[[Sequence[str]], int], command: Sequence[str]) -> int:
    """Calls `serve` with the command. Returns its status, 127 for an unknown program, 1 for a failed server.

    SIGTERM and SIGHUP end the program in the same way as Ctrl-C, so that everything is stopped and removed.
    """
    if sys.platform != "linux":
        print(
            f"testservers: the servers are built for Linux only; this is {sys.platform}",
            file=sys.stderr,
        )
        return 1
    if command and shutil.which(command[0]) is None:
        print(f"testservers: no such command: {command[0]}", file=sys.stderr)
        return 127
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        return serve(command)
    except ServerError as error:
        print(f"testservers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Holds the lock of `home`, a directory of the checkout for installations and logs; creates it.

    Raises ServerError if another run holds the lock.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(f"another run of this checkout is active (it holds {home / 'lock'})") from error
        yield


def run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Runs the command with additional variables. Returns its exit status, or 128 + n for signal n."""
    child = subprocess.Popen(command, env={**os.environ, **variables})
    try:
        status = child.wait()
    except KeyboardInterrupt:
        # The terminal sent the signal to the command too, which may need time to finish.
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


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
