"""HTTP server of a service's metrics: answers GET /metrics, in a thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from services.runtime.address import CannotListen, describe_fault
from services.runtime.logs import get_logger
from services.runtime.settings import ServerSettings
from services.runtime.startup import name_variable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = get_logger("metrics")

PATH: Final = "/metrics"
# Upper bound on the wait for the bytes of a client, in seconds.
_CLIENT_SECONDS: Final = 10.0
# Interval at which the thread looks whether it is to end, in seconds.
_POLL_SECONDS: Final = 0.1


class MetricsPort:
    """Serves a registry on the metrics port of the settings, from its creation to `close`.

    Raises CannotListen if the port cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, settings: ServerSettings) -> None:
        self._server = _Server(_listen(settings), _make_application(registry))
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()
        log.info("metrics port bound", host=settings.metrics_host, port=settings.metrics_port)

    async def close(self) -> None:
        """Ends the server; a request that is still being answered is cut off at the end of the process."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing: a line for each scrape helps nobody."""


class _Server(ThreadingMixIn, WSGIServer):
    """Server on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, application: Callable[..., Any]) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # As the base class does it when it binds, but without the lookup of a name for the address.
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()
        self.set_app(application)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("scrape not answered", exc_info=True)


def _listen(settings: ServerSettings) -> socket.socket:
    host, port = settings.metrics_host, settings.metrics_port
    address = ipaddress.ip_address(host)
    try:
        # Either wildcard is all addresses of both families, as for the gRPC port.
        if address.is_unspecified and socket.has_dualstack_ipv6():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CannotListen(
            describe_fault(
                error,
                host,
                port,
                host_variable=name_variable(settings, "metrics_host"),
                port_variable=name_variable(settings, "metrics_port"),
            )
        ) from error


def _make_application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    from prometheus_client import make_wsgi_app

    answer_scrape = make_wsgi_app(registry)
    # OpenTelemetry's reader mixes up the data of scrapes that overlap.
    scraping = Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            status, headers = "404 Not Found", []
        elif environ["REQUEST_METHOD"] != "GET":
            status, headers = "405 Method Not Allowed", [("Allow", "GET")]
        else:
            with scraping:
                body: Iterable[bytes] = answer_scrape(environ, start_response)
                return body
        start_response(status, [*headers, ("Content-Length", "0")])
        return []

    return answer
