"""Verifies the export of spans: variables are honoured, and a collector that is down delays no command."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.integration.client.fakes import FakeDeployment, deployment_in_thread
from tests.integration.scheduler.world import World
from tests.processes import ROOT, free_port

pytestmark = pytest.mark.fault("tracing")

EXPORT_SECONDS = 1.0
# Allowance for a busy machine; by OpenTelemetry's own limits a dead collector costs 7 to 10 s.
SLACK_SECONDS = 4.0


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def chorus(target: str, environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs `chorus jobs`; returns the result and the duration in seconds."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "chorus_cli", "jobs", "--target", target],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - begin


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("collector", ["refused", "silent"])
def test_dead_collector_delays_a_command_by_a_second_at_most(
    deployment: FakeDeployment, silent_endpoint: str, protocol: str, collector: str
) -> None:
    endpoint = silent_endpoint if collector == "silent" else f"http://127.0.0.1:{free_port()}"
    _, usual_seconds = chorus(deployment.target, {})
    done, seconds = chorus(
        deployment.target,
        {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
    )
    assert done.returncode == 0, done.stderr
    assert seconds < usual_seconds + EXPORT_SECONDS + SLACK_SECONDS
    warning, *others = [line for line in done.stderr.splitlines() if line != "no generations"]
    assert warning.startswith("warning: spans were not exported: ")
    assert others == []


def test_dead_collector_does_not_delay_the_end_of_a_program(
    deployment: FakeDeployment, silent_endpoint: str
) -> None:
    """A program that uses the SDK and shuts down nothing itself."""
    begin = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, time; from chorus_client import ChorusClient\n"
            "with ChorusClient(sys.argv[1]) as client: client.list()\n"
            "print(time.monotonic())",
            deployment.target,
        ],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": silent_endpoint},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - max(begin, float(done.stdout)) < EXPORT_SECONDS + SLACK_SECONDS
    assert "Traceback" not in done.stderr


class HttpCollector:
    """OTLP receiver over HTTP; keeps path, headers and message of each request."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], trace_service_pb2.ExportTraceServiceRequest]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
                received.append((self.path, dict(self.headers.items()), message))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Writes nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HttpCollector:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def service_names(request: trace_service_pb2.ExportTraceServiceRequest) -> set[str]:
    return {
        attribute.value.string_value
        for spans in request.resource_spans
        for attribute in spans.resource.attributes
        if attribute.key == "service.name"
    }


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "chorus-client"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,team=video"}, "ours"),
    ],
)
def test_http_protocol_name_and_headers_are_honoured(
    deployment: FakeDeployment, environment: dict[str, str], name: str
) -> None:
    with HttpCollector() as collector:
        done, _ = chorus(
            deployment.target,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
                **environment,
            },
        )
    assert (done.returncode, done.stderr) == (0, "no generations\n")
    [(path, headers, message)] = collector.received
    assert path == "/v1/traces"
    assert {key.lower(): value for key, value in headers.items()}["x-key"] == "secret"
    assert service_names(message) == {name}


def test_sampler_is_honoured(deployment: FakeDeployment) -> None:
    with HttpCollector() as collector:
        done, _ = chorus(
            deployment.target,
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.endpoint}/v1/traces",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_TRACES_SAMPLER": "always_off",
            },
        )
    assert (done.returncode, done.stderr) == (0, "no generations\n")
    assert collector.received == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_PROPAGATORS", "telepathy"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
    ],
)
def test_variable_that_cannot_be_honoured_is_refused(
    deployment: FakeDeployment, name: str, value: str
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    done, _ = chorus(deployment.target, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, name: value})
    assert done.returncode == 2, done.stderr
    assert name.rpartition("_")[0] in done.stderr
    assert value in done.stderr
    assert "Traceback" not in done.stderr


def test_service_refuses_a_variable_that_cannot_be_honoured(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cache"],
        env={
            **os.environ,
            "CHORUS_CACHE_PORT": str(free_port()),
            "CHORUS_CACHE_BLOB_DIR": str(tmp_path),
            "OTEL_TRACES_EXPORTER": "zipkin",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "OTEL_TRACES_EXPORTER must be otlp or none, not 'zipkin'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest_asyncio.fixture
async def traced(tmp_path: Path) -> AsyncIterator[World]:
    """A scheduler whose collector does not exist."""
    otel = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with World(tmp_path, otel) as world:
        yield world


async def test_log_of_a_traced_service_has_no_traceback(traced: World) -> None:
    traced.denoiser.pause_before = 1
    jobs = [await traced.submit(f"prompt {number}") for number in range(8)]
    for job in jobs:  # watchers that leave in the middle of their stream
        await traced.events(job, until="queued")
        call = traced.api.WatchGeneration(pb.WatchGenerationRequest(generation_id=job.generation_id))
        async for _ in call:
            break
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
    traced.denoiser.go.set()
    for job in jobs:
        await traced.events(job)
    await asyncio.to_thread(traced.process.terminate)
    log = traced.process.log.read_text()
    assert "Traceback" not in log, traced.process.tail()
    assert "detach" not in log


def test_repeated_faults_of_the_export_are_one_line() -> None:
    """A collector that is down must not fill the log: one line a minute."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import logging; from chorus_rpc.otlp import SpanExport\n"
            "export = SpanExport('mine')\n"
            "for number in range(5):\n"
            "    logging.getLogger('opentelemetry.exporter').warning('export fault %d', number)\n"
            "print(export.close(seconds=10))",
        ],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("export fault") == 1
    assert "export fault 0" in done.stdout + done.stderr
