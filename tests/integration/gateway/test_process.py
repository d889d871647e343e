"""Verifies the process: its start and end, health, and the check that the scheduler has keys, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.fault("logging")


def start(port: int, log: Path, **variables: str) -> subprocess.Popen[bytes]:
    environment = {f"CHORUS_GATEWAY_{name.upper()}": value for name, value in variables.items()}
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            cwd=ROOT,
            env={**os.environ, **environment, "CHORUS_GATEWAY_PORT": str(port)},
            stdout=stderr,
            stderr=stderr,
        )
