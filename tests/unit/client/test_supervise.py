"""Verifies the supervision of child processes, with children of a few lines."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chorus_cli.local.supervise import Child, GaveUp, Limits, Supervisor, rotate, tail

PATIENCE = 30.0
QUICK = Limits(startup_seconds=20, stop_seconds=20, restarts=2, first_backoff_seconds=0.01, poll_seconds=0.01)

# Serves until SIGTERM, then prints a line.
STEADY = """
import pathlib, signal, sys
def end(*_):
    print("drained", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
while True: signal.pause()
"""
STUBBORN = STEADY.replace(
    "signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
)


class Notes:
    """Reporter that records every callback."""

    def __init__(self) -> None:
        self.pids: dict[str, list[int]] = {}
        self.crashes: list[tuple[str, int]] = []
        self.ready_names: list[str] = []
        self.slow_names: list[str] = []
        self.changed = asyncio.Event()

    def started(self, child: Child, pid: int) -> None:
        self.pids.setdefault(child.name, []).append(pid)
        self.changed.set()

    def slow(self, child: Child) -> None:
        self.slow_names.append(child.name)
        self.changed.set()

    def ready(self, child: Child, seconds: float) -> None:
        self.ready_names.append(child.name)
        self.changed.set()

    def crashed(self, child: Child, status: int, restart_in: float) -> None:
        self.crashes.append((child.name, status))
        self.marker(child).unlink(missing_ok=True)  # so that readiness means the new process
        self.changed.set()

    @staticmethod
    def marker(child: Child) -> Path:
        return child.log.with_suffix(".ready")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def child(folder: Path, name: str, script: str) -> Child:
    log = folder / f"{name}.log"
    command = (sys.executable, "-I", "-S", "-c", script, str(log.with_suffix(".ready")))
    return Child(name, command, dict(os.environ), log)


async def is_ready(child: Child) -> bool:
    return Notes.marker(child).exists()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Run:
    """Running supervisor and its reports."""

    def __init__(self, children: list[Child], limits: Limits = QUICK) -> None:
        self.notes = Notes()
        self.stop = asyncio.Event()
        self.all_ready = asyncio.Event()
        self.supervisor = Supervisor(children, is_ready, self.notes, limits)
        self.task = asyncio.create_task(self.supervisor.run(self.stop, self.all_ready.set))

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.task


async def test_all_become_ready_and_stop_drains_each(tmp_path: Path) -> None:
    children = [child(tmp_path, name, STEADY) for name in ("a", "b")]
    run = Run(children)
    async with asyncio.timeout(PATIENCE):
        await run.all_ready.wait()
    pids = run.supervisor.pids()
    assert set(pids) == {"a", "b"}
    run.stop.set()
    await run.ended()
    assert [c.log.read_text() for c in children] == ["drained\n", "drained\n"]
    assert not any(lives(pid) for pid in pids.values())
    assert run.notes.crashes == []


async def test_slow_start_is_reported_once(tmp_path: Path) -> None:
    slow = child(tmp_path, "slow", "import time; time.sleep(60)")
    run = Run([child(tmp_path, "quick", STEADY), slow], replace(QUICK, slow_seconds=0.5, stop_seconds=0.1))
    await run.notes.until(lambda: run.notes.slow_names == ["slow"])
    await asyncio.sleep(0.3)  # some polls later
    Notes.marker(slow).touch()
    await run.notes.until(lambda: "slow" in run.notes.ready_names)
    run.stop.set()
    await run.ended()
    assert run.notes.slow_names == ["slow"]


async def test_killed_child_is_reported_and_started_again(tmp_path: Path) -> None:
    run = Run([child(tmp_path, "a", STEADY), child(tmp_path, "b", STEADY)])
    async with asyncio.timeout(PATIENCE):
        await run.all_ready.wait()
    before = run.supervisor.pids()
    os.kill(before["a"], signal.SIGKILL)
    await run.notes.until(lambda: run.notes.ready_names.count("a") == 2)
    after = run.supervisor.pids()
    assert run.notes.crashes == [("a", -signal.SIGKILL)]
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
    run.stop.set()
    await run.ended()


async def test_too_many_crashes_end_everything(tmp_path: Path) -> None:
    async def at_once(child: Child) -> bool:
        return True

    notes, stop = Notes(), asyncio.Event()
    children = [child(tmp_path, "a", "raise SystemExit(3)"), child(tmp_path, "b", STEADY)]
    supervisor = Supervisor(children, at_once, notes, QUICK)
    with pytest.raises(GaveUp, match=r"a ended with status 3, the crash number 3 within 300 s") as fault:
        async with asyncio.timeout(PATIENCE):
            await supervisor.run(stop, lambda: None)
    assert fault.value.child.name == "a"
    assert notes.crashes == [("a", 3), ("a", 3)]
    assert not any(lives(pid) for pids in notes.pids.values() for pid in pids)


async def test_child_that_cannot_start_is_not_tried_again(tmp_path: Path) -> None:
    broken = child(tmp_path, "a", "import sys; print('no such thing', file=sys.stderr); sys.exit(2)")
    run = Run([broken, child(tmp_path, "b", STEADY)])
    with pytest.raises(GaveUp, match="a ended with status 2 before it was ready"):
        await run.ended()
    assert tail(broken.log) == ["no such thing"]
    assert len(run.notes.pids["a"]) == 1
    assert not any(lives(pid) for pids in run.notes.pids.values() for pid in pids)


async def test_child_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    silent = child(tmp_path, "a", "import signal; signal.pause()")
    run = Run([silent], Limits(startup_seconds=0.2, stop_seconds=20, poll_seconds=0.01))
    with pytest.raises(GaveUp, match=r"a was not ready within 0\.2 s"):
        await run.ended()
    assert not any(lives(pid) for pid in run.notes.pids["a"])


async def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    run = Run([child(tmp_path, "a", STUBBORN)], Limits(stop_seconds=0.2, poll_seconds=0.01))
    async with asyncio.timeout(PATIENCE):
        await run.all_ready.wait()
    run.stop.set()
    await run.ended()
    assert not lives(run.notes.pids["a"][0])


async def test_hurry_skips_the_drain(tmp_path: Path) -> None:
    run = Run([child(tmp_path, "a", STUBBORN)], Limits(stop_seconds=3600, poll_seconds=0.01))
    async with asyncio.timeout(PATIENCE):
        await run.all_ready.wait()
    run.stop.set()
    run.supervisor.hurry()
    await run.ended()
    assert not lives(run.notes.pids["a"][0])


@pytest.mark.skipif(sys.platform != "linux", reason="waits by pidfd")
async def test_processes_started_by_a_crashed_child_are_killed(tmp_path: Path) -> None:
    family = (
        "import pathlib, subprocess, sys\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(grandchild.pid, flush=True)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "import signal; signal.pause()"
    )
    parent = child(tmp_path, "a", family)
    run = Run([parent])
    async with asyncio.timeout(PATIENCE):
        await run.all_ready.wait()
    grandchild = int(parent.log.read_text())
    os.kill(run.supervisor.pids()["a"], signal.SIGKILL)
    await run.notes.until(lambda: bool(run.notes.crashes))
    await asyncio.to_thread(wait_for_end, grandchild)
    run.stop.set()
    await run.ended()


def wait_for_end(pid: int) -> None:
    """Waits until a process that is not a child of this one ends; fails after PATIENCE."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([descriptor], [], [], PATIENCE)
        assert readable, f"process {pid} is still running"
    finally:
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.client.test_supervise import STEADY, Run, child\n"
        "async def main():\n"
        "    run = Run([child(Path(sys.argv[1]), 'a', STEADY)])\n"
        "    await run.all_ready.wait()\n"
        "    print(run.supervisor.pids()['a'], flush=True)\n"
        "    await run.task\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    wait_for_end(pid)


def test_log_of_an_earlier_run_is_renamed_once(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    rotate(log)
    for text in ("first", "second"):
        log.write_text(text)
        rotate(log)
    assert not log.exists()
    assert (tmp_path / "x.log.1").read_text() == "second"


def test_tail_returns_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert tail(log, 2) == ["line 9998", "line 9999"]
    assert tail(tmp_path / "none.log") == []
