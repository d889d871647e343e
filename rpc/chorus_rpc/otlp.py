"""Export of spans by OTLP, as the standard `OTEL_*` variables describe it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from chorus_rpc.suggestions import closest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_EXPORTERS: Final = ("otlp", "none")
_PROTOCOLS: Final = ("grpc", "http/protobuf")
_RATIO_SAMPLERS: Final = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS: Final = (
    *("always_on", "always_off", "parentbased_always_on", "parentbased_always_off"),
    *_RATIO_SAMPLERS,
)
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "OTEL_TRACES_EXPORTER": _EXPORTERS,
    "OTEL_EXPORTER_OTLP_PROTOCOL": _PROTOCOLS,
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _PROTOCOLS,
    "OTEL_TRACES_SAMPLER": _SAMPLERS,
}
# Variables that hold a number, with its unit. The SDK ends with a traceback at any other text.
_NUMBERS: Final[Mapping[str, str]] = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "seconds",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "seconds",
    "OTEL_BSP_SCHEDULE_DELAY": "milliseconds",
    "OTEL_BSP_EXPORT_TIMEOUT": "milliseconds",
    "OTEL_BSP_MAX_QUEUE_SIZE": "spans",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "spans",
}
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Shortest time between two log lines about faults of the export.
_REPORT_SECONDS: Final = 60.0

log = logging.getLogger("chorus_rpc.telemetry")


def is_requested(environment: Mapping[str, str]) -> bool:
    """Returns whether the variables request an export of spans."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = _read(environment, "OTEL_TRACES_EXPORTER")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _ENDPOINTS))


def check_variables(environment: Mapping[str, str]) -> None:
    """Raises ValueError that names each variable whose value cannot be honoured, with the accepted ones."""
    faults = [
        _describe_choice(name, value, choices)
        for name, choices in _CHOICES.items()
        if (value := _read(environment, name)) and value not in choices
    ]
    faults += [
        f"{name} must be a number of {unit} above 0, not {environment[name]!r}"
        for name, unit in _NUMBERS.items()
        if environment.get(name) and not _is_positive(environment[name], whole=unit != "seconds")
    ]
    ratio = environment.get("OTEL_TRACES_SAMPLER_ARG", "")
    if ratio and _read(environment, "OTEL_TRACES_SAMPLER") in _RATIO_SAMPLERS and not _is_share(ratio):
        faults.append(f"OTEL_TRACES_SAMPLER_ARG must be a share, 0 to 1, not {ratio!r}")
    faults += [
        f"{name} must begin with http:// or https:// for http/protobuf, not {environment[name]!r}"
        for name in _ENDPOINTS
        if environment.get(name)
        and choose_protocol(environment) == "http/protobuf"
        and not environment[name].strip().lower().startswith(("http://", "https://"))
    ]
    if faults:
        raise ValueError("; ".join(faults))


def choose_protocol(environment: Mapping[str, str]) -> str:
    """Returns the protocol of the export: that of traces, else that of every signal, else gRPC."""
    return (
        _read(environment, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or _read(environment, "OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )


class SpanExport:
    """Export of the spans of this process to a collector.

    Creates the tracer provider. Raises ImportError if a module is missing, ValueError for variables that
    cannot be honoured.

    Args:
        service: name of the service, unless a variable names another.
    """

    def __init__(self, service: str) -> None:
        check_variables(os.environ)
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # OTEL_SERVICE_NAME, or service.name of OTEL_RESOURCE_ATTRIBUTES.
        name = OTELResourceDetector().detect().attributes.get("service.name") or service
        exporter = _create_exporter()
        # Without its own handler at exit, which waits up to 10 s for a collector.
        self.provider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._faults = _FaultReporter()
        self._faults.install()
        # Created now, because an interpreter that ends starts no thread.
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._end, name="chorus-spans", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> str | None:
        """Exports buffered spans, for at most `seconds`. Returns why spans were lost; None if none were."""
        self._faults.recent = None
        self._ending.set()
        self._thread.join(seconds)
        late = self._thread.is_alive()
        self._faults.silence()  # the threads that still wait must not write while the interpreter ends
        if self._faults.recent is not None:
            return f"spans were not exported: {self._faults.recent}"
        return f"spans were not exported: no answer within {seconds:g} s" if late else None

    def _end(self) -> None:
        self._ending.wait()
        self.provider.shutdown()


class _FaultReporter(logging.Handler):
    """Log handler of OpenTelemetry: one line a minute at most, without a traceback.

    Attributes:
        recent: most recent fault.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.recent: str | None = None
        self._next = -math.inf
        self._silent = False

    def install(self) -> None:
        """Makes this the only handler of OpenTelemetry's loggers in this process."""
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [self]
        logger.propagate = False

    def silence(self) -> None:
        """Ends the output; faults are still noted."""
        self._silent = True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message = f"{message} {record.exc_info[1]}"
        except Exception:  # noqa: BLE001 -- a log call must not raise
            message = str(record.msg)
        self.recent = message
        now = time.monotonic()
        if not self._silent and now >= self._next:
            self._next = now + _REPORT_SECONDS
            log.warning("%s", message)


def _create_exporter() -> SpanExporter:
    exporter: Any
    if choose_protocol(os.environ) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as exporter
    else:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as exporter
    try:
        created: SpanExporter = exporter.OTLPSpanExporter()
    except Exception as error:
        raise ValueError(f"a variable OTEL_EXPORTER_OTLP_* cannot be honoured: {error}") from error
    return created


def _read(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip().lower()


def _describe_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    nearest = closest(value, choices)
    hint = f"; did you mean {nearest}?" if nearest else ""
    return f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}{hint}"


def _is_positive(text: str, whole: bool) -> bool:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return False
    return 0 < number < math.inf


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
