"""Port of the job store. Every write is durable when its method returns: it survives a machine crash."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.deadline import Deadline
from services.scheduler.jobs.states import State


class StoreError(RuntimeError):
    """Fault of the job store that no retry cures; the message states the reason and the remedy."""


class QueueFull(Exception):
    """Rejection of a job because the queue has reached its limit."""


@dataclass(frozen=True)
class NewJob:
    """A job that has passed validation.

    Attributes:
        body_digest: digest of the request as received; distinguishes a repetition from another request.
        deadline: deadline in Unix seconds.
        traceparent: traceparent of the submitting call; empty when tracing is off.
        seed_chosen: whether the server chose the seed.
    """

    job_id: str
    tenant: str
    request_id: str
    body_digest: str
    spec: pb.GenerationSpec
    deadline: float
    traceparent: str
    trace_id: str
    seed_chosen: bool = False


@dataclass(frozen=True)
class Job:
    """Current state of a job.

    Attributes:
        number: place in the order of acceptance, over all tenants.
        crashes: number of times that a service died during the job.
        generation: the public view, without the queue position.
    """

    job_id: str
    number: int
    tenant: str
    body_digest: str
    state: State
    traceparent: str
    crashes: int
    generation: pb.Generation

    @property
    def deadline(self) -> Deadline:
        return Deadline(self.generation.spec.deadline)


@dataclass(frozen=True)
class QueuedJob:
    """The fields of an unfinished job that the queue needs.

    Attributes:
        number: place in the order of acceptance.
        deadline: deadline in Unix seconds.
        announced: queue position in the latest event to the job's watchers.
    """

    job_id: str
    number: int
    state: State
    deadline: float
    announced: int


class JobStore(ABC):
    """Stores jobs, their events and the known models. Every method is one transaction.

    Every method raises PassingFault, and changes nothing, if it may succeed later; StoreError if it will not.
    """

    @abstractmethod
    async def submit(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        """Returns the new job and True, or the job that already has this tenant's request_id and False.

        Raises QueueFull, and stores nothing, when `queue_limit` jobs are waiting.
        """

    @abstractmethod
    async def find(self, tenant: str, request_id: str) -> Job | None:
        """Returns the job of a tenant's request_id."""

    @abstractmethod
    async def get(self, job_id: str) -> Job | None: ...

    @abstractmethod
    async def page(self, tenant: str, state: State | None, before: int | None, limit: int) -> list[Job]:
        """Returns jobs, newest first; with `before`, only those with a smaller number."""

    @abstractmethod
    async def unfinished(self) -> list[QueuedJob]:
        """Returns the jobs that have not ended, by number."""

    @abstractmethod
    async def advance(
        self,
        job_id: str,
        expect: Collection[State],
        events: Sequence[pb.GenerationEvent],
        *,
        crashed: bool = False,
    ) -> Job | None:
        """Appends events, which it numbers and timestamps, and advances the state with them, atomically.

        Returns None, and changes nothing, if the job is in none of the expected states: another writer was
        faster.

        Args:
            crashed: whether to count one more crash.
        """

    @abstractmethod
    async def events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        """Returns at most `limit` events with a sequence number above `after`, in order."""

    @abstractmethod
    async def surplus(self, keep: int) -> list[str]:
        """Returns the ids of those ended jobs that are not among the newest `keep`."""

    @abstractmethod
    async def forget(self, job_ids: Sequence[str]) -> None:
        """Removes ended jobs and their events."""

    @abstractmethod
    async def save_models(self, data: bytes) -> None:
        """Replaces the saved models."""

    @abstractmethod
    async def load_models(self) -> bytes:
        """Returns the saved models; empty if none have been saved."""

    @abstractmethod
    async def close(self) -> None: ...
