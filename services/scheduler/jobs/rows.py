"""Parts that the statements of the job store share: the transaction, and the columns of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import ColumnElement, Connection, Double, cast, extract, func

from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job
from services.scheduler.jobs.tables import jobs

_UNIX_EPOCH_JULIAN_DAY: Final = 2_440_587.5
JOB_COLUMNS: Final = (
    jobs.c.id,
    jobs.c.number,
    jobs.c.tenant,
    jobs.c.body_digest,
    jobs.c.state,
    jobs.c.traceparent,
    jobs.c.crashes,
    jobs.c.generation,
)
WAITING: Final = jobs.c.queue_key.is_not(None)


@dataclass
class Transaction:
    """An open transaction.

    Attributes:
        changed: ids of the jobs that it changes.
        ended: jobs that it ends.
    """

    connection: Connection
    changed: list[str] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)

    @property
    def on_server(self) -> bool:
        return self.connection.dialect.name == "postgresql"


def parse_job(row: Any) -> Job:
    """Returns the job of a row with JOB_COLUMNS."""
    job_id, number, tenant, body_digest, state, traceparent, crashes, generation = row
    return Job(
        job_id,
        number,
        tenant,
        body_digest,
        State(state),
        traceparent,
        crashes,
        pb.Generation.FromString(generation),
    )


def database_time(on_server: bool) -> ColumnElement[float]:
    """Returns the time by the server's clock, which all schedulers share, in Unix seconds."""
    if on_server:
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return (func.julianday("now") - _UNIX_EPOCH_JULIAN_DAY) * 86_400.0
