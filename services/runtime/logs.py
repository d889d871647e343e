"""Structured logs on stderr; every line names its service, component and trace.

A call of a logger never raises and never waits for long, whatever happens to stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from chorus_rpc import telemetry
from structlog.tracebacks import ExceptionDictTransformer

from services.runtime.log_sink import STDERR, LogSink, fill_standard_streams


def configure_logs(service: str, level: str, log_format: str) -> None:
    """Configures logging and replaces `sys.stderr`, once per process.

    Args:
        log_format: "console" for people, "json" for machines.
    """
    fill_standard_streams()
    sink = LogSink(STDERR)
    # Also for libraries that print to stderr: progress bars, warnings.
    sys.stderr = sink
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace(service),
    ]
    renderer: list[structlog.typing.Processor] = (
        [
            # Without the frames' variables: they hold prompts.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=_make_safe_logger(number, sink),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, sink)),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: their warnings go to the same stream.
    logging.raiseExceptions = False  # else a handler that fails writes a traceback, and raises if it cannot
    handler = logging.StreamHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Returns a logger whose lines carry `component=name`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=name)
    return logger


def _make_safe_logger(level: int, sink: LogSink) -> type[Any]:
    """Returns a class of loggers that never raise, and that report the lines that `sink` has lost."""
    base: Any = structlog.make_filtering_bound_logger(level)

    def log_safely(self: Any, method: str, event: str | None = None, **fields: Any) -> None:
        try:
            base._proxy_to_logger(self, method, event, **fields)
            if loss := sink.take_loss():
                base._proxy_to_logger(self, "warning", "log lines lost", lines=loss.lines, cause=loss.cause)
        except Exception as error:  # noqa: BLE001 -- for instance of the repr of a field
            with suppress(Exception):
                base._proxy_to_logger(self, "error", "log line not rendered", line=event, error=repr(error))

    return type("SafeLogger", (base,), {"_proxy_to_logger": log_safely})


def _add_trace(service: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        trace_id = telemetry.current_trace_id()
        if trace_id:
            event["trace_id"] = trace_id
        return event

    return add
