"""Verifies the environment of the temporary deployments that measurements start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from chorus_cli.local.addresses import DEFAULT_PORTS

from evaluation import deployment

# Stands in for `chorus up`: reports its port variables as the addresses of the services.
_REPORT_PORTS = """
import json, os, re
ports = {name: port for name, port in os.environ.items() if re.fullmatch("CHORUS_[A-Z]+_PORT", name)}
print(json.dumps({"up": {"targets": ports}}), flush=True)
"""


def test_temporary_deployment_does_not_use_the_default_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "tethered", lambda _: (sys.executable, "-c", _REPORT_PORTS))
    for service in DEFAULT_PORTS:
        monkeypatch.delenv(f"CHORUS_{service.upper()}_PORT", raising=False)
    monkeypatch.setenv("CHORUS_CACHE_PORT", "7999")
    with deployment.local_deployment(tmp_path) as targets:
        ports = {name: int(port) for name, port in targets.items()}
    assert ports["CHORUS_CACHE_PORT"] == 7999, "a port that is set takes precedence"
    assert len(set(ports.values())) == len(ports) == len(DEFAULT_PORTS)
    assert set(ports.values()).isdisjoint(DEFAULT_PORTS.values())
