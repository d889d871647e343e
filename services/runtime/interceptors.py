"""What stands between gRPC and every servicer: readiness, decoding faults, error mapping, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from chorus_rpc import errors, telemetry
from chorus_rpc.errors import ChorusError
from google.protobuf import descriptor_pool, empty_pb2, unknown_fields
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from services.runtime.logs import get_logger

log = get_logger("grpc")

# Services whose calls pass untouched: health must answer while everything else does not.
_FOREIGN = ("/grpc.",)


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True)
class _Undecodable:
    """Stands for a request whose bytes are not the message they should be."""

    raw: bytes
    message_type: Descriptor


class Gate:
    """Whether the service takes calls yet, and if not, why."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.closed: ChorusError | None = errors.unavailable(service, "it is still starting")

    def open(self) -> None:
        self.closed = None

    def drain(self) -> None:
        self.closed = ChorusError(
            errors.SHUTTING_DOWN,
            f"{self.service} is shutting down",
            metadata={"service": self.service},
            retry_after=1.0,
        )


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """One for each server.

    Args:
        gate: calls are refused with UNAVAILABLE while it is closed.
        call_seconds: the longest a unary call may take.
    """

    def __init__(self, gate: Gate, call_seconds: float) -> None:
        self._gate = gate
        self._call_seconds = call_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if method.startswith(_FOREIGN):
            return await continuation(handler_call_details)
        if self._gate.closed is not None:
            return _refusing(self._gate.closed, method)
        handler = await continuation(handler_call_details)
        return None if handler is None else self._wrapped(handler, method)

    def _wrapped(self, handler: Any, method: str) -> Handler:
        decode = _decoder(handler.request_deserializer, method)
        if handler.request_streaming:

            async def requests(stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
                async for request in stream:
                    yield _checked(request)
        else:
            requests = _checked  # type: ignore[assignment]

        if handler.response_streaming:
            inner_stream = handler.stream_stream or handler.unary_stream

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    # Closed at once when the caller leaves, so that its resources are.
                    async with aclosing(inner_stream(requests(request), context)) as responses:
                        async for response in responses:
                            yield response
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- all of them, once
                    await _abort(error, context, method)

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, decode, handler.response_serializer)

        inner = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                async with asyncio.timeout(self._call_seconds):
                    return await inner(requests(request), context)
            except TimeoutError as error:
                late = ChorusError(
                    errors.DEADLINE_EXCEEDED, f"{method} took longer than {self._call_seconds:g} s"
                )
                late.__cause__ = error
                await _abort(late, context, method)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- all of them, once
                await _abort(error, context, method)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, decode, handler.response_serializer)


async def _abort(error: BaseException, context: Any, method: str) -> None:
    """The one place where an exception becomes a status. Always raises."""
    if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError):
        raise error
    if not isinstance(error, ChorusError):
        log.error("call failed", method=method, exc_info=error)
        trace_id = telemetry.current_trace_id()
        error = ChorusError(
            errors.INTERNAL,
            "an internal fault; the server's log has its cause",
            metadata={"trace_id": trace_id} if trace_id else {},
        )
    await context.abort_with_status(errors.to_status(error))


def _refusing(error: ChorusError, method: str) -> Handler:
    description = _method(method)

    async def refuse(_: Any, context: Any) -> None:
        await context.abort_with_status(errors.to_status(error))

    async def refuse_stream(_: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort_with_status(errors.to_status(error))
        yield

    if description is not None and description.server_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream)
    if description is not None and description.client_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _method(path: str) -> MethodDescriptor | None:
    _, service, name = path.split("/", 2)
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return None


def _decoder(deserializer: Callable[[bytes], Any], path: str) -> Callable[[bytes], Any]:
    method = _method(path)
    if method is None:
        return deserializer
    message_type = method.input_type

    def decode(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except DecodeError:
            return _Undecodable(raw, message_type)

    return decode


def _checked(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        field = _field_not_utf8(request.raw, request.message_type)
        if field:
            raise errors.invalid(field, "must be UTF-8")
        raise errors.invalid(request.message_type.name, "the bytes sent are not such a message")
    return request


def _field_not_utf8(raw: bytes, message_type: Descriptor) -> str:
    """Path of the first string field that is not UTF-8; empty if there is none.

    protobuf refuses the whole message and does not say why, so its wire format is read once more, by number.
    """
    try:
        fields: Any = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(raw))
    except DecodeError:
        return ""
    for field in fields:
        known = message_type.fields_by_number.get(field.field_number)
        if known is None or not isinstance(field.data, bytes):
            continue
        if known.type == FieldDescriptor.TYPE_STRING:
            try:
                field.data.decode()
            except UnicodeDecodeError:
                return str(known.name)
        elif known.message_type is not None:
            inner = _field_not_utf8(field.data, known.message_type)
            if inner:
                return f"{known.name}.{inner}"
    return ""
