"""What the programs of this directory share: one run at a time, a command as a child, an exit status."""

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


def status_of(serve: Callable[[Sequence[str]], int], command: Sequence[str]) -> int:
    """Serves for `command`. Returns its exit status: 127 if there is no such program, 1 if a server fails.

    SIGTERM and SIGHUP end it like Ctrl-C does, so that everything is stopped and removed.
    """
    if sys.platform != "linux":
        print(
            f"testservers: needs Linux, which the servers are built for; this is {sys.platform}",
            file=sys.stderr,
        )
        return 1
    if command and shutil.which(command[0]) is None:
        print(f"testservers: no such command: {command[0]}", file=sys.stderr)
        return 127
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return serve(command)
    except ServerError as error:
        print(f"testservers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One run at a time installs into, and logs under, a directory of the checkout; it is made here."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(
                f"another run of this checkout is not over ({home / 'lock'} is held)"
            ) from error
        yield


def run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Runs the command to its end, with variables added. Returns its status, 128 + n for a signal."""
    child = subprocess.Popen(command, env={**os.environ, **variables})
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
