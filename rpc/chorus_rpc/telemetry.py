"""Tracing, configured by the standard `OTEL_*` variables. When off, it imports and records nothing.

It is on when `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set, or `OTEL_TRACES_EXPORTER=otlp`,
and `OTEL_SDK_DISABLED` is not true. A context crosses a queue or a thread as a `traceparent` string, because
context variables do not. A span that is current begins and ends in one task or thread.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from chorus_rpc import proxies
from chorus_rpc.otlp import SpanExport, is_requested

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    AttributeValue = str | bool | int | float


class Span(Protocol):
    """Operations on a span, whether tracing is on or off."""

    def set_attribute(self, key: str, value: AttributeValue) -> None: ...

    def record_exception(self, exception: BaseException) -> None: ...

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...


class _NoSpan:
    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Records nothing."""

    def record_exception(self, exception: BaseException) -> None:
        """Records nothing."""

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Records nothing."""


_NO_SPAN = _NoSpan()
# Statuses that are the fault of a server, in OpenTelemetry's conventions for gRPC.
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Time that the end of a process waits for a collector.
EXPORT_SECONDS: Final = 1.0

_enabled = False
_export: SpanExport | None = None


def configure(service: str) -> bool:
    """Configures tracing; call it once per process, before servers and channels are created.

    Returns whether tracing is on. Raises ImportError that names the extra when tracing is requested but not
    installed, and ValueError that names the variable `OTEL_*` whose value cannot be honoured.
    """
    global _enabled, _export
    if _enabled or not is_requested(os.environ):
        return _enabled
    # Exporters read the environment; a collector on this machine is reached without a proxy.
    proxies.exempt_loopback(os.environ)
    try:
        try:
            import opentelemetry.instrumentation.grpc  # noqa: F401  # used later, by the interceptors
            from opentelemetry import trace
        except ValueError as error:  # raised by the import, for OTEL_PROPAGATORS
            raise ValueError(f"OTEL_PROPAGATORS cannot be honoured: {error}") from error
        # A provider that the embedding program has set up gets our spans.
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _export = SpanExport(f"chorus-{service}")
            trace.set_tracer_provider(_export.provider)
            atexit.register(shutdown)
    except ImportError as error:
        raise ImportError(
            "OTEL_* requests tracing: pip install './client[telemetry]' in a checkout, or unset it"
        ) from error
    _enabled = True
    return True


def shutdown() -> str | None:
    """Exports buffered spans, for at most EXPORT_SECONDS. Call it last; further calls have no effect.

    Returns why spans were lost, None if none were.
    """
    global _enabled, _export
    export, _export, _enabled = _export, None, False
    return None if export is None else export.close(EXPORT_SECONDS)


def client_interceptors() -> list[Any]:
    """Returns the interceptors of `grpc.aio` channels; none when tracing is off."""
    if not _enabled:
        return []
    from opentelemetry.instrumentation.grpc import aio_client_interceptors, filters

    make: Callable[..., list[Any]] = aio_client_interceptors
    return make(filter_=filters.negate(filters.health_check()))


@contextmanager
def server_span(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    """Opens the span of a call that this server answers, in the trace of the caller.

    Used instead of OpenTelemetry's interceptor, which keeps the span of a stream current in a generator: a
    client that disconnects leaves the generator to another task, where its context cannot be detached.
    """
    if not _enabled:
        yield
        return
    from opentelemetry import propagate, trace

    service, _, name = method.removeprefix("/").rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    with trace.get_tracer("chorus").start_as_current_span(
        method,
        context=propagate.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        finally:
            code = to_status_code(context.code())
            current.set_attribute("rpc.grpc.status_code", code.value[0])
            if code in _SERVER_FAULTS:
                current.set_status(trace.StatusCode.ERROR, f"{code.name}: {context.details()}")


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    parent: str | None = None,
    link: str | None = None,
) -> Iterator[Span]:
    """Opens a span that is current inside the block; an exception is recorded and marks the span as failed.

    Args:
        parent: traceparent to continue, for work that crossed a queue; default: the current span.
        link: traceparent of another trace that this one used, such as the donor's.
    """
    if not _enabled:
        yield _NO_SPAN
        return
    from opentelemetry import trace

    links = [found] if link and (found := _link(link)) else []
    context = _context(parent) if parent else None
    with trace.get_tracer("chorus").start_as_current_span(
        name, context=context, attributes=dict(attributes or {}), links=links
    ) as current:
        yield current


def traceparent() -> str:
    """Returns the current span as a W3C traceparent; empty when tracing is off or no span is current."""
    if not _enabled:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def parse_trace_id(parent: str) -> str:
    """Returns the trace id, 32 hex digits, of a traceparent; empty for another text."""
    parts = parent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


def current_trace_id() -> str:
    """Returns the trace id of the current span; empty when tracing is off."""
    return parse_trace_id(traceparent()) if _enabled else ""


def to_status_code(code: Any) -> grpc.StatusCode:
    """Returns the status of a call; `code` is its number, which gRPC has instead of the status, or unset."""
    return next((known for known in grpc.StatusCode if code in (known, known.value[0])), grpc.StatusCode.OK)


def _context(parent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _link(parent: str) -> Link | None:
    from opentelemetry import trace

    context = trace.get_current_span(_context(parent)).get_span_context()
    return trace.Link(context) if context.is_valid else None
