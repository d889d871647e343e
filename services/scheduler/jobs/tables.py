"""Tables of the job database, as the newest migration leaves them; a test compares the two."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine

metadata: Final = MetaData()
# Strict tables of SQLite know few types, and it numbers only a column of exactly the type INTEGER by itself.
_NUMBER: Final = BigInteger().with_variant(Integer(), "sqlite")
_SECONDS: Final[TypeEngine[float]] = Double().with_variant(REAL(), "sqlite")


def _make_partial_index(name: str, *columns: str, where: str = "queue_key IS NOT NULL") -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


# Times are Unix seconds.
# - number: place in the order of acceptance, over all tenants.
# - deadline: time by which the job must have ended.
# - announced: queue position in the latest event to the job's watchers.
# - crashes: number of times that a service died during the job.
# - generation: the public view, a serialized Generation without the queue position.
# - created, ended: times of acceptance and end; `ended` is null before.
# - priority: number of the priority class.
# - work, estimated: expected seconds of the run, and whether a plan was made to know them.
# - backlog: expected seconds of the runs of all jobs that waited when this one was accepted.
# - order_key: jobs that wait are started in ascending order of it, those with equal keys by number.
# - queue_key: the order key while the job waits for its start, null otherwise.
# - owner: id of the scheduler that works on the job; null if none does.
# - change: id of the latest change, by which its repetition is recognised.
# - request_id: the client's for the first output of a request; for the others one that no client can send.
# - prompt_folded: the prompt as a search compares it, by `fold_text`.
# - model_id, decision, edit: model, use of the cache (by `find_decision`) and kind of edit of the generation.
# - donor: id of the generation whose steps it takes, by `find_donor`; empty for none.
jobs: Final = Table(
    "jobs",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("body_digest", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("deadline", _SECONDS, nullable=False),
    Column("traceparent", Text, nullable=False),
    Column("announced", Integer, nullable=False),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("generation", LargeBinary, nullable=False),
    Column("created", _SECONDS, nullable=False, server_default="0"),
    Column("ended", _SECONDS),
    Column("priority", Integer, nullable=False, server_default="2"),
    Column("work", _SECONDS, nullable=False, server_default="0"),
    Column("estimated", Integer, nullable=False, server_default="0"),
    Column("backlog", _SECONDS, nullable=False, server_default="0"),
    Column("order_key", _SECONDS, nullable=False, server_default="0"),
    Column("queue_key", _SECONDS),
    Column("owner", Text),
    Column("change", Text, nullable=False, server_default=""),
    Column("prompt_folded", Text, nullable=False, server_default=""),
    Column("model_id", Text, nullable=False, server_default=""),
    Column("decision", Integer, nullable=False, server_default="0"),
    Column("edit", Text, nullable=False, server_default=""),
    Column("donor", Text, nullable=False, server_default=""),
    UniqueConstraint("tenant", "request_id"),
    Index("jobs_by_tenant", "tenant", "number"),
    Index("jobs_by_tenant_and_state", "tenant", "state", "number"),
    Index("jobs_by_donor", "tenant", "donor", "number"),
    Index("jobs_by_end", "ended", "number"),
    # Without jobs that have ended, whatever their number; the first has all that a sum over the queue needs.
    _make_partial_index("jobs_in_queue", "queue_key", "number", "work", "estimated", "tenant", "priority"),
    _make_partial_index("jobs_by_deadline", "deadline"),
    _make_partial_index("jobs_by_owner", "owner", where="owner IS NOT NULL"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

events: Final = Table(
    "events",
    metadata,
    Column("number", _NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("event", LargeBinary, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# Labels of the jobs. The index gives the jobs of a tenant that have a label, in the order of acceptance.
labels: Final = Table(
    "labels",
    metadata,
    Column("number", _NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("value", Text, nullable=False),
    Index("labels_by_value", "tenant", "key", "value", "number"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# Jobs whose generation has a report. The index gives those of a tenant in the order of acceptance.
reports: Final = Table(
    "reports",
    metadata,
    Column("number", _NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("tenant", Text, nullable=False),
    Index("reports_by_tenant", "tenant", "number"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

documents: Final = Table(
    "documents",
    metadata,
    Column("name", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_strict=True,
)

# Schedulers that use the database. After the end of a lease another one requeues the jobs of its owner.
schedulers: Final = Table(
    "schedulers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("lease_until", _SECONDS, nullable=False),
    sqlite_strict=True,
)

# Outbox of the webhooks: deliveries that have neither succeeded nor been given up, at most one for each job.
# They are not removed with their jobs, and hold all that they need.
# - type: type of the event, such as "video.completed".
# - created: time of the end of the job.
# - due: time from which a scheduler may claim the delivery; a claim moves it to the end of its lease.
# - attempts: number of claims; the latest one alone may postpone the delivery.
webhooks: Final = Table(
    "webhooks",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("created", _SECONDS, nullable=False),
    Column("due", _SECONDS, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Index("webhooks_by_due", "due", "job_id"),
    Index("webhooks_by_tenant", "tenant"),
    Index("webhooks_by_age", "created"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
