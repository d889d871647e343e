"""Verifies the addresses at which a service process listens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chorus_cli.local import addresses
from chorus_rpc.addresses import join_host_port, parse_host

from tests.processes import ROOT, free_port, wait_until_serving

pytestmark = pytest.mark.fault("helm")

# A service without resources of its own.
PROGRAM = """
from services.runtime.server import run
from services.runtime.settings import ServerSettings, load_settings

class ExampleSettings(ServerSettings):
    model_config = {"env_prefix": "CHORUS_EXAMPLE_"}

async def start(resources, server):
    pass

run("example", "chorus.example.v1.ExampleService", load_settings(ExampleSettings), start)
"""


@contextmanager
def listening(host: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    variables = {"CHORUS_EXAMPLE_HOST": host, "CHORUS_EXAMPLE_PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ("::1", "127.0.0.1")),
        ("[::]", ("::1", "127.0.0.1")),
        ("0.0.0.0", ("::1", "127.0.0.1")),
        ("::1", ("::1",)),
        ("[::1]", ("::1",)),
        ("localhost", ("localhost",)),
    ],
)
def test_service_serves_on_the_address(host: str, reached: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port()
    with listening(host, port, tmp_path / "log") as process:
        for each in reached:
            wait_until_serving(join_host_port(each, port), 20, process)
        # The address at which `chorus up` looks for a service that listens there.
        wait_until_serving(join_host_port(addresses.reach(parse_host(host)), port), 20, process)


def test_address_that_is_not_a_host_is_named(tmp_path: Path) -> None:
    with listening("127.0.0.1:7400", free_port(), tmp_path / "log") as process:
        assert process.wait(20) == 2
    assert (tmp_path / "log").read_text().startswith("CHORUS_EXAMPLE_HOST: ")
