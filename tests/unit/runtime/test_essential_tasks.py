"""Verifies that a process stops serving when a task that it needs has ended."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, free_port, wait_until_serving

pytestmark = pytest.mark.fault("logging")

# Serves, and ends its task in a given way when the test sends a line.
_SERVICE = """
import asyncio, sys
from services.runtime.server import run
from services.runtime.settings import ServerSettings

async def work(how):
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if how == "raises":
        raise RuntimeError("the cause")
    if how == "is cancelled":
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

async def start(resources, server):
    resources.start_task(work(sys.argv[1]), "worker")

run("cache", "chorus.cache.v1.CacheService", ServerSettings(port=int(sys.argv[2])), start)
"""


@pytest.mark.parametrize("end", ["raises", "is cancelled", "returns"])
def test_process_ends_with_its_essential_task(end: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVICE, end, str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        wait_until_serving(f"127.0.0.1:{port}", 30, process)
        process.communicate(b"end\n", timeout=30)
        assert process.returncode == 1
    finally:
        process.kill()
        process.wait(10)
    text = log.read_text()
    assert "essential task ended" in text
    assert "worker" in text
    assert ("RuntimeError: the cause" in text) == (end == "raises")
    assert "draining" in text, "running calls have time to end"


# Every place that starts a task or a thread, with the one that notices its end.
_NOTICED = {
    "services/cache/hot.py create_task": "every reader awaits it; its end reads the error as well",
    "services/cache/store.py create_task": "fetch awaits the blob ahead; admit awaits, and logs, the commit",
    "services/denoiser/admissions.py create_task": "the call of its run awaits it",
    "services/denoiser/device_thread.py ThreadPoolExecutor": "each task has a future that its caller reads",
    "services/embedder/encoder_thread.py ThreadPoolExecutor": "the caller awaits each call",
    "services/gateway/server.py create_task": "the process waits for the HTTP server's end, and ends with it",
    "services/gateway/server.py ensure_future": "the process awaits it",
    "services/gateway/videos/events.py ensure_future": "the stream awaits it, and cancels it at its own end",
    "services/gateway/videos/sync.py ensure_future": "the request awaits both, and cancels the other one",
    "services/runtime/blocking_client.py ThreadPoolExecutor": "the caller awaits each call",
    "services/runtime/breaker.py create_task": "a done callback permits calls again",
    "services/runtime/metrics_port.py Thread": "scrapes fail, which Prometheus shows; the service goes on",
    "services/runtime/resources.py create_task": "essential: the process ends",
    "services/runtime/server.py ensure_future": "the server awaits it",
    "services/scheduler/__main__.py create_task": "a done callback logs its error",
    "services/scheduler/dispatch/admissions.py create_task": "a done callback logs its error",
    "services/scheduler/dispatch/dispatcher.py create_task": "a done callback logs its error",
    "services/scheduler/dispatch/denoise_runner.py create_task": "logs its errors; ends with the run",
    "services/scheduler/jobs/sql_store.py ThreadPoolExecutor": "the caller awaits each call",
    "services/scheduler/jobs/video_store.py create_task": "the caller awaits it",
}
_STARTERS = ("create_task", "ensure_future", "Thread", "ThreadPoolExecutor", "Timer")


def test_end_of_every_background_task_is_noticed() -> None:
    found = set()
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in _STARTERS:
                    found.add(f"{path.relative_to(ROOT).as_posix()} {name}")
    assert found <= set(_NOTICED), "state who notices its end"
