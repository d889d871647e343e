"""An HTTPS server that receives webhooks and answers as scripted."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.tls import Certificates

# Upper bound on the wait for a request, in seconds.
SECONDS = 60.0


@dataclass(frozen=True)
class Received:
    """A request, with the names of its headers in lower case.

    Attributes:
        server_name: name that the client asked for by SNI; None for an address.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    server_name: str | None


@dataclass
class Receiver:
    """Requests of a running server.

    Attributes:
        answers: statuses of the next answers, then 200; None ends the connection without an answer.
        hold: while it is cleared, requests are recorded but not answered.
        headers: headers of each answer.
    """

    port: int = 0
    answers: deque[int | None] = field(default_factory=deque)
    headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self._changed = threading.Condition()

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"https://{host}:{self.port}{path}"

    def record(self, request: Received) -> int | None:
        with self._changed:
            self.received.append(request)
            answer = self.answers.popleft() if self.answers else 200
            self._changed.notify_all()
        self.hold.wait(SECONDS)
        return answer

    def wait(self, expected: Callable[[list[Received]], bool]) -> list[Received]:
        """Returns the requests once they are as expected."""
        with self._changed:
            assert self._changed.wait_for(lambda: expected(self.received), SECONDS), self.received
            return list(self.received)

    def wait_for(self, number: int) -> list[Received]:
        return self.wait(lambda received: len(received) >= number)


@contextmanager
def running_receiver(certificates: Certificates, port: int = 0) -> Iterator[Receiver]:
    """Runs a receiver on loopback until the end of the block.

    Args:
        port: port to listen on; 0 selects a free one.
    """
    receiver = Receiver()
    names: dict[int, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            name = names.get(self.connection.fileno())
            answer = receiver.record(Received(self.path, headers, body, name))
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: object, client_address: object) -> None:
            assert isinstance(request, ssl.SSLSocket)
            receiver.connections += 1
            names.pop(request.fileno(), None)
            request.do_handshake()
            super().finish_request(request, client_address)

        def handle_error(self, *_: object) -> None: ...  # clients that end a connection, as tests make them

    def keep_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is not None and isinstance(connection, ssl.SSLSocket):
            names[connection.fileno()] = name

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.sni_callback = keep_name
    with Server(("127.0.0.1", port), Handler) as server:
        # The handshake belongs into the thread of the connection: a silent client must not hold up others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.hold.set()
            server.shutdown()
            thread.join(10)
