"""Blocking clients with the methods of the asyncio clients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio
from chorus_rpc.limits import DEFAULT_MAX_MESSAGE_BYTES
from chorus_rpc.tenancy import DEFAULT_TENANT

from chorus_client.aio import AsyncChorusClient
from chorus_client.cache import ADOPT_SECONDS, PURGE_SECONDS, VERIFY_SECONDS, AsyncCacheClient
from chorus_client.cache_results import Adoption, CacheEntry, CacheMap, CacheStats, Purged, Verification
from chorus_client.connection import CALL_SECONDS, Metadata
from chorus_client.deployment import ServerInfo
from chorus_client.events import Event
from chorus_client.handles import PATIENCE_SECONDS, WATCH_SECONDS, GenerationHandle
from chorus_client.loop_thread import LoopThread
from chorus_client.offers import Model, Preview
from chorus_client.results import Generation, Video
from chorus_client.security import Tls
from chorus_client.spec import SpecOptions


class ChorusClient:
    """Submits generations, and finds those that were submitted.

    Runs an AsyncChorusClient on an event loop in a thread that `close` ends: methods, arguments and errors
    are the same, and interceptors are those of `grpc.aio`. Do not call it from inside an event loop, which
    it would block. An interrupt (Ctrl-C) cancels the current call and, in `generate`, the generation.

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
        async def connect() -> AsyncChorusClient:
            return AsyncChorusClient(
                target,
                token=token,
                tls=tls,
                allow_plaintext_token=allow_plaintext_token,
                credentials=credentials,
                metadata=metadata,
                interceptors=interceptors,
                timeout=timeout,
                use_proxy=use_proxy,
                max_message_bytes=max_message_bytes,
            )

        self._loop = LoopThread()
        self._client = self._loop.start(connect())
        self.target = self._client.target

    def with_token(self, token: str | None) -> Self:
        """Returns a client with another API key that shares the connection; see
        AsyncChorusClient.with_token.
        """
        other = copy.copy(self)
        other._client = self._client.with_token(token)
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls still running end. Further calls have no effect."""
        self._loop.close(self._client.close())

    def submit(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> GenerationHandle:
        """Submits a generation and returns its handle once the scheduler has accepted it durably.

        Repeating a submission with the same `request_id` is safe. Raises TypeError for an unknown option.

        Args:
            timeout: deadline of the submission, in seconds.
            options: model, frames, height, width, steps, sigmas, seed, reuse, max_reuse_steps, donor,
                explicit_reuse, priority, labels, webhook, webhook_events, step_previews, no_store, deadline,
                request_id; SpecOptions describes them.
        """
        return GenerationHandle(
            self._loop.run(self._client.submit(prompt, timeout=timeout, **options)), self._loop
        )

    def submit_many(
        self, prompt: str, outputs: int, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> tuple[GenerationHandle, ...]:
        """Submits several outputs of one prompt, as AsyncChorusClient.submit_many does."""
        handles = self._loop.run(self._client.submit_many(prompt, outputs, timeout=timeout, **options))
        return tuple(GenerationHandle(handle, self._loop) for handle in handles)

    def generate(
        self,
        prompt: str,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        on_accepted: Callable[[Generation], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Unpack[SpecOptions],
    ) -> Video:
        """Submits a generation and waits for its video, as AsyncChorusClient.generate does.

        The callbacks run in the client's thread and must not call this client.
        """
        return self._loop.run(
            self._client.generate(
                prompt,
                timeout=timeout,
                patience=patience,
                on_accepted=on_accepted,
                on_event=on_event,
                **options,
            )
        )

    def handle(self, generation_id: str) -> GenerationHandle:
        """Returns the handle of a generation that was submitted before; makes no call."""
        return GenerationHandle(self._client.handle(generation_id), self._loop)

    def list(
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
        return self._loop.run(
            self._client.list(
                state,
                limit,
                labels=labels,
                prompt_contains=prompt_contains,
                created_after=created_after,
                created_before=created_before,
                after=after,
                oldest_first=oldest_first,
                model=model,
                decision=decision,
                edit=edit,
                reported=reported,
                donor=donor,
                timeout=timeout,
            )
        )

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Returns the models that a request can name, the default first."""
        return self._loop.run(self._client.models(timeout=timeout))

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns the tenant of the caller's API key, and which services serve behind the scheduler."""
        return self._loop.run(self._client.server_info(timeout=timeout))

    def preview(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[SpecOptions]
    ) -> Preview:
        """Plans a request without submitting it: what it would reuse, and how long it would take.

        Args:
            timeout: deadline of the call, in seconds.
            options: as of `submit`.
        """
        return self._loop.run(self._client.preview(prompt, timeout=timeout, **options))


