"""Keeps a set of child processes running: start, wait until ready, restart after a crash, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

_TETHER: Final = Path(__file__).with_name("tether.py")
_TAIL_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class Child:
    """One process to keep running.

    Attributes:
        environment: complete environment of the process.
        log: file to which its output is appended.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class Limits:
    """Bounds on waits and restarts.

    Attributes:
        startup_seconds: upper bound on the time until a child is ready.
        slow_seconds: time after which a child that is not ready is reported once.
        stop_seconds: time from SIGTERM to SIGKILL.
        restarts: upper bound on the restarts of a child within `window_seconds`.
        window_seconds: length of the window in which restarts are counted.
        first_backoff_seconds: wait before the first restart; doubled for each further one in the window.
        max_backoff_seconds: upper bound on that wait.
        poll_seconds: time between two checks whether a child is ready.
    """

    startup_seconds: float = 300.0
    slow_seconds: float = 8.0
    stop_seconds: float = 25.0
    restarts: int = 5
    window_seconds: float = 300.0
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 10.0
    poll_seconds: float = 0.1


class Reporter(Protocol):
    """Callbacks for the events of the children."""

    def started(self, child: Child, pid: int) -> None: ...

    def slow(self, child: Child) -> None: ...

    def ready(self, child: Child, seconds: float) -> None: ...

    def crashed(self, child: Child, status: int, restart_in: float) -> None: ...


class GaveUp(Exception):
    """Failure to keep a child running; the message names the child and the cause."""

    def __init__(self, child: Child, message: str) -> None:
        super().__init__(message)
        self.child = child


@dataclass
class _Kept:
    child: Child
    process: asyncio.subprocess.Process | None = None
    was_ready: asyncio.Event = field(default_factory=asyncio.Event)
    crashes: deque[float] = field(default_factory=deque)


class Supervisor:
    """Owns the children while `run` runs; none outlives it, even if this process is killed.

    Args:
        ready: function called repeatedly until it returns True, when the child serves.
        keep_open: file descriptors that the children inherit, such as a lock that must outlive this process.
    """

    def __init__(
        self,
        children: Sequence[Child],
        ready: Callable[[Child], Awaitable[bool]],
        reporter: Reporter,
        limits: Limits = Limits(),
        keep_open: Sequence[int] = (),
    ) -> None:
        self._kept = [_Kept(child) for child in children]
        self._ready = ready
        self._reporter = reporter
        self._limits = limits
        self._keep_open = tuple(keep_open)
        self._hurry = asyncio.Event()

    def pids(self) -> dict[str, int]:
        """Returns the ids of the running processes, by child."""
        return {k.child.name: k.process.pid for k in self._kept if k.process and k.process.returncode is None}

    def hurry(self) -> None:
        """Makes the stop skip the drains."""
        self._hurry.set()

    async def run(self, stop: asyncio.Event, all_ready: Callable[[], None]) -> None:
        """Runs until `stop` is set; calls `all_ready` once, when every child has been ready.

        Raises GaveUp if a child ends or is not ready in time at the start, or crashes too often later.
        """
        # Each task ends only by `stop` or with an exception.
        tasks = [asyncio.ensure_future(self._keep(kept)) for kept in self._kept]
        tasks += [asyncio.ensure_future(self._announce(all_ready, stop))]
        tasks += [asyncio.ensure_future(_until(stop))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(self._end(kept) for kept in self._kept))

    async def _announce(self, all_ready: Callable[[], None], stop: asyncio.Event) -> None:
        for kept in self._kept:
            await kept.was_ready.wait()
        all_ready()
        await stop.wait()

    async def _keep(self, kept: _Kept) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            kept.process = process = await self._spawn(kept.child)
            self._reporter.started(kept.child, process.pid)
            exited = asyncio.ensure_future(process.wait())
            try:
                await self._until_ready(kept, exited)
                status = await exited
            finally:
                exited.cancel()
            _sweep(process)
            if not kept.was_ready.is_set():
                raise GaveUp(kept.child, f"{kept.child.name} {describe_status(status)} before it was ready")
            pause = self._pause(kept, clock(), status)
            self._reporter.crashed(kept.child, status, pause)
            await asyncio.sleep(pause)

    def _pause(self, kept: _Kept, now: float, status: int) -> float:
        """Returns the seconds to wait before the restart. Raises GaveUp after too many restarts."""
        limits = self._limits
        kept.crashes.append(now)
        while now - kept.crashes[0] > limits.window_seconds:
            kept.crashes.popleft()
        if len(kept.crashes) > limits.restarts:
            raise GaveUp(
                kept.child,
                f"{kept.child.name} {describe_status(status)}, the crash number {len(kept.crashes)} within "
                f"{limits.window_seconds:g} s",
            )
        return min(limits.max_backoff_seconds, limits.first_backoff_seconds * 2.0 ** (len(kept.crashes) - 1))

    async def _until_ready(self, kept: _Kept, exited: asyncio.Future[int]) -> None:
        """Waits until the child is ready or has ended."""
        clock = asyncio.get_running_loop().time
        begin, reported = clock(), False
        while not exited.done():
            if await self._ready(kept.child):
                self._reporter.ready(kept.child, clock() - begin)
                kept.was_ready.set()
                return
            if clock() - begin > self._limits.startup_seconds:
                raise GaveUp(
                    kept.child, f"{kept.child.name} was not ready within {self._limits.startup_seconds:g} s"
                )
            if not reported and clock() - begin > self._limits.slow_seconds:
                self._reporter.slow(kept.child)
                reported = True
            await asyncio.wait((exited,), timeout=self._limits.poll_seconds)

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        with child.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *tethered(child.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(child.environment),
                pass_fds=self._keep_open,
                # A Ctrl-C at the terminal reaches this process only; it stops the children by SIGTERM.
                start_new_session=True,
            )

    async def _end(self, kept: _Kept) -> None:
        process = kept.process
        if process is None:
            return
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            waits = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._hurry.wait())]
            await asyncio.wait(waits, timeout=self._limits.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
            waits[1].cancel()
        _sweep(process)
        await process.wait()


def tethered(command: Sequence[str]) -> tuple[str, ...]:
    """Returns the command wrapped so that it is killed when this process dies (on Linux)."""
    return (sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _sweep(process: asyncio.subprocess.Process) -> None:
    """Kills the rest of the child's session: the child if it hangs, and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def describe_status(status: int) -> str:
    """Describes an exit status: "ended with status 1" or "was killed by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def rotate(log: Path) -> None:
    """Renames the log of an earlier run to `….1`, replacing the one before it."""
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))


def tail(log: Path, lines: int = 12) -> list[str]:
    """Returns the last lines of a log; empty if it does not exist."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
