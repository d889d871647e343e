"""Admissions that continue after their job has ended, and the lookups that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

from chorus.common.v1 import latents_pb2

from services.runtime.logs import get_logger

log = get_logger("admissions")

# Upper bound on the time that an outcome is waited for, in seconds. The denoiser limits the admission itself.
_FOLLOW_SECONDS = 120.0


@dataclass(frozen=True)
class _Pending:
    """An admission under way.

    Attributes:
        space: tenant and serialized identity of the latents; None if there is nothing to admit.
        request: prompt and seed of the latents.
        deadline: time on the event loop's clock until which lookups wait for it.
    """

    space: tuple[str, bytes] | None
    request: tuple[str, int]
    deadline: float


class PendingAdmissions:
    """Follows admissions in the background, so that the next job starts at once.

    A request that resembles the one just finished should find its latents, so a lookup of the same identity
    waits for them. After an admission that was late no lookup waits, until one is on time again.

    Args:
        wait_seconds: time after the end of a run during which lookups wait for its latents, in seconds.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._pending: dict[asyncio.Task[None], _Pending] = {}
        self._late = False

    def follow(
        self,
        tenant: str,
        identity: latents_pb2.LatentIdentity | None,
        request: tuple[str, int],
        outcome: Coroutine[None, None, None],
    ) -> None:
        """Runs `outcome`, which returns once the latents of a finished run are admitted or refused.

        Args:
            identity: identity of the latents; None if there is nothing to admit.
            request: prompt and seed of the latents.
        """
        task = asyncio.create_task(_follow(outcome), name="admission")
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        self._pending[task] = _Pending(identity and _make_space(tenant, identity), request, deadline)
        task.add_done_callback(self._settle)

    async def wait(
        self,
        tenant: str,
        identity: latents_pb2.LatentIdentity,
        request: tuple[str, int] | None = None,
    ) -> None:
        """Waits for a tenant's admissions of the same identity, unless one is late.

        Args:
            request: prompt and seed, to wait for an admission of these only.
        """
        space = _make_space(tenant, identity)
        pending = {
            task: each.deadline
            for task, each in self._pending.items()
            if each.space == space and request in (None, each.request)
        }
        if not pending or self._late:
            return
        seconds = min(pending.values()) - asyncio.get_running_loop().time()
        _, late = await asyncio.wait(pending, timeout=max(0.0, seconds))
        if late:
            log.warning("lookups do not wait for admissions: one is late", seconds=self._wait_seconds)
            self._late = True

    async def drain(self, seconds: float) -> None:
        """Waits for running admissions, then stops following the rest."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=seconds)
        late = list(self._pending)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _settle(self, task: asyncio.Task[None]) -> None:
        pending = self._pending.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("admission not followed", exc_info=error)
        if pending.space is not None:
            self._late = asyncio.get_running_loop().time() > pending.deadline


async def _follow(outcome: Coroutine[None, None, None]) -> None:
    try:
        async with asyncio.timeout(_FOLLOW_SECONDS):
            await outcome
    except TimeoutError:
        log.warning("outcome of an admission unknown", seconds=_FOLLOW_SECONDS)


def _make_space(tenant: str, identity: latents_pb2.LatentIdentity) -> tuple[str, bytes]:
    return tenant, identity.SerializeToString(deterministic=True)
