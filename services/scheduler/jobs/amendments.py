"""Port of the changes that users make to accepted jobs. Each method is one transaction, as of JobStore."""

from __future__ import annotations

from abc import ABC, abstractmethod

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.store import Job


class Amendments(ABC):
    """Changes of a job that are not steps of its life, and so have no events."""

    @abstractmethod
    async def set_report(self, job_id: str, report: pb.ProblemReport | None) -> Job | None:
        """Stores the report of a job that succeeded in place of an earlier one, with the time of now.

        Returns the job as it is afterwards; None if there is no such job. The report of a job in another
        state is not stored.

        Args:
            report: None removes the report.
        """

    @abstractmethod
    async def change_priority(self, job_id: str, priority: Priority) -> Job | None:
        """Changes the class of a job that has not started, and its place in the queue.

        Its place is that of a job that was accepted when it was, with the new class. Returns the job as it is
        afterwards; None if there is no such job. A job that runs or has ended is not changed.
        """
