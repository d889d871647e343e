"""Verifies tracing that is off or cannot be loaded, and the parsing of traceparents."""

from __future__ import annotations

import sys

import pytest
from chorus_rpc import telemetry


def test_tracing_off_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not telemetry.configure("test")
    with telemetry.span("x", {"a": 1}) as span:
        span.set_attribute("b", 2)
        assert telemetry.traceparent() == ""
    assert telemetry.client_interceptors() == []


def test_trace_id_is_parsed_from_traceparent() -> None:
    assert telemetry.parse_trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") == (
        "0af7651916cd43dd8448eb211c80319c"
    )
    assert telemetry.parse_trace_id("") == telemetry.parse_trace_id("x-y") == ""


@pytest.mark.parametrize("module", ["opentelemetry.sdk.resources", "opentelemetry.instrumentation.grpc"])
def test_missing_module_is_reported_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    monkeypatch.setattr(telemetry, "_enabled", False)
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    with pytest.raises(ImportError, match=r"pip install '\./client\[telemetry\]' in a checkout"):
        telemetry.configure("client")
