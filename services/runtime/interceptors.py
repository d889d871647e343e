"""Server interceptor of every service: telemetry, readiness, undecodable requests, error mapping, deadlines.

It is implemented here because grpc-interceptor has had no release since 2023.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError
from google.protobuf import descriptor_pool, empty_pb2, unknown_fields
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from services.runtime.logs import get_logger
from services.runtime.metrics import OTHER, create_histogram

log = get_logger("grpc")

# Services whose calls pass unchanged: health must answer while the others are refused.
_FOREIGN = ("/grpc.",)

# Tells the channel of the caller not to retry by itself; its program decides, by RetryInfo.
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")

_RPC_SECONDS = create_histogram(
    semconv.METRIC_RPC, "Duration of a call that the server answered, of a stream to its end."
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Factories of handlers, by whether requests and whether responses are streamed.
_FACTORIES: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True)
class _Undecodable:
    """Placeholder for a request whose bytes are not a message of its type.

    gRPC answers an exception of a deserializer with INTERNAL, so it returns this and the handler raises.
    """

    raw: bytes
    message_type: Descriptor


class Gate:
    """Readiness of a service: `closed` is the error with which calls are refused; None accepts them."""

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
    """Wraps every handler of one server.

    Args:
        gate: calls are refused with UNAVAILABLE while it is closed.
        call_seconds: upper bound on the duration of a call with one response, in seconds.
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
            return _refuse(self._gate.closed, method)
        handler = await continuation(handler_call_details)
        return None if handler is None else self._wrap(handler, method)

    def _wrap(self, handler: Any, method: str) -> Handler:
        behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        check: Callable[[Any], Any] = _check_each if handler.request_streaming else _check

        async def respond(request: Any, context: Any) -> Any:
            limit = asyncio.timeout(self._call_seconds)
            try:
                async with limit:
                    return await behaviour(check(request), context)
            except TimeoutError as error:
                # Without the limit the exception is the handler's own, and a fault as any other.
                await _abort(self._late(method) if limit.expired() else error, context, method)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the one place that maps them
                await _abort(error, context, method)

        # Not a generator: gRPC leaves one whose caller disconnects to the garbage collector.
        async def stream(request: Any, context: Any) -> None:
            try:
                # Closed as soon as the caller disconnects, which releases the generator's resources.
                async with aclosing(behaviour(check(request), context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the one place that maps them
                await _abort(error, context, method)

        return _FACTORIES[handler.request_streaming, handler.response_streaming](
            _trace(method, stream if handler.response_streaming else respond),
            _make_decoder(handler.request_deserializer, method),
            handler.response_serializer,
        )

    def _late(self, method: str) -> ChorusError:
        return errors.time_limit_exceeded(
            f"CHORUS_{self._gate.service.upper()}_CALL_SECONDS",
            f"{method} took longer than {self._call_seconds:g} s",
        )


def _trace(method: str, answer: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Returns `answer` inside the span of its call, which begins and ends in the task of the call.

    The call is measured, too.
    """
    # A client may call any name while the service refuses calls.
    name = OTHER if _find_method(method) is None else method.removeprefix("/")

    async def answer_in_span(request: Any, context: Any) -> Any:
        begin = time.perf_counter()
        cancelled = False
        try:
            with telemetry.server_span(method, context):
                return await answer(request, context)
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            code = grpc.StatusCode.CANCELLED if cancelled else telemetry.to_status_code(context.code())
            attributes = {semconv.METHOD: name, semconv.CODE: code.name}
            _RPC_SECONDS.record(time.perf_counter() - begin, attributes)

    return answer_in_span


async def _abort(error: BaseException, context: Any, method: str) -> None:
    """Ends a call with the status of an exception. Always raises."""
    if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError):
        raise error
    if not isinstance(error, ChorusError):
        log.error("call failed", method=method, exc_info=error)
        trace_id = telemetry.current_trace_id()
        error = ChorusError(
            errors.INTERNAL,
            "internal error; the cause is in the server's log",
            metadata={"trace_id": trace_id} if trace_id else {},
        )
    status = errors.to_status(error)
    pairs = status.trailing_metadata
    if error.reason == errors.DEPENDENCY_UNAVAILABLE:
        # The service behind this one would be called again at once, by each service along the chain.
        pairs = (*pairs, _NO_RETRY)
    await context.abort(status.code, status.details, pairs)


def _refuse(error: ChorusError, method: str) -> Handler:
    """Returns a handler that fails every call with `error`."""

    async def respond(_: Any, context: Any) -> None:
        await context.abort_with_status(errors.to_status(error))

    # The servicer is not registered yet, so the method's kind comes from its descriptor.
    found = _find_method(method)
    request_streaming = found is not None and found.client_streaming
    response_streaming = found is not None and found.server_streaming
    return _FACTORIES[request_streaming, response_streaming](_trace(method, respond))


def _find_method(path: str) -> MethodDescriptor | None:
    try:
        _, service, name = path.split("/", 2)
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except (KeyError, ValueError):
        return None


def _make_decoder(deserializer: Callable[[bytes], Any], path: str) -> Callable[[bytes], Any]:
    method = _find_method(path)
    if method is None:
        return deserializer
    message_type = method.input_type

    def decode(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except DecodeError:
            return _Undecodable(raw, message_type)

    return decode


async def _check_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check(request)


def _check(request: Any) -> Any:
    """Returns a decoded request; raises INVALID_FIELD for one that could not be decoded."""
    if isinstance(request, _Undecodable):
        field = _find_field_not_utf8(request.raw, request.message_type)
        if field:
            raise errors.invalid(field, "must be UTF-8")
        raise errors.invalid(request.message_type.name, "the bytes sent are not such a message")
    return request


def _find_field_not_utf8(raw: bytes, message_type: Descriptor) -> str:
    """Returns the path of the first string field that is not UTF-8; empty if there is none.

    protobuf rejects the whole message without naming the field, so its wire format is read once more, by
    field number.
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
            inner = _find_field_not_utf8(field.data, known.message_type)
            if inner:
                return f"{known.name}.{inner}"
    return ""
