"""Verifies the process: its start and end, metrics, and the check that the scheduler has keys, too."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from services.gateway import connections
from services.gateway.connections import Connection
from tests.integration.client.fakes import deployment_in_thread
from tests.integration.gateway.processes import GatewayProcess, read
from tests.integration.gateway.world import GatewayDeployment, running_world
from tests.processes import ROOT, free_port
from tests.scraping import scrape_until


@pytest.fixture
def deployment() -> Iterator[GatewayDeployment]:
    with deployment_in_thread(GatewayDeployment) as running:
        yield running


def test_process_serves_and_drains(deployment: GatewayDeployment, tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    variables = {
        "CHORUS_GATEWAY_SCHEDULER_TARGET": deployment.target,
        "CHORUS_GATEWAY_METRICS_PORT": str(metrics),
        "CHORUS_GATEWAY_LOG_FORMAT": "json",
        "CHORUS_GATEWAY_SCEDULER_TARGET": "misspelt",
    }
    gateway = GatewayProcess("gateway", variables, port, tmp_path / "gateway.log")
    gateway.start()
    try:
        assert read(port, "/v1/models")[0] == 200
        assert read(port, "/v1/videos/video_unknown")[0] == 404
        assert read(port, "/nothing/at/all")[0] == 404
        found = scrape_until(
            metrics,
            lambda scraped: scraped.value("chorus_http_seconds_count", code="404") == 2,
        )
        routes = {
            sample.labels["method"] for sample in found.samples if sample.name == "chorus_http_seconds_count"
        }
        assert not any(sample.name.startswith("http_server") for sample in found.samples), "measured twice"
        assert routes == {"GET /v1/models", "GET /v1/videos/{video_id}", "other"}
        assert gateway.terminate() == 0
    finally:
        gateway.stop()
    log = gateway.log.read_text()
    assert "CHORUS_GATEWAY_SCHEDULER_TARGET" in log, "the nearest name of the misspelt variable"
    assert "draining" in log
    assert "Traceback" not in log


async def test_responses_do_not_wait_for_acknowledgements() -> None:
    accepted: list[int] = []

    class Observed(Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.append(option)

    with patch.object(connections, "Connection", Observed):
        async with running_world() as world:
            assert (await world.http.get("/health")).status_code == 200
    assert accepted
    assert all(accepted)


@pytest.mark.fault("permanent-faults")
def test_scheduler_without_keys_ends_a_gateway_that_requires_them(
    deployment: GatewayDeployment, tmp_path: Path
) -> None:
    variables = {
        "CHORUS_GATEWAY_SCHEDULER_TARGET": deployment.target,
        "CHORUS_GATEWAY_REQUIRE_KEYS": "true",
    }
    gateway = GatewayProcess("gateway", variables, free_port(), tmp_path / "gateway.log")
    gateway.start(wait=False)
    assert gateway.process is not None
    assert gateway.process.wait(60) == 1
    assert "CHORUS_SCHEDULER_API_KEYS" in gateway.tail()
    deployment.scheduler.keys = {"some-key"}
    gateway.start()
    try:
        assert read(gateway.port, "/v1/models")[0] == 401
        assert read(gateway.port, "/v1/models", authorization="Bearer some-key")[0] == 200
    finally:
        gateway.stop()


def test_settings_are_printed_and_checked() -> None:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.gateway", *arguments],
            cwd=ROOT,
            env={**variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    path = ":".join(sys.path)
    shown = run("--help", PYTHONPATH=path)
    assert shown.returncode == 0
    assert "CHORUS_GATEWAY_CORS_ORIGINS" in shown.stdout
    refused = run(PYTHONPATH=path, CHORUS_GATEWAY_HOST="0.0.0.0")
    assert refused.returncode == 2
    assert "CHORUS_GATEWAY_TRUSTED_NETWORK" in refused.stderr
