"""Metrics of a service: instruments, and the two ways out of the process, OTLP and a port for Prometheus.

Instruments are made by OpenTelemetry's API when a module is imported. They record nothing unless `Metrics`
finds a way out. Values of attributes are few and known: never an id or a prompt.
"""

from __future__ import annotations

import os
import socket
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from chorus_rpc import proxies
from chorus_rpc.otlp import (
    FinalExport,
    check_variables,
    choose_protocol,
    choose_service_name,
    create_exporter,
    faults,
    is_requested,
)
from opentelemetry import metrics

from services.runtime.settings import ServerSettings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

METER: Final = metrics.get_meter("chorus")
OTHER: Final = "other"

# From a call that finds its data in memory to a generation of many minutes, in seconds.
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0),
)
# Time that the end of a process waits for a collector.
_EXPORT_SECONDS: Final = 1.0


def create_histogram(name: str, description: str) -> metrics.Histogram:
    """Returns a histogram of seconds."""
    return METER.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=_SECONDS
    )


class BoundedLabels:
    """Values of one attribute, at most `limit` of them: those that come later are counted as "other".

    Safe for concurrent use: the thread that exports reads labels, too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._lock = Lock()

    def add(self, value: str) -> str:
        """Returns the label of a value, which gets its own label if there is one left."""
        with self._lock:
            if len(self._known) < self._limit:
                self._known.add(value)
            return value if value in self._known else OTHER

    def find(self, value: str) -> str:
        """Returns the label of a value that may be invalid, and therefore gets no label of its own."""
        return value if value in self._known else OTHER


class Metrics:
    """Export of the metrics of this process.

    Attributes:
        registry: source of the port for Prometheus; None without one.
    """

    def __init__(self, service: str, settings: ServerSettings) -> None:
        self.registry: CollectorRegistry | None = None
        self._final: FinalExport | None = None
        exports = is_requested(os.environ, "METRICS")
        if not exports and not settings.metrics_port:
            return
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource

        readers: list[MetricReader] = []
        if exports:
            check_variables(os.environ, "METRICS")
            # Exporters read the environment; a collector on this machine is reached without a proxy.
            proxies.exempt_loopback(os.environ)
            readers.append(PeriodicExportingMetricReader(_create_exporter()))
        if settings.metrics_port:
            # Loaded by those that offer the port only: their import takes longer than that of the API.
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from prometheus_client import CollectorRegistry, ProcessCollector

            self.registry = CollectorRegistry()
            ProcessCollector(registry=self.registry)
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=self.registry))
        # Distinguishes processes whose series a collector merges; a variable of the standard overrides it.
        instance = OTELResourceDetector().detect().attributes.get("service.instance.id")
        provider = MeterProvider(
            readers,
            resource=Resource.create(
                {
                    "service.name": choose_service_name(f"chorus-{service}"),
                    "service.instance.id": instance or f"{socket.gethostname()}:{settings.port}",
                }
            ),
            shutdown_on_exit=False,
        )
        metrics.set_meter_provider(provider)
        faults.install()
        if exports:
            self._final = FinalExport("metrics", provider.shutdown)

    def close(self) -> str | None:
        """Exports once more, for at most a second. Returns why metrics were lost; None if none were."""
        return None if self._final is None else self._final.close(_EXPORT_SECONDS)


def _create_exporter() -> Any:
    exporter: Any
    if choose_protocol(os.environ, "METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as exporter
    else:
        from opentelemetry.exporter.otlp.proto.http import metric_exporter as exporter
    return create_exporter(exporter.OTLPMetricExporter)
