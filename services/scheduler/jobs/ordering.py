"""Order in which waiting jobs are started: by priority and expected work, with a bound on the wait.

A job's order key is the time of its acceptance plus a delay, which is settled once its expected work is
known. The key does not change while the job waits, so the job ages: it is overtaken only by jobs that are
accepted within the difference of the two delays after it, and no delay exceeds a bound. Short jobs have
short delays, which lowers the mean time to completion as shortest-job-first does. The delay of a long job is
limited by the time that it would take first come, first served, so that no job takes many times as long as
then (bench/queue_order.py measures both).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb

# Seconds of delay for each second of expected work, and at most for each second until the job would have
# ended first come, first served. Chosen on traces of other seeds than those that bench.queue_order reports.
_WORK_FACTOR: Final = 10.0
_COMPLETION_FACTOR: Final = 3.0


class Priority(IntEnum):
    """Priority class of a job, with its number in the public API."""

    NORMAL = pb.PRIORITY_NORMAL
    HIGH = pb.PRIORITY_HIGH
    LOW = pb.PRIORITY_LOW


# Delay of each class, in units of `Ordering.class_seconds`.
_CLASS: Final = {Priority.HIGH: -1.0, Priority.NORMAL: 0.0, Priority.LOW: 1.0}


@dataclass(frozen=True)
class Ordering:
    """Parameters of the order.

    Attributes:
        slots: number of jobs that run at once.
        class_seconds: seconds by which a class is preferred to the next lower one, and the bound on the delay
            by work.
    """

    slots: int = 1
    class_seconds: float = 600.0

    def delay(self, priority: Priority, work: float, backlog: float) -> float:
        """Returns the delay of a job after the time of its acceptance, in seconds; may be negative.

        Args:
            work: expected seconds of the job's run.
            backlog: expected seconds of the runs of all jobs that waited when it was accepted.
        """
        completion = backlog / self.slots + work
        by_work = min(_WORK_FACTOR * work, _COMPLETION_FACTOR * completion, self.class_seconds)
        return _CLASS[priority] * self.class_seconds + by_work
