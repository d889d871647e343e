"""Port of the job store. Every write is durable when its method returns: it survives a machine crash."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.caller import Caller
from services.scheduler.jobs.deadline import Deadline
from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import State

# Matches every owner of a job, and none.
ANY_OWNER: Final = "*"


class StoreError(RuntimeError):
    """Fault of the job store that no retry cures; the message states the reason and the remedy."""


class QueueFull(Exception):
    """Rejection of a job because the queue has reached its limit."""


class TooLate(Exception):
    """Rejection of a request that cannot end before its deadline.

    Args:
        wait: seconds that it would wait at least.
    """

    def __init__(self, wait: float) -> None:
        super().__init__(f"{wait:.1f} s")
        self.wait = wait


class TenantLimitReached(Exception):
    """Rejection of a job because its tenant has as many jobs that have not ended as it may have."""


@dataclass(frozen=True)
class NewJob:
    """A job that has passed validation.

    Attributes:
        body_digest: digest of the request as received; distinguishes a repetition from another request.
        deadline: deadline in Unix seconds.
        traceparent: traceparent of the submitting call; empty when tracing is off.
        seed_chosen: whether the server chose the seed.
        work: expected seconds of the run if nothing is reused; 0 if unknown.
        output_index: number of the output within its request, from 1.
        output_count: number of outputs of the request.
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
    priority: Priority = Priority.NORMAL
    work: float = 0.0
    output_index: int = 1
    output_count: int = 1


@dataclass(frozen=True)
class JobPage:
    """One page of a search.

    Attributes:
        jobs: the jobs found, in the order of the list.
        beyond: number from which the next page continues; None if nothing is left to examine.
    """

    jobs: Sequence[Job]
    beyond: int | None


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

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant, self.deadline)


@dataclass(frozen=True)
class QueuedJob:
    """The fields of a waiting job that the queue needs.

    Attributes:
        deadline: deadline in Unix seconds.
        announced: queue position in the latest event to the job's watchers.
        order_key: jobs are started in ascending order of it.
    """

    job_id: str
    state: State
    deadline: float
    announced: int
    priority: Priority = Priority.NORMAL
    order_key: float = 0.0


@dataclass(frozen=True)
class OwnedJob:
    """A job that has not ended, and the scheduler that works on it or did until its lease ended."""

    job_id: str
    owner: str
    state: State


@dataclass(frozen=True)
class QueueLook:
    """What a scheduler needs to know to go on with the queue.

    Attributes:
        overdue: ids of waiting jobs whose deadline has passed, the earliest first.
        owned: jobs of this scheduler, and those of schedulers whose lease has ended.
        first: the first jobs that wait for their start, in the order of their start.
        startable: those of tenants that may have another run; equal to `first` without a limit.
        next_deadline: earliest deadline of a waiting job, in Unix seconds; None if no job waits.
    """

    overdue: Sequence[str]
    owned: Sequence[OwnedJob]
    first: Sequence[QueuedJob]
    startable: Sequence[QueuedJob]
    next_deadline: float | None


@dataclass(frozen=True)
class QueueState:
    """Figures of the jobs that wait for their start.

    Attributes:
        work: expected seconds of their runs, together.
        oldest_created: time at which the first of them was accepted, in Unix seconds; 0 for an empty queue.
    """

    waiting: int
    work: float
    oldest_created: float


@dataclass(frozen=True)
class Outlook:
    """What the starts of the waiting jobs depend on.

    Attributes:
        waiting: the first jobs that wait for their start, in the order of their start, each with the expected
            seconds of its run; None if they are unknown.
        owned: jobs that a scheduler works on, each with the same.
    """

    waiting: Sequence[tuple[QueuedJob, float | None]]
    owned: Sequence[tuple[Job, float | None]]


@dataclass(frozen=True)
class Submission:
    """Outcome of a submission.

    Attributes:
        jobs: the jobs of all outputs of the request.
        created: whether they are new.
        positions: position of each new job in the queue, from 1, by id.
    """

    jobs: Sequence[Job]
    created: bool
    positions: Mapping[str, int]


