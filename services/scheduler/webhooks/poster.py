"""Sends a request to a receiver: over TLS, to an address that was checked, without redirects and proxies."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

import httpcore2

from services.scheduler.webhook_addresses import AddressRules, IpAddress, parse_address
from services.scheduler.webhooks.outcome import Outcome, OutcomeKind
from services.scheduler.webhooks.url import InvalidUrl, ReceiverUrl, parse_url

# Number of addresses of a host to which a connection is tried.
_ADDRESSES: Final = 4
_GONE: Final = 410
_TOO_MANY_REQUESTS: Final = 429
_UNAVAILABLE: Final = 503
# Digits of a delay that are read; more of them are beyond every bound.
_MAX_DELAY_DIGITS: Final = 9
# Upper bound on the text of a fault, which may come from the receiver.
_MAX_CAUSE_CHARACTERS: Final = 200

Resolve = Callable[[str, int], Awaitable[Sequence[IpAddress]]]


class Resolver:
    """Resolves host names in threads of its own: a name server that never answers holds back no other work.

    Args:
        threads: number of names that are resolved at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="webhook-dns")

    async def resolve(self, host: str, port: int) -> list[IpAddress]:
        """Returns the addresses of a host, in the order of preference. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        addresses = (parse_address(str(entry[4][0])) for entry in found)
        # Without those that name an interface: they are local.
        return list(dict.fromkeys(address for address in addresses if address is not None))

    def close(self) -> None:
        """Ends the threads, without waiting for names that are being resolved."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _PinnedBackend(httpcore2.AnyIOBackend):
    """Connects to given addresses, whatever the name of the host resolves to by then.

    Args:
        addresses: addresses to try in turn, at least one.
        seconds: upper bound on the time for all of them together.
    """

    def __init__(self, addresses: Sequence[IpAddress], seconds: float) -> None:
        super().__init__()
        self._addresses = addresses
        self._seconds = seconds / len(addresses)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        fault: Exception | None = None
        for address in self._addresses:
            try:
                return await super().connect_tcp(
                    str(address), port, self._seconds, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                fault = error
        raise fault or httpcore2.ConnectError("no address")


class Poster:
    """Sends requests, each over a connection of its own.

    Args:
        ca: PEM file with the authorities of the receivers' certificates; empty for the system's.
        seconds: upper bound on an attempt, from the resolution of the name to the status line.
    """

    def __init__(self, rules: AddressRules, resolve: Resolve, *, ca: str = "", seconds: float) -> None:
        self._rules = rules
        self._resolve = resolve
        self._seconds = seconds
        self._tls = ssl.create_default_context(cafile=ca or None)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Sends a request. Returns its outcome; raises CancelledError only."""
        try:
            receiver = parse_url(url)
        except InvalidUrl as error:
            return Outcome(OutcomeKind.UNREACHABLE, f"the URL {error}")
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(receiver, headers, body)
        except TimeoutError:
            return Outcome(OutcomeKind.TIMEOUT, f"no answer within {self._seconds:g} s")

    async def _post(self, receiver: ReceiverUrl, headers: Mapping[str, str], body: bytes) -> Outcome:
        try:
            found = await self._find_addresses(receiver)
        except (OSError, UnicodeError) as error:
            return Outcome(OutcomeKind.UNREACHABLE, f"the host has no address: {_describe(error)}")
        allowed = [address for address in found if self._rules.allows(receiver.host, address)]
        if not allowed:
            refused = ", ".join(map(str, found[:_ADDRESSES])) or "none"
            return Outcome(OutcomeKind.ADDRESS_REFUSED, f"the host has no public address, but {refused}")
        # One connection for one request: none is shared by tenants, and nothing is left open.
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(b"https", receiver.host.encode(), receiver.port),
            ssl_context=self._tls,
            network_backend=_PinnedBackend(allowed[:_ADDRESSES], self._seconds),
        )
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=b"https",
                host=receiver.host.encode(),
                port=receiver.port,
                target=receiver.target.encode(),
            ),
            headers=[
                ("Host", receiver.authority),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("User-Agent", "chorus-webhook/1"),
                ("Connection", "close"),
                *headers.items(),
            ],
            content=body,
        )
        try:
            async with connection:
                # The body of the response is not read: only its status counts, and its headers are bounded.
                response = await connection.handle_async_request(request)
                return _judge(response.status, _find_header(response.headers, b"retry-after"))
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return Outcome(OutcomeKind.UNREACHABLE, _describe(error))
        except OSError as error:  # of a socket that the library does not classify
            return Outcome(OutcomeKind.UNREACHABLE, _describe(error))

    async def _find_addresses(self, receiver: ReceiverUrl) -> Sequence[IpAddress]:
        if receiver.address is not None:
            return [receiver.address]
        return await self._resolve(receiver.host, receiver.port)


def parse_retry_after(value: str, now: float) -> float:
    """Returns the seconds of a Retry-After header, a number or a date; 0 for another text or a time that has
    passed.

    Args:
        now: Unix time, in seconds.
    """
    if value.isascii() and value.isdigit():
        return float(value[:_MAX_DELAY_DIGITS])
    try:
        # A date without an offset is in GMT, as HTTP requires.
        date = parsedate_to_datetime(value)
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, seconds)


def _find_header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    values = (value for key, value in headers if key.lower() == name)
    return next(values, b"").decode("latin-1").strip()


def _judge(status: int, retry_after: str) -> Outcome:
    if 200 <= status < 300:
        return Outcome(OutcomeKind.DELIVERED)
    if status == _GONE:
        return Outcome(OutcomeKind.GONE, f"status {status}")
    remark = ", and redirects are not followed" if 300 <= status < 400 else ""
    busy = status in (_TOO_MANY_REQUESTS, _UNAVAILABLE)
    pause = parse_retry_after(retry_after, time.time()) if busy else 0.0
    return Outcome(OutcomeKind.REJECTED, f"status {status}{remark}", pause)


def _describe(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_CAUSE_CHARACTERS]
