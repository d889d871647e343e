"""Verifies the two ways of a service's metrics out of its process: the port for Prometheus, and OTLP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from chorus_client import CacheClient
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from tests.integration.cache.calls import environment
from tests.processes import ROOT, ServiceProcess, free_port, start_service
from tests.scraping import SECONDS, Scrape, request, scrape

CALLS = "chorus_rpc_seconds"
STATS = "chorus.cache.v1.CacheService/Stats"


@contextmanager
def running_cache(directory: Path, **variables: str) -> Iterator[ServiceProcess]:
    clean = {name: "" for name in os.environ if name.startswith("OTEL_")}
    with start_service("cache", {**environment(directory), **clean, **variables}, directory) as service:
        yield service


def call(service: ServiceProcess, count: int = 1) -> None:
    with CacheClient(service.target) as client:
        for _ in range(count):
            client.stats()


def run_scheduler(directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a scheduler that is expected to end at its start."""
    return subprocess.run(
        [sys.executable, "-m", "services.scheduler"],
        cwd=ROOT,
        env={
            **os.environ,
            "CHORUS_SCHEDULER_PORT": "0",
            "CHORUS_SCHEDULER_DATABASE": str(directory / "jobs.db"),
            "CHORUS_SCHEDULER_VIDEO_DIR": str(directory / "videos"),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_metrics_port_in_use_is_named(host: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_scheduler(
            tmp_path, CHORUS_SCHEDULER_METRICS_PORT=str(port), CHORUS_SCHEDULER_METRICS_HOST=host
        )
    assert done.returncode == 1
    expected = f"CHORUS_SCHEDULER_METRICS_PORT: port {port} of {host} is in use; choose another one"
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr


def test_metrics_port_must_not_be_that_of_the_service(tmp_path: Path) -> None:
    port = str(free_port())
    done = run_scheduler(tmp_path, CHORUS_SCHEDULER_PORT=port, CHORUS_SCHEDULER_METRICS_PORT=port)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"CHORUS_SCHEDULER_METRICS_PORT: port {port}")


def test_metrics_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    done = run_scheduler(
        tmp_path,
        CHORUS_SCHEDULER_METRICS_PORT=str(free_port()),
        CHORUS_SCHEDULER_METRICS_HOST="192.0.2.1",
    )
    assert done.returncode == 1
    expected = "CHORUS_SCHEDULER_METRICS_HOST: 192.0.2.1 is not an address of this machine: "
    assert done.stderr.splitlines()[-1].startswith(expected)
    assert "Traceback" not in done.stderr


def test_port_answers_scrapes_only_until_the_process_ends(tmp_path: Path) -> None:
    port = free_port()
    with running_cache(tmp_path, CHORUS_CACHE_METRICS_PORT=str(port)) as service:
        call(service)
        found = scrape(port)
        assert found.value(f"{CALLS}_count", method=STATS, code="OK") == 1
        assert found.labels(f"{CALLS}_count") == {"method", "code"}
        assert found.value("target_info", service_name="chorus-cache") == 1
        assert found.value("process_resident_memory_bytes") > 0
        assert request(port, "POST") == (405, "")
        assert request(port, "DELETE") == (405, "")
        assert request(port, path="/") == (404, "")
        assert request(port, path="/metrics/more") == (404, "")
        assert service.terminate() == 0
        with pytest.raises(ConnectionRefusedError):
            request(port)
        assert "Traceback" not in service.tail()


def test_silent_client_and_other_scrapes_delay_no_scrape(tmp_path: Path) -> None:
    port = free_port()
    with (
        running_cache(tmp_path, CHORUS_CACHE_METRICS_PORT=str(port)) as service,
        socket.create_connection(("127.0.0.1", port)),
        futures.ThreadPoolExecutor(8) as pool,
    ):
        call(service, 3)
        for found in pool.map(lambda _: scrape(port), range(40), timeout=SECONDS):
            assert found.value(f"{CALLS}_count", method=STATS) == 3
            assert found.value("chorus_cache_capacity_bytes") > 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_is_all_addresses_of_both_families(host: str, tmp_path: Path) -> None:
    port = free_port()
    with running_cache(
        tmp_path, CHORUS_CACHE_METRICS_PORT=str(port), CHORUS_CACHE_METRICS_HOST=host
    ) as service:
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), SECONDS).close()
        call(service)
        assert scrape(port).value(f"{CALLS}_count") == 1


