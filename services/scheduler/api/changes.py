"""Changes that users make to accepted generations: reports, and the class in the order of the queue."""

from __future__ import annotations

from collections.abc import Callable

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violation
from chorus_rpc.limits import MAX_REPORT_COMMENT_BYTES

from services.scheduler.api.search import check_text
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.start_times import StartTimes
from services.scheduler.jobs.amendments import Amendments
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import ENDED, IN_QUEUE, State
from services.scheduler.jobs.store import Job


class Changes:
    """Changes of jobs, whose tenant the caller has checked.

    Args:
        record_report: counts a stored report.
    """

    def __init__(
        self,
        store: Amendments,
        dispatcher: Dispatcher,
        start_times: StartTimes,
        record_report: Callable[[pb.Generation], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._start_times = start_times
        self._record_report = record_report

    async def report(self, job: Job, request: pb.ReportGenerationRequest) -> Job:
        """Stores a report in place of an earlier one. Raises INVALID_FIELD, NOT_FOUND or WRONG_STATE."""
        violations = check_report(request)
        if violations:
            raise errors.invalid_fields(violations)
        report = pb.ProblemReport(problem=request.problem, comment=request.comment)
        changed = _require(await self._store.set_report(job.job_id, report), job.job_id)
        if changed.state is not State.SUCCEEDED:
            raise _wrong_state(changed, "has no video to report: wait until it has SUCCEEDED")
        self._record_report(changed.generation)
        return changed

    async def withdraw_report(self, job: Job) -> Job:
        """Removes the report of a job, if it has one. Raises NOT_FOUND."""
        return _require(await self._store.set_report(job.job_id, None), job.job_id)

    async def change_priority(self, job: Job, request: pb.ChangePriorityRequest) -> Job:
        """Changes the class of a job that has not started. Raises INVALID_FIELD, NOT_FOUND or WRONG_STATE."""
        classes = [priority.value for priority in Priority]
        if request.priority not in classes:
            names = ", ".join(pb.Priority.Name(each) for each in classes)
            raise errors.invalid("priority", f"must be one of {names}, not {request.priority}")
        try:
            changed = await self._store.change_priority(job.job_id, Priority(request.priority))
        finally:
            # Even if the caller has cancelled meanwhile, because the job may have been changed.
            self._start_times.forget()
            self._dispatcher.wake()
        changed = _require(changed, job.job_id)
        now = changed.generation.spec.priority or pb.PRIORITY_NORMAL
        if changed.state in IN_QUEUE or (changed.state not in ENDED and now == request.priority):
            return changed
        raise _wrong_state(
            changed,
            "has left the queue: only one that waits can change its class",
        )


def check_report(request: pb.ReportGenerationRequest) -> list[Violation]:
    """Returns the violations of a report."""
    problems = [value for value in pb.ReportedProblem.values() if value]
    violations = []
    if request.problem not in problems:
        names = ", ".join(pb.ReportedProblem.Name(each) for each in problems)
        violations.append(Violation("problem", f"must be one of {names}, not {request.problem}"))
    return violations + check_text(request.comment, "comment", MAX_REPORT_COMMENT_BYTES)


def _require(job: Job | None, job_id: str) -> Job:
    """Returns the job. Raises NOT_FOUND if it was deleted meanwhile."""
    if job is None:
        raise errors.not_found("generation", job_id)
    return job


def _wrong_state(job: Job, why: str) -> ChorusError:
    return ChorusError(
        errors.WRONG_STATE,
        f"generation {job.job_id!r} is {job.state.name} and {why}",
        metadata={"state": job.state.name},
    )
