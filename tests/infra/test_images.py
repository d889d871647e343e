"""Verifies the Dockerfile of the images and the health check, which runs against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.infra.manifests import ROOT, SERVICES, pinned

FOLDER = ROOT / "infra/images"
RECIPE = (FOLDER / "Dockerfile").read_text()
NAME = "chorus.cache.v1.CacheService"


def test_every_service_has_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(SERVICES) <= set(extras)
    assert "ARG EXTRAS=${SERVICE}\n" in RECIPE
    assert '".[${EXTRAS}]"' in RECIPE


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    sent = {
        line.removeprefix("!")
        for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", RECIPE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == sent
    for name in copied:
        assert (ROOT / name).exists(), name


def test_base_and_torch_are_pinned() -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", RECIPE, re.MULTILINE)
    assert pinned(base)
    assert set(re.findall(r"^FROM (\S+)", RECIPE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    (torch,) = re.findall(r"^ARG TORCH_VERSION=(.+)$", RECIPE, re.MULTILINE)
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text()


def test_image_user_is_not_root() -> None:
    users = re.findall(r"^USER (.+)$", RECIPE, re.MULTILINE)
    assert users[-1] == "10001:10001"


@pytest.fixture
def server() -> Iterator[tuple[int, health.HealthServicer]]:
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        status = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port, status
        server.stop(None).wait(5)


def healthy(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "healthy"), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_health_check_distinguishes_serving_from_loading(server: tuple[int, health.HealthServicer]) -> None:
    port, status = server
    status.set(NAME, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert healthy(str(port), NAME).returncode == 1
    status.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    assert healthy(str(port), NAME).returncode == 0
    unknown = healthy(str(port), "chorus.cache.v1.UnknownService")
    assert unknown.returncode == 1
    assert "NOT_FOUND" in unknown.stderr


@pytest.mark.fault("proxy")
def test_health_check_uses_no_proxy(
    server: tuple[int, health.HealthServicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, status = server
    status.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    done = healthy(str(port), NAME)
    assert done.returncode == 0, done.stderr


def test_health_check_reports_an_unreachable_server() -> None:
    gone = healthy("1", NAME)
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr
    assert "usage" in healthy().stderr


@pytest.mark.fault("helm")
@pytest.mark.parametrize(("host", "status"), [("::1", 0), ("[::1]", 0), ("::", 1), ("0.0.0.0", 1)])
def test_health_check_asks_the_address_of_the_service(host: str, status: int) -> None:
    """Verifies it with a server on the IPv6 loopback only: a wildcard is asked over IPv4."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        known = health.HealthServicer()
        known.set(NAME, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(known, server)
        port = server.add_insecure_port("[::1]:0")
        server.start()
        try:
            done = healthy(str(port), NAME, SERVICE="cache", CHORUS_CACHE_HOST=host)
        finally:
            server.stop(None).wait(5)
    assert done.returncode == status, done.stderr
