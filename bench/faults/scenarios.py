"""Chaos scenarios: each breaks one resource of a running deployment for a while, and mends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

from chorus_client import ChorusClient

from bench.faults.load import Job, measure_recovery, run_alternating, run_steady
from bench.faults.relay import running_relay
from tests.stack import NAMES, Stack, running_stack

# Interval of submissions that do not wait for one another, in seconds: about what a hit takes, so that some
# jobs always wait in the queue.
_INTERVAL: Final = 0.2
# Upper bound on the time from the end of a fault to the end of every accepted job, in seconds.
_LIMIT: Final = 180.0
# Time of the load before and after the fault, in seconds.
_LEAD_SECONDS: Final = 5.0
_DISK_BYTES: Final = 48 << 20
# Bytes after which the sink of a service's log is closed: still during the start.
_SINK_BYTES: Final = 400
_S3_VARIABLES: Final = ("CHORUS_TEST_S3_ENDPOINT", "CHORUS_TEST_S3_ACCESS_KEY", "CHORUS_TEST_S3_SECRET_KEY")


@dataclass(frozen=True)
class Result:
    """Outcome of one scenario.

    Attributes:
        jobs: Jobs of the load during the fault.
        recovery_seconds: Time from the end of the fault to the first job that is served as before; None for a
            fault that has no end.
    """

    jobs: Sequence[Job] = field(default_factory=list)
    recovery_seconds: float | None = None


Scenario = Callable[[Path, Sequence[str], float], Result]


def silence_cache(directory: Path, prompts: Sequence[str], seconds: float) -> Result:
    """The cache stops with SIGSTOP: its connections stay open and nothing answers."""
    with running_stack(directory) as stack, ChorusClient(stack.target) as client:
        _fill(client, prompts)
        os.kill(stack["cache"].pid, signal.SIGSTOP)
        try:
            jobs = run_alternating(client, prompts, seconds)
        finally:
            os.kill(stack["cache"].pid, signal.SIGCONT)
        return Result(jobs, measure_recovery(client, prompts[0], needs_hit=True))


def silence_s3(directory: Path, prompts: Sequence[str], seconds: float) -> Result:
    """The object store accepts connections and never answers. Needs the S3 server of CHORUS_TEST_S3_*."""
    endpoint, access_key, secret_key = (os.environ[name] for name in _S3_VARIABLES)
    with running_relay(endpoint) as relay:
        env = {
            "CHORUS_CACHE_BLOBS": "s3",
            "CHORUS_CACHE_S3_ENDPOINT": relay.address,
            "CHORUS_CACHE_S3_BUCKET": f"chorus-faults-{uuid4().hex[:12]}",
            "CHORUS_CACHE_S3_ACCESS_KEY": access_key,
            "CHORUS_CACHE_S3_SECRET_KEY": secret_key,
            "CHORUS_CACHE_S3_SECURE": "false",
        }
        with running_stack(directory, env) as stack, ChorusClient(stack.target) as client:
            _fill(client, prompts)
            relay.silence()
            try:
                jobs = run_alternating(client, prompts, seconds)
            finally:
                relay.resume()
            return Result(jobs, measure_recovery(client, prompts[0], needs_hit=True))


def close_log_sink(directory: Path, prompts: Sequence[str], seconds: float) -> Result:
    """The reader of every service's stderr goes away during the start, and never returns."""
    with ExitStack() as sinks:
        for name in NAMES:
            os.mkfifo(directory / f"{name}.log")
            sinks.enter_context(_closing_reader(directory / f"{name}.log"))
        stack = Stack(directory, {})
        try:
            for service in stack.services.values():
                service.start(wait=False)
            # Not `service.wait`, which reads the log of a service that does not start.
            with ChorusClient(stack.target) as client:
                measure_recovery(client, prompts[0], needs_hit=True)
                return Result(run_alternating(client, prompts, seconds))
        finally:
            stack.stop()


def fill_disk(directory: Path, prompts: Sequence[str], seconds: float) -> Result:
    """The disk of jobs, videos, cache and logs is full. Needs root, for a small disk in memory."""
    ballast = directory / "ballast"
    with _small_disk(directory), running_stack(directory) as stack, ChorusClient(stack.target) as client:
        _fill(client, prompts[:4])
        return _run_during(client, prompts[:4], seconds, lambda: _write_until_full(ballast), ballast.unlink)


def lock_database(directory: Path, prompts: Sequence[str], seconds: float) -> Result:
    """Another process holds an exclusive lock on the database of the jobs."""
    with running_stack(directory) as stack, ChorusClient(stack.target) as client:
        _fill(client, prompts[:4])
        lock = sqlite3.connect(directory / "jobs.db", isolation_level=None, check_same_thread=False)
        try:
            return _run_during(
                client,
                prompts[:4],
                seconds,
                lambda: lock.execute("BEGIN EXCLUSIVE"),
                lambda: lock.execute("ROLLBACK"),
            )
        finally:
            lock.close()


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "cache_silent": silence_cache,
    "s3_silent": silence_s3,
    "log_sink_closed": close_log_sink,
    "disk_full": fill_disk,
    "database_locked": lock_database,
}


def missing_requirement(name: str) -> str:
    """Returns what a scenario needs and this process lacks, or an empty string."""
    if name == "s3_silent" and (missing := [v for v in _S3_VARIABLES if not os.environ.get(v)]):
        return f"{', '.join(missing)}: run it through infra/testservers/run"
    if name == "disk_full" and os.geteuid() != 0:
        return "root, to mount a small disk"
    return ""


def _fill(client: ChorusClient, prompts: Sequence[str]) -> None:
    """Computes every prompt once, which also warms the services up."""
    for prompt in prompts:
        client.generate(prompt, seed=0)


@contextmanager
def _closing_reader(path: Path) -> Iterator[None]:
    """Reads the first bytes that are written to a pipe, and then closes it."""

    def read() -> None:
        with path.open("rb", buffering=0) as pipe:
            left = _SINK_BYTES
            while left > 0 and (data := pipe.read(left)):
                left -= len(data)

    thread = threading.Thread(target=read, name=f"reader {path.name}", daemon=True)
    thread.start()
    yield
    thread.join(10)


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    """Mounts a disk in memory at the directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _write_until_full(path: Path) -> None:
    block = bytes(1 << 16)
    with path.open("wb", buffering=0) as file:
        while len(block) > 1:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def _run_during(
    client: ChorusClient,
    prompts: Sequence[str],
    seconds: float,
    break_: Callable[[], object],
    mend: Callable[[], object],
) -> Result:
    """Runs a steady load that begins before the fault and goes on after it, so that jobs meet both its edges.

    Recovery ends when every job that was submitted before the end of the fault has ended.
    """
    end = _LEAD_SECONDS + seconds

    def fault() -> None:
        time.sleep(_LEAD_SECONDS)
        break_()
        try:
            time.sleep(seconds)
        finally:
            mend()

    thread = threading.Thread(target=fault, name="fault")
    thread.start()
    jobs = run_steady(client, prompts, end + _LEAD_SECONDS, _INTERVAL, _LIMIT)
    thread.join()
    measure_recovery(client, prompts[0], needs_hit=True)
    backlog = [job.start + job.seconds - end for job in jobs if job.start < end]
    return Result(jobs, max([0.0, *backlog]))
