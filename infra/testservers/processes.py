"""Child processes with one owner, a log each, a deadline on their start, and a guaranteed stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

POLL_SECONDS = 0.1
TAIL_LINES = 20


class ServerError(RuntimeError):
    """Failure of a server or an installation. The message names it, the cause and the log file."""


@dataclass(frozen=True)
class Process:
    name: str
    child: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `ready()` is true. Raises ServerError if the process ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while not ready():
            if (status := self.child.poll()) is not None:
                raise ServerError(f"{self.name} ended with status {status}.{format_tail(self.log)}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} was not ready within {seconds:g} s.{format_tail(self.log)}")
            time.sleep(POLL_SECONDS)


class Processes:
    """Starts processes, and on exit kills them and their descendants."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Starts a process that writes to `<logs>/<name>.log`; `env` is added to the environment.

        The kernel kills the process when the *thread* that started it ends (the rule of the parent-death
        signal), so that no process survives if this program is killed. That thread must not end earlier.
        """
        log = self._logs / f"{name}.log"
        # A separate session: Ctrl-C reaches only the command, and the process group can be killed.
        with self._lock, log.open("ab") as output:
            if self._stopped:
                raise ServerError(f"{name} is not started: stopping")
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
            self._children.append(child)
        return Process(name, child, log)

    def call(self, name: str, command: Sequence[str | Path], *, seconds: float) -> None:
        """Runs a command to its end, with a log as in `start`. Raises ServerError unless it exits with 0."""
        process = self.start(name, command)
        process.wait_until(lambda: process.child.poll() == 0, seconds)

    def stop(self) -> None:
        """Kills and reaps every process. SIGKILL, as the state is discarded and Milvus ignores SIGTERM."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                # A child keeps its pid until it is reaped, so the group cannot belong to another process.
                if child.returncode is None:
                    with suppress(ProcessLookupError):  # reaped by the thread that started it
                        os.killpg(child.pid, signal.SIGKILL)
            for child in self._children:
                child.wait()


def find_free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Returns whether a GET of `url` returns status 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def format_tail(log: Path) -> str:
    """Formats the last lines of a log and its path, for an error message."""
    lines = log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    return "".join(f"\n  | {line}" for line in lines) + f"\n  log: {log}"
