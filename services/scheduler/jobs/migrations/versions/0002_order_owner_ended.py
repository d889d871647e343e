"""Adds what several schedulers, another order than that of acceptance, and retention by age need."""

import sqlalchemy as sa
from alembic import op
from chorus.scheduler.v1 import scheduler_pb2 as pb

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SECONDS: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
# Numbers of the states QUEUED and WAITING, and of those that have ended.
IN_QUEUE = (pb.GENERATION_STATE_QUEUED, pb.GENERATION_STATE_WAITING)
ENDED = (pb.GENERATION_STATE_SUCCEEDED, pb.GENERATION_STATE_FAILED, pb.GENERATION_STATE_CANCELLED)
# Owner of the jobs that were running: a scheduler that holds no lease, so that they are requeued.
FORMER = "before migration 0002"
BATCH = 500


def upgrade() -> None:
    op.add_column("jobs", sa.Column("created", SECONDS, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("ended", SECONDS))
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="2"))
    op.add_column("jobs", sa.Column("work", SECONDS, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("estimated", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("backlog", SECONDS, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("order_key", SECONDS, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("queue_key", SECONDS))
    op.add_column("jobs", sa.Column("owner", sa.Text))
    op.add_column("jobs", sa.Column("change", sa.Text, nullable=False, server_default=""))
    fill()
    op.drop_index("jobs_by_state", "jobs")
    op.create_index("jobs_by_tenant_and_state", "jobs", ["tenant", "state", "number"])
    op.create_index("jobs_by_end", "jobs", ["ended", "number"])
    for name, columns, condition in (
        ("jobs_in_queue", ["queue_key", "number", "work", "estimated"], "queue_key IS NOT NULL"),
        ("jobs_by_deadline", ["deadline"], "queue_key IS NOT NULL"),
        ("jobs_by_owner", ["owner"], "owner IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
    if op.get_context().dialect.name == "sqlite":
        op.execute("PRAGMA user_version = 2")  # earlier versions of the program refuse the file
    op.create_table(
        "schedulers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("lease_until", SECONDS, nullable=False),
        sqlite_strict=True,
    )


def fill() -> None:
    """Fills the new columns from the stored generations, a batch at a time."""
    names = ("number", "state", "generation", "created", "ended", "order_key", "queue_key", "owner")
    jobs = sa.table("jobs", *(sa.column(name) for name in names))
    connection = op.get_bind()
    last = -1
    while rows := connection.execute(
        sa.select(jobs.c.number, jobs.c.state, jobs.c.generation)
        .where(jobs.c.number > last)
        .order_by(jobs.c.number)
        .limit(BATCH)
    ).fetchall():
        for number, state, data in rows:
            generation = pb.Generation.FromString(data)
            created = generation.create_time.ToNanoseconds() / 1e9
            values: dict[str, float | str | None] = {"created": created, "order_key": created}
            if state in IN_QUEUE:
                values["queue_key"] = created
            elif state in ENDED:
                values["ended"] = generation.end_time.ToNanoseconds() / 1e9
            else:
                values["owner"] = FORMER
            connection.execute(sa.update(jobs).where(jobs.c.number == number).values(values))
            last = number