class CacheClient:
    """Reads and empties one tenant's cache. Methods, arguments and errors are those of AsyncCacheClient."""

    def __init__(
        self,
        target: str | None = None,
        tenant: str = DEFAULT_TENANT,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        timeout: float = CALL_SECONDS,
        use_proxy: bool = True,
    ) -> None:
        async def connect() -> AsyncCacheClient:
            return AsyncCacheClient(
                target,
                tenant,
                credentials=credentials,
                metadata=metadata,
                interceptors=interceptors,
                timeout=timeout,
                use_proxy=use_proxy,
            )

        self._loop = LoopThread()
        self._client = self._loop.start(connect())
        self.target = self._client.target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls still running end. Further calls have no effect."""
        self._loop.close(self._client.close())

    def with_tenant(self, tenant: str) -> Self:
        """Returns a client of another tenant's entries that shares the connection; see
        AsyncCacheClient.with_tenant.
        """
        other = copy.copy(self)
        other._client = self._client.with_tenant(tenant)
        return other

    def stats(
        self, *, from_memory: bool = False, growth_points: int = 0, timeout: float | None = None
    ) -> CacheStats:
        """Returns the contents and the use of the cache; see AsyncCacheClient.stats."""
        return self._loop.run(
            self._client.stats(from_memory=from_memory, growth_points=growth_points, timeout=timeout)
        )

    def map(self, order: str = "newest", limit: int = 200, *, timeout: float | None = None) -> CacheMap:
        """Returns places of entries in a plane; see AsyncCacheClient.map."""
        return self._loop.run(self._client.map(order, limit, timeout=timeout))

    def list(
        self, order: str = "newest", limit: int = 50, *, timeout: float | None = None
    ) -> tuple[CacheEntry, ...]:
        """Returns up to `limit` entries, in descending order; see AsyncCacheClient.list."""
        return self._loop.run(self._client.list(order, limit, timeout=timeout))

    def entry(self, entry: str, *, timeout: float | None = None) -> CacheEntry:
        """Returns the entry with an id. Raises ChorusError (NOT_FOUND)."""
        return self._loop.run(self._client.entry(entry, timeout=timeout))

    def verify(
        self,
        entry: str | None = None,
        *,
        repair: bool = False,
        on_progress: Callable[[Verification], None] | None = None,
        timeout: float = VERIFY_SECONDS,
    ) -> Verification:
        """Compares the blobs of entries with their digests; see AsyncCacheClient.verify."""
        return self._loop.run(
            self._client.verify(entry, repair=repair, on_progress=on_progress, timeout=timeout)
        )

    def purge(
        self,
        *,
        entry: str | None = None,
        model: str | None = None,
        older_than: float | None = None,
        everything: bool = False,
        validate_only: bool = False,
        timeout: float = PURGE_SECONDS,
    ) -> Purged:
        """Drops the entries that match every argument given; see AsyncCacheClient.purge."""
        return self._loop.run(
            self._client.purge(
                entry=entry,
                model=model,
                older_than=older_than,
                everything=everything,
                validate_only=validate_only,
                timeout=timeout,
            )
        )

    def adopt(self, *, validate_only: bool = False, timeout: float = ADOPT_SECONDS) -> Adoption:
        """Claims the object store for the index of this cache; see AsyncCacheClient.adopt."""
        return self._loop.run(self._client.adopt(validate_only=validate_only, timeout=timeout))
