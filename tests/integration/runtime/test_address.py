"""Verifies that a service that cannot listen ends at once and names its setting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.fault("readiness")


def run_scheduler(host: str, port: int) -> subprocess.CompletedProcess[str]:
    """Runs a scheduler that is expected to end before it opens its database."""
    environment = {
        "CHORUS_SCHEDULER_HOST": host,
        "CHORUS_SCHEDULER_PORT": str(port),
        "CHORUS_SCHEDULER_TRUSTED_NETWORK": "true",
    }
    return subprocess.run(
        [sys.executable, "-m", "services.scheduler"],
        cwd=ROOT,
        env={**os.environ, **environment, "CHORUS_SCHEDULER_DATABASE": "/nonexistent/jobs.db"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_port_in_use_is_named(host: str) -> None:
    """Of localhost, gRPC would bind the other address, and clients would reach the other process."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_scheduler(host, port)
    assert done.returncode == 1
    expected = f"CHORUS_SCHEDULER_PORT: port {port} of {host} is in use; choose another one"
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "192.0.2.1 is not an address of this machine: "),
        ("chorus.invalid", "chorus.invalid cannot be resolved: "),
    ],
)
def test_host_that_is_not_this_machine_is_named(host: str, reason: str) -> None:
    done = run_scheduler(host, 0)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"CHORUS_SCHEDULER_HOST: {reason}")
    assert "Traceback" not in done.stderr
