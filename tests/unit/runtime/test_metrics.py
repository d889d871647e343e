"""Verifies the bound on the values of a label, and the settings of the metrics port."""

from __future__ import annotations

import pytest

from services.runtime.metrics import OTHER, BoundedLabels, Metrics
from services.runtime.settings import ServerSettings


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
