"""Verifies which `OTEL_*` variables request an export, and that one that cannot be honoured is named."""

from __future__ import annotations

import pytest
from chorus_rpc.otlp import check_variables, choose_protocol, is_requested

pytestmark = pytest.mark.fault("tracing")

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("environment", "requested"),
    [
        ({}, False),
        ({PROTOCOL: "grpc"}, False),
        ({ENDPOINT: "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, True),
    ],
)
def test_variables_request_an_export(environment: dict[str, str], requested: bool) -> None:
    assert is_requested(environment) is requested


def test_protocol_of_traces_precedes_that_of_every_signal() -> None:
    assert choose_protocol({}) == "grpc"
    assert choose_protocol({PROTOCOL: "http/protobuf"}) == "http/protobuf"
    both = {PROTOCOL: "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "GRPC"}
    assert choose_protocol(both) == "grpc"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {PROTOCOL: "http/protobuf", ENDPOINT: "https://collector:4318"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
        {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_TRACES_SAMPLER_ARG": "unused"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "2.5", "OTEL_BSP_SCHEDULE_DELAY": "100"},
        {"OTEL_TRACES_EXPORTER": "", PROTOCOL: "", "OTEL_TRACES_SAMPLER": ""},
        {PROTOCOL: "grpc", ENDPOINT: "collector:4317"},
    ],
)
def test_values_of_the_standard_are_accepted(environment: dict[str, str]) -> None:
    check_variables(environment)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "must be otlp or none, not 'zipkin'"),
        (PROTOCOL, "http/json", "must be grpc or http/protobuf, not 'http/json'"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http", "must be grpc or http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "alwayson", "did you mean always_on"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "a number of seconds above 0, not '10s'"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1", "a number of seconds above 0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0.5", "a number of milliseconds above 0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "a number of spans above 0"),
    ],
)
def test_value_that_cannot_be_honoured_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_variables({name: value})
    assert str(caught.value).startswith(name)


def test_every_fault_is_named_at_once() -> None:
    environment = {
        PROTOCOL: "http/protobuf",
        ENDPOINT: "collector:4318",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "25%",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0",
    }
    with pytest.raises(ValueError, match="OTEL_BSP") as caught:
        check_variables(environment)
    faults = str(caught.value).split("; ")
    assert {fault.split()[0] for fault in faults} == {
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_TRACES_SAMPLER_ARG", ENDPOINT,
    }  # fmt: skip
