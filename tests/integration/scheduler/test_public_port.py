"""Verifies where the scheduler listens without API keys, which settings of its port end it, and TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from chorus_client import ChorusClient, ChorusError, Tls
from chorus_rpc import errors
from chorus_rpc.api_keys import create_key, format_keys

from tests.processes import ROOT, ServiceProcess, free_port, wait_until_serving
from tests.tls import Certificates, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("client"), "clients")


def write_keys(directory: Path) -> tuple[Path, str]:
    """Writes a file with one key; returns its path and the key."""
    key, token = create_key("acme", datetime.now(UTC))
    path = directory / "keys.json"
    path.write_bytes(format_keys([key]))
    return path, token


def run_scheduler(**settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a scheduler that ends at the latest when it opens its database."""
    variables = {f"CHORUS_SCHEDULER_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "services.scheduler"],
        cwd=ROOT,
        env={
            **os.environ,
            "CHORUS_SCHEDULER_PORT": str(free_port()),
            "CHORUS_SCHEDULER_DATABASE": "/dev/null/jobs.db",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "chorus.example"])
def test_public_host_without_keys_is_refused(host: str) -> None:
    done = run_scheduler(HOST=host)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"CHORUS_SCHEDULER_HOST is {host}, where other machines could use the API")
    assert "set CHORUS_SCHEDULER_API_KEYS to a file of keys" in line
    assert "CHORUS_SCHEDULER_TRUSTED_NETWORK to true" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    done = run_scheduler(HOST=host)
    assert done.returncode == 1, done.stderr
    assert "CHORUS_SCHEDULER_DATABASE" in done.stderr.splitlines()[-1]


def test_public_host_is_accepted_with_keys_or_on_a_trusted_network(tmp_path: Path) -> None:
    path, _ = write_keys(tmp_path)
    for settings in ({"API_KEYS": str(path)}, {"TRUSTED_NETWORK": "true"}):
        done = run_scheduler(HOST="0.0.0.0", **settings)
        assert done.returncode == 1, done.stderr
        assert "CHORUS_SCHEDULER_DATABASE" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("[]", "must be an object")])
def test_invalid_keys_end_the_start(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    done = run_scheduler(API_KEYS=str(path))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"CHORUS_SCHEDULER_API_KEYS: {path}")
    assert reason in line


def test_invalid_tls_files_end_the_start(certificates: Certificates, others: Certificates) -> None:
    pair = {"TLS_CERTIFICATE": str(certificates.certificate), "TLS_KEY": str(certificates.key)}
    for settings, reason in (
        ({"TLS_CERTIFICATE": pair["TLS_CERTIFICATE"]}, "must both be set, or neither"),
        ({"TLS_KEY": pair["TLS_KEY"]}, "must both be set, or neither"),
        ({**pair, "TLS_KEY": str(others.key)}, "must be a certificate and its private key"),
        ({**pair, "TLS_KEY": __file__}, "must be a certificate and its private key"),
        ({**pair, "TLS_CERTIFICATE": "/no/such/file"}, "cannot be read (No such file or directory)"),
        ({**pair, "TLS_CLIENT_CA": __file__}, f"{__file__} must be certificates in PEM"),
        ({"TLS_CLIENT_CA": str(certificates.ca)}, "must be empty without CHORUS_SCHEDULER_TLS_CERTIFICATE"),
        ({"PORT": "7400", "HEALTH_PORT": "7400"}, "must differ from CHORUS_SCHEDULER_PORT"),
    ):
        done = run_scheduler(**settings)
        assert done.returncode == 2, done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith("CHORUS_SCHEDULER_")
        assert reason in line


@contextmanager
def serving(directory: Path, settings: dict[str, str]) -> Iterator[ServiceProcess]:
    """Runs a scheduler, ready by its health port; its peers are absent."""
    health = free_port()
    env = {
        "CHORUS_SCHEDULER_DATABASE": str(directory / "jobs.db"),
        "CHORUS_SCHEDULER_VIDEO_DIR": str(directory / "videos"),
        "CHORUS_SCHEDULER_HEALTH_PORT": str(health),
        **settings,
    }
    process = ServiceProcess("scheduler", env, free_port(), directory / "scheduler.log")
    process.start(wait=False)
    try:
        wait_until_serving(f"127.0.0.1:{health}", 60, process.process)
        yield process
        assert process.terminate() == 0
    finally:
        process.stop()


def test_tls_with_keys_serves_only_clients_that_trust_it(
    tmp_path: Path, certificates: Certificates, others: Certificates
) -> None:
    path, token = write_keys(tmp_path)
    settings = {
        "CHORUS_SCHEDULER_API_KEYS": str(path),
        "CHORUS_SCHEDULER_TLS_CERTIFICATE": str(certificates.certificate),
        "CHORUS_SCHEDULER_TLS_KEY": str(certificates.key),
    }
    with serving(tmp_path, settings) as process:
        with ChorusClient(f"chorus+tls://{process.target}", token=token, tls=Tls(certificates.ca)) as client:
            assert client.target == process.target
            assert client.list() == ()
        with ChorusClient(process.target, tls=Tls(certificates.ca)) as client:
            with pytest.raises(ChorusError) as refused:
                client.list()
            assert refused.value.reason == errors.UNAUTHENTICATED
        for tls in (True, Tls(others.ca)):
            with ChorusClient(process.target, token=token, tls=tls) as client:
                with pytest.raises(ChorusError, match=r"over TLS: .*certificate") as unverified:
                    client.list()
                assert unverified.value.reason == errors.DEPENDENCY_UNAVAILABLE
        with ChorusClient(process.target, token=token) as client:
            with pytest.raises(ChorusError) as plaintext:
                client.list()
            assert plaintext.value.reason == errors.DEPENDENCY_UNAVAILABLE


def test_client_certificate_is_required_where_an_authority_is_set(
    tmp_path: Path, certificates: Certificates, others: Certificates
) -> None:
    settings = {
        "CHORUS_SCHEDULER_TLS_CERTIFICATE": str(certificates.certificate),
        "CHORUS_SCHEDULER_TLS_KEY": str(certificates.key),
        "CHORUS_SCHEDULER_TLS_CLIENT_CA": str(others.ca),
    }
    with serving(tmp_path, settings) as process:
        tls = Tls(certificates.ca, others.certificate, others.key)
        with ChorusClient(process.target, tls=tls) as client:
            assert client.list() == ()
        for tls in (Tls(certificates.ca), Tls(certificates.ca, certificates.certificate, certificates.key)):
            with ChorusClient(process.target, tls=tls) as client:
                with pytest.raises(ChorusError, match="over TLS") as refused:
                    client.list()
                assert refused.value.reason == errors.DEPENDENCY_UNAVAILABLE
