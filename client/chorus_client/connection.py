"""Connection to one service: its channel, and the deadline, metadata and errors of its calls."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias, TypeVar

import grpc
import grpc.aio
from chorus_rpc import errors, telemetry
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import ChorusError, from_rpc_error, invalid
from grpc_status import rpc_status

CALL_SECONDS: Final = 30.0
_METADATA_KEY: Final = re.compile(r"[a-z0-9_.-]+")

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Request = TypeVar("Request")
Response = TypeVar("Response")


class Connection:
    """Channel to a service, and the defaults and error mapping of its calls.

    Args:
        service: name of the service in errors.
        target: "host:port", or any gRPC name.
        variable: environment variable that names the target, for the error when nothing answers.
        credentials: channel credentials for TLS; None for a plaintext connection.
        metadata: pairs sent with every call.
        interceptors: client interceptors of every call, the first one outermost.
        timeout: deadline of a unary call that has none, in seconds.
    """

    def __init__(
        self,
        service: str,
        target: str,
        variable: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        metadata: Metadata,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
        timeout: float,
    ) -> None:
        metadata = check_metadata(metadata)
        telemetry.configure("client")
        self.target = target
        self.channel = open_channel(
            target, credentials=credentials, interceptors=interceptors, use_proxy=True
        )
        self._service = service
        self._variable = variable
        self._secure = credentials is not None
        self._closed = False
        self._metadata = metadata
        self._timeout = timeout

    async def close(self) -> None:
        """Closes the channel; calls still running end, and later ones raise RuntimeError."""
        self._closed = True
        await self.channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
    ) -> Response:
        """Makes a unary call. Raises ChorusError."""
        seconds = self._timeout if timeout is None else timeout
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
        if self._closed:
            raise RuntimeError("this client is closed")
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from error

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
            else f": start one with `chorus up`, or pass target= / {self._variable}"
        )
        return ChorusError(
            errors.DEPENDENCY_UNAVAILABLE,
            f"nothing answers at {self.target}{remedy}",
            metadata={"service": self._service, "target": self.target, "detail": error.details() or ""},
            retry_after=1.0,
        )


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