class JobStore(ABC):
    """Stores jobs, their events and the known models. Every method is one transaction.

    Several schedulers may share a store. A job that waits has no owner; the scheduler that claims it owns it
    until the job waits again or ends. Every method raises PassingFault, and changes nothing, if it may
    succeed later; StoreError if it will not.
    """

    @property
    @abstractmethod
    def scheduler_id(self) -> str:
        """Name of this scheduler as the owner of jobs; another one after every start."""

    async def submit(self, new: NewJob, queue_limit: int, tenant_limit: int = 0) -> tuple[Job, bool]:
        """Submits a request of one output, as `submit_all` does."""
        submission = await self.submit_all([new], queue_limit, tenant_limit)
        return submission.jobs[0], submission.created

    @abstractmethod
    async def submit_all(
        self,
        outputs: Sequence[NewJob],
        queue_limit: int,
        tenant_limit: int = 0,
        least_seconds: float | None = None,
    ) -> Submission:
        """Accepts a request, or returns the jobs that already have this tenant's request_id.

        Stores nothing, and raises QueueFull when more than `queue_limit` jobs would be waiting,
        TenantLimitReached when more than `tenant_limit` jobs of the tenant would not have ended, TooLate when
        the jobs that are known to come first leave less than `least_seconds` until the deadline.

        Args:
            outputs: all outputs of one request.
            tenant_limit: 0 for none.
            least_seconds: seconds that the runs of the outputs take at least; None for a deadline that is not
                checked.
        """

    @abstractmethod
    async def find(self, tenant: str, request_id: str) -> list[Job]:
        """Returns the jobs of a tenant's request_id, in the order of their outputs."""

    @abstractmethod
    async def get(self, job_id: str) -> Job | None: ...

    @abstractmethod
    async def page(self, tenant: str, wanted: JobFilter, beyond: int | None, limit: int) -> JobPage:
        """Returns at most `limit` jobs; with `beyond`, only those after this number in the order of the list.

        Examines at most MAX_EXAMINED jobs, so that a page may be short without being the last one.
        """

    @abstractmethod
    async def queue(self, limit: int) -> list[QueuedJob]:
        """Returns the first `limit` jobs that wait for their start, in the order of their start."""

    @abstractmethod
    async def next_unestimated(self) -> Job | None:
        """Returns the first waiting job of which `estimate` was not called; None if there is none."""

    @abstractmethod
    async def estimate(self, job_id: str, work: float | None) -> None:
        """Settles the place of a waiting job by the expected seconds of its run.

        Args:
            work: the seconds; None keeps those of the full run.
        """

    @abstractmethod
    async def expect_wait(
        self, tenant: str, priority: Priority, work: float, *, at_least: bool = False
    ) -> float:
        """Returns the expected seconds in the queue of a job that would be accepted now.

        Args:
            work: expected seconds of its run.
            at_least: whether to count only jobs whose work was estimated, so that the result is a lower bound
                as far as estimates can be.
        """

    @abstractmethod
    def set_slots(self, slots: int) -> None:
        """Sets the number of jobs that run at once, by which expected waits and the order are computed."""

    @abstractmethod
    async def queue_state(self) -> QueueState: ...

    @abstractmethod
    async def outlook(self, limit: int) -> Outlook:
        """Returns the first `limit` jobs that wait, and at most `limit` owned ones."""

    @abstractmethod
    async def positions(self, job_ids: Collection[str]) -> dict[str, int]:
        """Returns the position in the queue, from 1, of those jobs that wait for their start."""

    @abstractmethod
    async def look(self, now: float, limit: int, overdue_limit: int, tenant_limit: int = 0) -> QueueLook:
        """Looks at the queue once.

        Args:
            now: time in Unix seconds.
            limit: upper bound on the first jobs that are returned.
            overdue_limit: upper bound on the overdue jobs that are returned.
            tenant_limit: upper bound on the runs of a tenant at once; 0 for none.
        """

    @abstractmethod
    async def claim(self, job_id: str, tenant_limit: int = 0) -> Job | None:
        """Makes this scheduler the owner of a waiting job.

        Returns None if the job waits no longer, or its tenant has `tenant_limit` owned jobs already.

        Args:
            tenant_limit: 0 for none.
        """

    @abstractmethod
    async def keep_lease(self) -> None:
        """Extends this scheduler's lease on its jobs.

        Does nothing if no other scheduler can use the store.
        """

    @abstractmethod
    async def end_lease(self) -> None:
        """Ends this scheduler's lease, so that others requeue what is left of its jobs."""

    @abstractmethod
    async def advance(
        self,
        job_id: str,
        expect: Collection[State],
        events: Sequence[pb.GenerationEvent],
        *,
        owner: str | None = ANY_OWNER,
        crashed: bool = False,
        change: str = "",
    ) -> Job | None:
        """Appends events, which it numbers and timestamps, and advances the state with them, atomically.

        A job that is queued or waiting afterwards has no owner, even if there are no events. The end of a job
        adds the delivery of its webhook to the outbox, atomically as well. Returns None, and changes nothing,
        if the job has not the expected state and owner: another writer was faster.

        Args:
            owner: the owner that the job must have: a scheduler's id, None for no owner, or ANY_OWNER.
            crashed: whether to count one more crash.
            change: names the change. If it was the job's latest one already, because the answer to an earlier
                call was lost, the job is returned unchanged.
        """

    @abstractmethod
    async def events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        """Returns at most `limit` events with a sequence number above `after`, in order."""

    @abstractmethod
    async def surplus(self, keep: int, ended_before: float, limit: int) -> list[str]:
        """Returns at most `limit` ids of ended jobs that are not among the newest `keep`, or ended too early.

        Args:
            ended_before: time in Unix seconds.
        """

    @abstractmethod
    async def forget(self, job_ids: Sequence[str]) -> None:
        """Removes ended jobs, their events and their labels; deliveries of their webhooks stay."""

    @abstractmethod
    async def find_known(self, job_ids: Collection[str]) -> set[str]:
        """Returns those ids that are ids of jobs."""

    @abstractmethod
    async def database_id(self) -> str:
        """Returns the id of the database, 32 hex digits, which it keeps for ever."""

    @abstractmethod
    async def save_models(self, data: bytes) -> None:
        """Replaces the saved models."""

    @abstractmethod
    async def load_models(self) -> bytes:
        """Returns the saved models; empty if none have been saved."""

    @abstractmethod
    async def close(self) -> None: ...
