"""The port of the job store. What it returned is durable: it survives a crash of process and machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.states import State


class StoreError(RuntimeError):
    """The job store cannot be used; the message says why and what to do."""


class QueueFull(Exception):
    """As many jobs wait as may."""


@dataclass(frozen=True)
class NewJob:
    """A job that passed every check.

    Args:
        body_digest: of the request as it was sent, to tell a repetition from another request.
        deadline: Unix seconds.
        traceparent: of the call that submitted it; empty when tracing is off.
    """

    job_id: str
    tenant: str
    request_id: str
    body_digest: str
    spec: pb.GenerationSpec
    deadline: float
    traceparent: str
    trace_id: str


@dataclass(frozen=True)
class Job:
    """A job as it is now.

    Args:
        number: place in the order of acceptance, over all tenants.
        crashes: how often a service died during it.
        generation: the public view, but for the queue position.
    """

    job_id: str
    number: int
    tenant: str
    body_digest: str
    state: State
    deadline: float
    traceparent: str
    crashes: int
    generation: pb.Generation


@dataclass(frozen=True)
class QueuedJob:
    """What the queue needs to know of a job that has not ended.

    Args:
        announced: the queue position that its watchers were last told.
    """

    job_id: str
    number: int
    state: State
    deadline: float
    announced: int


class JobStore(ABC):
    """Jobs, their events, and what is known of the models. Every method is one transaction."""

    @abstractmethod
    async def submit(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        """The job and True; or the job that has this tenant's request_id already, and False.

        Raises QueueFull, and keeps nothing, when `queue_limit` jobs are waiting.
        """

    @abstractmethod
    async def find(self, tenant: str, request_id: str) -> Job | None: ...

    @abstractmethod
    async def get(self, job_id: str) -> Job | None: ...

    @abstractmethod
    async def page(self, tenant: str, state: State | None, before: int | None, limit: int) -> list[Job]:
        """Newest first; with `before`, only those of a smaller number."""

    @abstractmethod
    async def unfinished(self) -> list[QueuedJob]:
        """By number."""

    @abstractmethod
    async def advance(
        self,
        job_id: str,
        expect: Collection[State],
        events: Sequence[pb.GenerationEvent],
        *,
        crashed: bool = False,
    ) -> Job | None:
        """Appends events, numbered and timed here, and moves the state with them, all or nothing.

        Returns None, and changes nothing, when the job is not in an expected state: somebody was faster.

        Args:
            crashed: counts one more crash.
        """

    @abstractmethod
    async def events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        """At most `limit` events with a sequence number above `after`, in order."""

    @abstractmethod
    async def surplus(self, keep: int) -> list[str]:
        """Ids of the ended jobs that are not among the newest `keep`."""

    @abstractmethod
    async def forget(self, job_ids: Sequence[str]) -> None:
        """Removes ended jobs and their events."""

    @abstractmethod
    async def save_models(self, data: bytes) -> None: ...

    @abstractmethod
    async def load_models(self) -> bytes:
        """What was saved last; empty before."""

    @abstractmethod
    async def close(self) -> None: ...
