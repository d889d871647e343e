"""Export by OTLP, as the standard `OTEL_*` variables describe it: variables of every signal, and spans."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

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
# Part of the names of the variables that hold for one signal.
Signal = Literal["TRACES", "METRICS"]
# Variables whose value is one of a few words, by signal.
_CHOICES: Final[Mapping[Signal, Mapping[str, tuple[str, ...]]]] = {
    "TRACES": {"OTEL_TRACES_SAMPLER": _SAMPLERS},
    "METRICS": {
        "OTEL_METRICS_EXEMPLAR_FILTER": ("always_on", "always_off", "trace_based"),
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": ("cumulative", "delta", "lowmemory"),
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (
            "explicit_bucket_histogram",
            "base2_exponential_bucket_histogram",
        ),
    },
}
# Variables that hold a number, with its unit, by signal. The SDK ends with a traceback at any other text, or
# ignores it.
_NUMBERS: Final[Mapping[Signal, Mapping[str, str]]] = {
    "TRACES": {
        "OTEL_BSP_SCHEDULE_DELAY": "milliseconds",
        "OTEL_BSP_EXPORT_TIMEOUT": "milliseconds",
        "OTEL_BSP_MAX_QUEUE_SIZE": "spans",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "spans",
    },
    "METRICS": {
        "OTEL_METRIC_EXPORT_INTERVAL": "milliseconds",
        "OTEL_METRIC_EXPORT_TIMEOUT": "milliseconds",
    },
}
# Shortest time between two log lines about faults of the export.
_REPORT_SECONDS: Final = 60.0

log = logging.getLogger("chorus_rpc.telemetry")


def is_requested(environment: Mapping[str, str], signal: Signal = "TRACES") -> bool:
    """Returns whether the variables request an export of a signal."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = _read(environment, f"OTEL_{signal}_EXPORTER")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _endpoints(signal)))


def check_variables(environment: Mapping[str, str], signal: Signal = "TRACES") -> None:
    """Raises ValueError that names each variable whose value cannot be honoured, with the accepted ones."""
    all_choices = {
        f"OTEL_{signal}_EXPORTER": _EXPORTERS,
        "OTEL_EXPORTER_OTLP_PROTOCOL": _PROTOCOLS,
        f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL": _PROTOCOLS,
        **_CHOICES[signal],
    }
    faults = [
        _describe_choice(name, value, choices)
        for name, choices in all_choices.items()
        if (value := _read(environment, name)) and value not in choices
    ]
    numbers = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "seconds",
        f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT": "seconds",
        **_NUMBERS[signal],
    }
    faults += [
        f"{name} must be a number of {unit} above 0, not {environment[name]!r}"
        for name, unit in numbers.items()
        if environment.get(name) and not _is_positive(environment[name], whole=unit != "seconds")
    ]
    ratio = environment.get("OTEL_TRACES_SAMPLER_ARG", "") if signal == "TRACES" else ""
    if ratio and _read(environment, "OTEL_TRACES_SAMPLER") in _RATIO_SAMPLERS and not _is_share(ratio):
        faults.append(f"OTEL_TRACES_SAMPLER_ARG must be a share, 0 to 1, not {ratio!r}")
    faults += [
        f"{name} must begin with http:// or https:// for http/protobuf, not {environment[name]!r}"
        for name in _endpoints(signal)
        if environment.get(name)
        and choose_protocol(environment, signal) == "http/protobuf"
        and not environment[name].strip().lower().startswith(("http://", "https://"))
    ]
    if faults:
        raise ValueError("; ".join(faults))


def choose_protocol(environment: Mapping[str, str], signal: Signal = "TRACES") -> str:
    """Returns the protocol of the export: that of the signal, else that of every signal, else gRPC."""
    return (
        _read(environment, f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or _read(environment, "OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )


def create_exporter(create: Callable[[], Any]) -> Any:
    """Returns `create()`; raises ValueError for a variable that OpenTelemetry's exporter refuses."""
    try:
        return create()
    except Exception as error:
        raise ValueError(f"a variable OTEL_EXPORTER_OTLP_* cannot be honoured: {error}") from error


def choose_service_name(service: str) -> str:
    """Returns OTEL_SERVICE_NAME, or service.name of OTEL_RESOURCE_ATTRIBUTES, or else `service`."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    return str(OTELResourceDetector().detect().attributes.get("service.name") or service)


class FinalExport:
    """Last export of a signal, before the process ends.

    Created while the process runs, because an interpreter that ends starts no thread.

    Args:
        signal: name of the data, for instance "spans".
        shutdown: exports what is left; may take long.
    """

    def __init__(self, signal: str, shutdown: Callable[[], object]) -> None:
        self._signal = signal
        self._shutdown = shutdown
        faults.install()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._end, name=f"chorus-{signal}", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> str | None:
        """Exports what is left, for at most `seconds`. Returns why it was lost; None if it was not."""
        faults.recent = None
        self._ending.set()
        self._thread.join(seconds)
        late = self._thread.is_alive()
        faults.silence()  # the threads that still wait must not write while the interpreter ends
        if faults.recent is not None:
            return f"{self._signal} were not exported: {faults.recent}"
        return f"{self._signal} were not exported: no answer within {seconds:g} s" if late else None

    def _end(self) -> None:
        self._ending.wait()
        self._shutdown()


class SpanExport:
    """Export of the spans of this process to a collector.

    Creates the tracer provider. Raises ImportError if a module is missing, ValueError for variables that
    cannot be honoured.

    Args:
        service: name of the service, unless a variable names another.
    """

    def __init__(self, service: str) -> None:
        check_variables(os.environ)
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _create_span_exporter()
        # Without its own handler at exit, which waits up to 10 s for a collector.
        self.provider = TracerProvider(
            resource=Resource.create({"service.name": choose_service_name(service)}), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._final = FinalExport("spans", self.provider.shutdown)

    def close(self, seconds: float) -> str | None:
        """Exports buffered spans, for at most `seconds`. Returns why spans were lost; None if none were."""
        return self._final.close(seconds)


class FaultReporter(logging.Handler):
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
        self._silent = False

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


# OpenTelemetry's loggers are those of the process, whatever it exports.
faults = FaultReporter()


def _create_span_exporter() -> SpanExporter:
    exporter: Any
    if choose_protocol(os.environ) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as exporter
    else:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as exporter
    created: SpanExporter = create_exporter(exporter.OTLPSpanExporter)
    return created


def _endpoints(signal: Signal) -> tuple[str, str]:
    return (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


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