@dataclass
class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """OTLP receiver for both protocols; keeps the latest value of each series, and every path and header."""

    protocol: str
    values: dict[tuple[str, str, str], float] = field(default_factory=dict)
    resources: list[dict[str, str]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    endpoint: str = ""

    def Export(self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any) -> Any:
        self.keep("", dict(context.invocation_metadata()), request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def keep(
        self, path: str, headers: dict[str, str], message: metrics_service_pb2.ExportMetricsServiceRequest
    ) -> None:
        with self.changed:
            self.requests.append((path, {key.lower(): value for key, value in headers.items()}))
            for received in message.resource_metrics:
                resource = {each.key: each.value.string_value for each in received.resource.attributes}
                self.resources.append(resource)
                for scope in received.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.histogram.data_points:
                            labels = {each.key: each.value.string_value for each in point.attributes}
                            key = (resource["service.name"], metric.name, labels["method"])
                            self.values[key] = point.count
            self.changed.notify_all()

    def wait_for(self, key: tuple[str, str, str], value: float) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.values.get(key) == value, SECONDS), self.values

    @contextmanager
    def running(self) -> Iterator[Collector]:
        if self.protocol == "grpc":
            receiver = grpc.server(futures.ThreadPoolExecutor(2))
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, receiver)  # type: ignore[no-untyped-call]
            self.endpoint = f"http://127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
            receiver.start()
            yield self
            receiver.stop(0).wait(5)
            return
        keep = self.keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                message = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
                keep(self.path, dict(self.headers.items()), message)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Writes nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.endpoint = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()


@pytest.fixture(params=["grpc", "http/protobuf"])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    with Collector(request.param).running() as running:
        yield running


def test_metrics_reach_a_collector_while_the_service_runs(collector: Collector, tmp_path: Path) -> None:
    with running_cache(
        tmp_path,
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=collector.endpoint
        + ("/v1/metrics" if collector.protocol != "grpc" else ""),
        OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=collector.protocol,
        OTEL_EXPORTER_OTLP_METRICS_HEADERS="x-key=secret",
        OTEL_METRIC_EXPORT_INTERVAL="100",
    ) as service:
        call(service, 2)
        collector.wait_for(("chorus-cache", CALLS, STATS), 2)
        path, headers = collector.requests[0]
        assert path == ("" if collector.protocol == "grpc" else "/v1/metrics")
        assert headers["x-key"] == "secret"
        assert collector.resources[0]["service.instance.id"] == f"{socket.gethostname()}:{service.port}"


def test_last_values_are_exported_at_the_end_of_the_process(collector: Collector, tmp_path: Path) -> None:
    """The interval is a minute by default: without a last export the calls would be lost."""
    port = free_port()
    with running_cache(
        tmp_path,
        CHORUS_CACHE_METRICS_PORT=str(port),
        OTEL_TRACES_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL=collector.protocol,
        OTEL_SERVICE_NAME="mine",
        OTEL_RESOURCE_ATTRIBUTES="service.instance.id=first",
    ) as service:
        call(service, 3)
        assert scrape(port).value(f"{CALLS}_count", method=STATS) == 3  # both ways at once
        assert service.terminate() == 0
    collector.wait_for(("mine", CALLS, STATS), 3)
    assert {resource["service.instance.id"] for resource in collector.resources} == {"first"}


@pytest.mark.fault("tracing")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_silent_collector_delays_the_end_of_a_service_by_a_second_at_most(
    protocol: str, tmp_path: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        running_cache(
            tmp_path,
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_TRACES_EXPORTER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        ) as service,
    ):
        call(service)
        assert service.terminate() == 0
        log = service.tail()
    assert "metrics were not exported: no answer within 1 s" in log
    assert "Traceback" not in log


@pytest.mark.fault("tracing")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_METRICS_EXPORTER", "zipkin"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "eternal"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "some"),
    ],
)
def test_variable_that_cannot_be_honoured_is_refused(name: str, value: str, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    done = run_scheduler(tmp_path, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=endpoint, **{name: value})
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert value in done.stderr
    assert "Traceback" not in done.stderr


def test_metrics_are_off_by_default(tmp_path: Path) -> None:
    with running_cache(tmp_path) as service:
        call(service)
        assert "metrics" not in service.tail()


def test_scrape_of_a_series_twice_is_found() -> None:
    with pytest.raises(AssertionError):
        Scrape('a{x="1"} 1\na{x="1"} 2\n')
