"""Verifies the bound on the values of a label, the settings of the metrics port, and scrapes that overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from threading import Barrier, BrokenBarrierError

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from services.runtime.metrics import OTHER, BoundedLabels, Metrics
from services.runtime.metrics_port import MetricsPort
from services.runtime.settings import ServerSettings
from tests.processes import free_port
from tests.scraping import request


def test_first_values_keep_their_labels() -> None:
    labels = BoundedLabels(2)
    assert [labels.add(value) for value in ("a", "b", "c", "a", "b", "c")] == [
        *("a", "b", OTHER),
        *("a", "b", OTHER),
    ]


def test_value_that_may_be_invalid_gets_no_label() -> None:
    labels = BoundedLabels(2)
    assert labels.find("a") == OTHER
    labels.add("a")
    assert labels.find("a") == "a"
    assert [labels.add("b"), labels.add("c")] == ["b", OTHER]


def test_without_a_way_out_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_METRICS_EXPORTER",
    ):
        monkeypatch.delenv(name, raising=False)
    off = Metrics("test", ServerSettings())
    assert off.registry is None
    assert off.close() is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "", "::g"])
def test_host_of_the_metrics_is_an_address(host: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        ServerSettings(metrics_host=host)


class _Meeting(Collector):
    """Notes whether two scrapes are collected at the same time."""

    def __init__(self) -> None:
        self.met = False
        self._barrier = Barrier(2, timeout=0.5)

    def collect(self) -> Iterable[Metric]:
        try:
            self._barrier.wait()
            self.met = True
        except BrokenBarrierError:
            self._barrier.reset()
        return []


async def test_overlapping_scrapes_are_collected_one_after_the_other() -> None:
    """OpenTelemetry's reader would give one of them the data of both, and the other one none."""
    registry, meeting = CollectorRegistry(), _Meeting()
    registry.register(meeting)
    settings = ServerSettings(metrics_port=free_port())
    port = MetricsPort(registry, settings)
    try:
        scrapes = (asyncio.to_thread(request, settings.metrics_port) for _ in range(2))
        assert await asyncio.gather(*scrapes) == [(200, "")] * 2
    finally:
        await port.close()
    assert not meeting.met
