"""Process of a service: its logs, tracing and metrics around the server, and its exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from chorus_rpc import telemetry

from services.runtime.address import CannotListen, check_address
from services.runtime.logs import configure_logs, get_logger
from services.runtime.metrics import Metrics
from services.runtime.metrics_port import MetricsPort
from services.runtime.resources import EssentialTaskEnded, Resources
from services.runtime.settings import ServerSettings, find_unknown_variables
from services.runtime.startup import StartupError

log = get_logger("server")

# Serves until the end of the process. The function that it gets opens the port of the metrics, if there is
# one, which the resources then own.
Serve = Callable[[Callable[[Resources], None]], Awaitable[Any]]


def run_process(name: str, settings: ServerSettings, serve: Serve, *, health_port: int = 0) -> None:
    """Runs `serve` in an event loop; returns when it does.

    Args:
        name: short name of the service, for instance "cache".
        health_port: further port of the settings' host, the setting HEALTH_PORT; 0 for none.

    Ends the process with status 1 and one line on stderr when the address cannot be listened on or `serve`
    raises StartupError, with status 1 when it raises EssentialTaskEnded, and with status 2 when an `OTEL_*`
    variable cannot be honoured.
    """
    configure_logs(name, settings.log_level, settings.log_format)
    for variable, nearest in find_unknown_variables(type(settings), os.environ).items():
        log.warning("unknown setting ignored", variable=variable, did_you_mean=nearest)
    try:
        telemetry.configure(name)
        metrics = Metrics(name, settings)
    except (ImportError, ValueError) as error:
        log.critical("tracing or metrics cannot be set up", error=str(error))
        raise SystemExit(2) from None

    def open_metrics_port(resources: Resources) -> None:
        if metrics.registry is not None:
            resources.push_async_callback(MetricsPort(metrics.registry, settings).close)

    async def run() -> None:
        await serve(open_metrics_port)

    try:
        check_address(settings)
        if health_port:
            check_address(settings, health_port, "HEALTH_PORT")
        asyncio.run(run())
    except EssentialTaskEnded:
        raise SystemExit(1) from None
    except CannotListen as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except StartupError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        for fault in (metrics.close(), telemetry.shutdown()):
            if fault:
                log.warning(fault)
