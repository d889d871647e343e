"""Asyncio client of a Chorus deployment."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Final, Self, Unpack

import grpc
import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2
from chorus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from chorus_rpc import semconv, telemetry
from chorus_rpc.errors import ChorusError, invalid
from chorus_rpc.limits import DEFAULT_MAX_MESSAGE_BYTES, MAX_OUTPUTS

from chorus_client.connection import CALL_SECONDS, Connection, Metadata, check_seconds
from chorus_client.deployment import ServerInfo
from chorus_client.endpoints import VARIABLES, resolve
from chorus_client.events import Event
from chorus_client.handles import PATIENCE_SECONDS, WATCH_SECONDS, AsyncGenerationHandle
from chorus_client.offers import Model, Preview
from chorus_client.results import Generation, GenerationError, Video
from chorus_client.search import build_list_request, check_order
from chorus_client.security import Tls, authorize, remove_token, secure
from chorus_client.spec import SpecOptions, build_request

_CANCEL_SECONDS: Final = 5.0
_PAGE_SIZE: Final = 100


class AsyncChorusClient:
    """Submits generations, and finds those that were submitted.

    Methods raise ChorusError: `reason` classifies the error, `violations` names the invalid fields. Every
    call has a deadline.

    Args:
        target: "host:port" of the scheduler, or any gRPC name; with "chorus+tls://" in front, over TLS.
            Default: CHORUS_TARGET, else the `chorus up` that runs in this directory, else localhost:7400.
        token: API key; None for that of CHORUS_TOKEN, if it is set.
        tls: whether to use TLS, with the public authorities; or a Tls that names files.
        allow_plaintext_token: whether the token may be sent to another machine without TLS.
        credentials: channel credentials in place of `tls`, such as `grpc.ssl_channel_credentials(ca)`.
        metadata: pairs sent with every call, such as `[("authorization", "Bearer …")]`.
        interceptors: client interceptors of `grpc.aio`, the first one outermost.
        timeout: deadline of a unary call that sets none, in seconds.
        use_proxy: whether a proxy that the environment names is used; never for a loopback address.
        max_message_bytes: upper bound on one message, in bytes.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        tls: bool | Tls = False,
        allow_plaintext_token: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        timeout: float = CALL_SECONDS,
        use_proxy: bool = True,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._allow_plaintext_token = allow_plaintext_token
        security = secure(
            resolve("scheduler", target), token, tls, credentials, metadata, allow_plaintext_token
        )
        self.target = security.target
        self._connection = Connection(
            SchedulerServiceStub,
            "scheduler",
            self.target,
            VARIABLES["scheduler"],
            credentials=security.credentials,
            metadata=security.metadata,
            interceptors=interceptors,
            timeout=timeout,
            use_proxy=use_proxy,
            max_message_bytes=max_message_bytes,
        )

    def with_token(self, token: str | None) -> Self:
        """Returns a client with another API key that shares the connection of this one, and ends with it.

        It is for programs that call on behalf of several users. Raises ChorusError (INVALID_FIELD) for a
        token that cannot be sent, or that would leave this machine without TLS.

        Args:
            token: API key; None for no key, whatever CHORUS_TOKEN says.
        """
        other = copy.copy(self)
        metadata = remove_token(self._connection.metadata)
        if token is not None:
            protected = self._connection.secure or self._allow_plaintext_token
            metadata = (*authorize(self.target, token, protected), *metadata)
        other._connection = self._connection.with_metadata(metadata)
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls still running end."""
        await self._connection.close()

    async def submit(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> AsyncGenerationHandle:
        """Submits a generation and returns its handle once the scheduler has accepted it durably.

        Repeating a submission with the same `request_id` is safe. Raises TypeError for an unknown option.

        Args:
            timeout: deadline of the submission, in seconds.
            options: model, frames, height, width, steps, sigmas, seed, reuse, max_reuse_steps, donor,
                explicit_reuse, priority, labels, webhook, webhook_events, step_previews, no_store, deadline,
                request_id; SpecOptions describes them.
        """
        [handle, *_] = await self._submit(build_request(prompt, options), timeout)
        return handle

    async def submit_many(
        self, prompt: str, outputs: int, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> tuple[AsyncGenerationHandle, ...]:
        """Submits several outputs of one prompt, all or none. Returns their handles, in order.

        Each is a generation of its own, with another seed: a stated `seed` s gives s, s + 1, …. Repeating a
        submission with the same `request_id` and `outputs` is safe; it returns the handles of the outputs
        that have not been deleted. Raises TypeError for an unknown option.

        Args:
            outputs: number of videos, 1 to 16.
            timeout: deadline of the submission, in seconds.
            options: as of `submit`, except `donor`, whose seed all would take.
        """
        if not isinstance(outputs, int) or not 1 <= outputs <= MAX_OUTPUTS:
            raise invalid("outputs", f"must be 1 to {MAX_OUTPUTS}, not {outputs!r}")
        request = build_request(prompt, options)
        request.outputs = outputs
        return await self._submit(request, timeout)

    async def generate(
        self,
        prompt: str,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        on_accepted: Callable[[Generation], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Unpack[SpecOptions],
    ) -> Video:
        """Submits a generation and waits for its video, as one trace.

        Cancelling the caller cancels the generation. Raises GenerationFailed, GenerationCancelled if it is
        cancelled by another client, and TypeError for an unknown option. An exception raised by a callback
        ends the wait and is raised here, while the generation goes on.

        Args:
            timeout: upper bound on the wait, in seconds; DEADLINE_EXCEEDED after it. The generation goes on:
                set `deadline` to bound it as well.
            patience: upper bound on the time without an answer while waiting, in seconds, after which the
                fault is raised.
            on_accepted: called once, with the generation as accepted.
            on_event: called with each event.
            options: as of `submit`.
        """
        check_seconds("timeout", timeout)
        check_seconds("patience", patience)
        request = build_request(prompt, options)
        attributes = {
            semconv.GEN_AI_OPERATION: "generate_content",
            semconv.GEN_AI_MODEL: request.spec.model_id or "default",
            semconv.REQUEST_ID: request.request_id,
        }
        name = semconv.SPAN_CLIENT_GENERATE.format(model=attributes[semconv.GEN_AI_MODEL])
        with telemetry.span(name, attributes) as span:
            submission = asyncio.ensure_future(self._submit(request, None))
            try:
                [handle, *_] = await asyncio.shield(submission)
                span.set_attribute(semconv.GENERATION_ID, handle.id)
                if on_accepted is not None and handle.accepted is not None:
                    on_accepted(handle.accepted)
                video = await handle.result(timeout=timeout, patience=patience, on_event=on_event)
            except asyncio.CancelledError:
                raise asyncio.CancelledError(await _cancel(submission)) from None
            except GenerationError as error:
                span.set_attribute(semconv.GENERATION_STATE, error.generation.state)
                raise
            span.set_attribute(semconv.GENERATION_STATE, video.generation.state)
            return video

    def handle(self, generation_id: str) -> AsyncGenerationHandle:
        """Returns the handle of a generation that was submitted before; makes no call.

        Raises ChorusError (INVALID_FIELD) for an id that is no text, or empty.
        """
        if not isinstance(generation_id, str) or not generation_id:
            raise invalid("generation_id", f"must be text, as `submit` returned it, not {generation_id!r}")
        return AsyncGenerationHandle(self._connection, generation_id)

    async def list(
        self,
        state: str | None = None,
        limit: int = 50,
        *,
        labels: Mapping[str, str] | None = None,
        prompt_contains: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        after: str | None = None,
        oldest_first: bool = False,
        model: str | None = None,
        decision: str | None = None,
        edit: str | None = None,
        reported: bool = False,
        donor: str | None = None,
        timeout: float | None = None,
    ) -> tuple[Generation, ...]:
        """Returns up to `limit` generations that match every argument given, newest first.

        Args:
            state: "queued", "waiting", "running", "succeeded", "failed" or "cancelled"; None for all.
            limit: upper bound on the number of generations, at least 1.
            labels: labels that they have, with these values.
            prompt_contains: text in their prompts, compared without regard to case.
            created_after: earliest time of their acceptance, with a time zone.
            created_before: time before which they were accepted, with a time zone.
            after: id of the generation after which the list starts, in its order; NOT_FOUND if there is none.
            oldest_first: whether the list is ordered from oldest to newest.
            model: id of their model.
            decision: their use of the cache: "hit", "miss" or "exact"; None for all.
            edit: kind of the edit from the donor's prompt, as `Plan.edit` names it.
            reported: whether only those with a report are returned.
            donor: id of the generation whose steps they take.
            timeout: deadline of each page, in seconds.
        """
        if not isinstance(limit, int) or limit < 1:
            raise invalid("limit", f"must be at least 1, not {limit!r}")
        request = build_list_request(
            state,
            labels,
            prompt_contains,
            created_after,
            created_before,
            model=model,
            decision=decision,
            edit=edit,
            reported=reported,
            donor=donor,
        )
        request.oldest_first = check_order(after, oldest_first)
        request.after_generation_id = after or ""
        generations: tuple[Generation, ...] = ()
        while len(generations) < limit:
            request.page_size = min(_PAGE_SIZE, limit - len(generations))
            response = await self._connection.call(self._connection.stub.ListGenerations, request, timeout)
            generations += tuple(Generation.from_proto(generation) for generation in response.generations)
            request.page_token, request.after_generation_id = response.next_page_token, ""
            if not request.page_token:
                break
        return generations

    async def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Returns the models that a request can name, the default first.

        Args:
            timeout: deadline of the call, in seconds.
        """
        request = scheduler_pb2.ListModelsRequest()
        response = await self._connection.call(self._connection.stub.ListModels, request, timeout)
        return tuple(map(Model.from_proto, response.models))

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns the tenant of the caller's API key, and which services serve behind the scheduler.

        Args:
            timeout: deadline of the call, in seconds.
        """
        request = scheduler_pb2.GetServerInfoRequest()
        response = await self._connection.call(self._connection.stub.GetServerInfo, request, timeout)
        return ServerInfo.from_proto(response)

    async def preview(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> Preview:
        """Plans a request without submitting it: what it would reuse, and how long it would take.

        Args:
            timeout: deadline of the call, in seconds.
            options: as of `submit`.
        """
        request = scheduler_pb2.PreviewPlanRequest(spec=build_request(prompt, options).spec)
        response = await self._connection.call(self._connection.stub.PreviewPlan, request, timeout)
        return Preview.from_proto(response)

    async def _submit(
        self, request: scheduler_pb2.SubmitGenerationRequest, timeout: float | None
    ) -> tuple[AsyncGenerationHandle, ...]:
        response = await self._connection.call(self._connection.stub.SubmitGeneration, request, timeout)
        # A server from before requests had several outputs returns the first one only.
        accepted = map(Generation.from_proto, response.generations or [response.generation])
        return tuple(AsyncGenerationHandle(self._connection, each.id, each) for each in accepted)


async def _cancel(submission: asyncio.Future[tuple[AsyncGenerationHandle, ...]]) -> str:
    """Cancels the generation of a submission that is complete or still under way; describes the outcome."""
    try:
        async with asyncio.timeout(_CANCEL_SECONDS):
            [handle, *_] = await submission
            generation = await handle.cancel()
    except (ChorusError, TimeoutError) as fault:
        return f"interrupted; the generation could not be cancelled: {fault or 'no answer'}"
    if generation.state == "cancelled":
        return f"interrupted; {handle.id} is cancelled"
    return f"interrupted; {handle.id} had already {generation.state}"  # succeeded or failed
