"""Tracing, configured by the standard `OTEL_*` variables. When off, it imports and records nothing.

It is on when `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set, or `OTEL_TRACES_EXPORTER=otlp`,
and `OTEL_SDK_DISABLED` is not true. A context crosses a queue or a thread as a `traceparent` string, because
context variables do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from chorus_rpc import proxies

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
_enabled = False
_owned = False


def is_requested() -> bool:
    """Returns whether the environment requests tracing."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporter == "none":
        return False
    return exporter == "otlp" or any(
        os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def configure(service: str) -> bool:
    """Configures tracing; call it once per process, before servers and channels are created.

    Returns whether tracing is on. Raises ImportError that names the extra when tracing is requested but not
    installed.
    """
    global _enabled, _owned
    if _enabled or not is_requested():
        return _enabled
    # Exporters read the environment; a collector on this machine is reached without a proxy.
    proxies.exempt_loopback(os.environ)
    try:
        import opentelemetry.instrumentation.grpc  # noqa: F401  # used later, by the interceptors
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ImportError(
            "OTEL_* requests tracing: pip install './client[telemetry]' in a checkout, or unset it"
        ) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # The embedding program has set up its own provider: our spans go there.
        _enabled = True
        return True
    # Resource.create prefers OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES only when we set no name.
    name = os.environ.get("OTEL_SERVICE_NAME") or f"chorus-{service}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _enabled = _owned = True
    return True


def shutdown() -> None:
    """Exports buffered spans. Call it last."""
    global _enabled, _owned
    if _owned:
        from opentelemetry import trace

        provider: Any = trace.get_tracer_provider()
        provider.shutdown()
    _enabled = _owned = False


def client_interceptors() -> list[Any]:
    """Returns the interceptors of `grpc.aio` channels; none when tracing is off."""
    if not _enabled:
        return []
    from opentelemetry.instrumentation.grpc import aio_client_interceptors, filters

    make: Callable[..., list[Any]] = aio_client_interceptors
    return make(filter_=filters.negate(filters.health_check()))


def server_interceptors() -> list[Any]:
    """Returns the interceptors of `grpc.aio` servers; none when off. Health checks are not traced."""
    if not _enabled:
        return []
    from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

    make: Callable[..., Any] = aio_server_interceptor
    return [make(filter_=filters.negate(filters.health_check()))]


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


def _context(parent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _link(parent: str) -> Link | None:
    from opentelemetry import trace

    context = trace.get_current_span(_context(parent)).get_span_context()
    return trace.Link(context) if context.is_valid else None
