"""Connection to one service: its channel, and the deadline, metadata and errors of its calls."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, Self, SupportsFloat, TypeAlias, TypeVar

import grpc
import grpc.aio
from chorus_rpc import errors, telemetry
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import ChorusError, from_rpc_error, invalid
from chorus_rpc.limits import DEFAULT_MAX_MESSAGE_BYTES
from chorus_rpc.proxies import is_loopback
from grpc_status import rpc_status

from chorus_client.lifetime import ClientClosed, Lifetime

CALL_SECONDS: Final = 30.0
MAX_SECONDS: Final = 31_536_000
"""Upper bound on a time limit, in seconds (a year): gRPC cannot represent any number."""
_METADATA_KEY: Final = re.compile(r"[a-z0-9_.-]+")

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Connection(Generic[Stub]):
    """Channel to a service, and the defaults and error mapping of its calls.

    Args:
        stub: class of the service's stub.
        service: name of the service in errors.
        target: "host:port", or any gRPC name.
        variable: environment variable that names the target, for the error when nothing answers.
        credentials: channel credentials for TLS; None for a plaintext connection.
        metadata: pairs sent with every call.
        interceptors: client interceptors of every call, the first one outermost.
        timeout: deadline of a unary call that has none, in seconds.
        use_proxy: whether a proxy that the environment names is used.
        max_message_bytes: upper bound on one message, in bytes.
    """

    def __init__(
        self,
        stub: Callable[[grpc.aio.Channel], Stub],
        service: str,
        target: str,
        variable: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        metadata: Metadata,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
        timeout: float,
        use_proxy: bool = True,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        check_seconds("timeout", timeout)
        metadata = check_metadata(metadata)
        self._lifetime = Lifetime()
        telemetry.configure("client")
        self.target = target
        self._channel: grpc.aio.Channel | None = open_channel(
            target,
            max_message_bytes,
            credentials=credentials,
            interceptors=interceptors,
            use_proxy=use_proxy,
        )
        self._stub: Stub | None = stub(self._channel)
        self._service = service
        self._variable = variable
        self._secure = credentials is not None
        self._metadata = metadata
        self._timeout = timeout

    @property
    def stub(self) -> Stub:
        """Stub of the service. Raises ClientClosed or ForkedClient."""
        self._lifetime.check()
        assert self._stub is not None
        return self._stub

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self._secure

    @property
    def metadata(self) -> Metadata:
        """Pairs sent with every call."""
        return self._metadata

    def with_metadata(self, metadata: Metadata) -> Self:
        """Returns a connection over the same channel with other metadata; it ends with this one."""
        other = copy.copy(self)
        other._metadata = check_metadata(metadata)
        return other

    async def close(self) -> None:
        """Closes the channel; calls still running, and later ones, raise ClientClosed.

        In a forked process the channel stays the parent's.
        """
        self._lifetime.closed = True
        if not self._lifetime.is_inherited and self._channel is not None:
            channel, self._channel, self._stub = self._channel, None, None
            await channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
    ) -> Response:
        """Makes a unary call. Raises ChorusError."""
        seconds = self._timeout if timeout is None else check_seconds("timeout", timeout)
        with self._raising():
            return await method(request, timeout=seconds, metadata=self._metadata)

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float,
    ) -> AsyncGenerator[Response, None]:
        """Yields the responses of a streaming call. Raises ChorusError."""
        with self._raising():
            call = method(request, timeout=max(timeout, 0.001), metadata=self._metadata)
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()

    @contextmanager
    def _raising(self) -> Iterator[None]:
        self._lifetime.check()
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._lifetime.closed:
                raise ClientClosed from error
            raise self._to_error(error) from error
        except asyncio.CancelledError:
            # Closing the channel cancels its calls, as a caller cancels its task; only the latter stays one.
            task = asyncio.current_task()
            if self._lifetime.closed and not (task is not None and task.cancelling()):
                raise ClientClosed from None
            raise

    def _to_error(self, error: grpc.aio.AioRpcError) -> ChorusError:
        # A service of ours that answers attaches details; a status without them comes from gRPC itself.
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads
        if error.code() is grpc.StatusCode.UNIMPLEMENTED and status is None:
            return ChorusError(
                errors.INTERNAL,
                f"the server at {self.target} is no {self._service} of this version: {error.details()}",
                metadata={"service": self._service, "target": self.target},
            )
        if error.code() is not grpc.StatusCode.UNAVAILABLE or status is not None:
            return from_rpc_error(error, self._service)
        # With TLS the certificates may be at fault, and `chorus up` does not help.
        remedy = (
            f" over TLS: {error.details()}"
            if self._secure
            else f": start one with `chorus up`, or pass target= / {self._variable}{hint_at_tls(self.target)}"
        )
        return ChorusError(
            errors.DEPENDENCY_UNAVAILABLE,
            f"nothing answers at {self.target}{remedy}",
            metadata={
                "service": self._service,
                "target": self.target,
                "detail": error.details() or "",
                **({"tls": "true"} if self._secure else {}),
            },
            retry_after=1.0,
        )


def hint_at_tls(target: str) -> str:
    """Returns a clause for the error of a plaintext connection, which a server with TLS closes at once."""
    return "" if is_loopback(target) else "; a server with TLS needs chorus+tls:// in front of its address"


def check_seconds(field: str, value: object) -> float:
    """Returns a time limit in seconds. Raises ChorusError (INVALID_FIELD) that names `field`."""
    if isinstance(value, SupportsFloat) and not isinstance(value, bool):
        seconds = float(value)
        if 0 <= seconds <= MAX_SECONDS:
            return seconds
    raise invalid(field, f"must be a number of seconds, 0 to {MAX_SECONDS:,}, not {value!r}")


def check_metadata(metadata: Metadata) -> Metadata:
    """Returns the pairs. Raises ChorusError (INVALID_FIELD) for one that gRPC cannot send.

    The error does not carry the value, which may be a secret.
    """
    try:
        pairs = tuple((key, value) for key, value in metadata)
    except (TypeError, ValueError):
        raise invalid("metadata", 'must be pairs, such as [("authorization", "Bearer …")]') from None
    for key, value in pairs:
        if not (isinstance(key, str) and _METADATA_KEY.fullmatch(key)):
            raise invalid("metadata", f"a key must consist of a–z, 0–9, '_', '.' and '-', not {key!r}")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise invalid("metadata", f"the value of {key} must be bytes")
        elif not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise invalid(
                "metadata", f"the value of {key} must be text in printable ASCII, without a newline"
            )
    return pairs
