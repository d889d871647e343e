"""Adds the reports of users, and what the filters by model, decision, edit and donor compare."""

import sqlalchemy as sa
from alembic import op
from chorus.scheduler.v1 import scheduler_pb2 as pb

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 500
SUCCEEDED = 4
HIT, MISS, EXACT = 1, 2, 3


def upgrade() -> None:
    op.add_column("jobs", sa.Column("model_id", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("decision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("edit", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("donor", sa.Text, nullable=False, server_default=""))
    fill()
    op.create_index("jobs_by_donor", "jobs", ["tenant", "donor", "number"])
    op.create_table(
        "reports",
        sa.Column("number", NUMBER, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("reports_by_tenant", "reports", ["tenant", "number"])


def fill() -> None:
    """Fills the new columns from the stored generations, a batch at a time."""
    names = ("number", "generation", "model_id", "decision", "edit", "donor")
    jobs = sa.table("jobs", *(sa.column(name) for name in names))
    connection = op.get_bind()
    last = -1
    while rows := connection.execute(
        sa.select(jobs.c.number, jobs.c.generation)
        .where(jobs.c.number > last)
        .order_by(jobs.c.number)
        .limit(BATCH)
    ).fetchall():
        for number, data in rows:
            generation = pb.Generation.FromString(data)
            decision = decide(generation)
            values = {
                "model_id": generation.spec.model_id.replace("\0", ""),
                "decision": decision,
                "edit": generation.plan.edit.replace("\0", ""),
                "donor": find_donor(generation) if decision in (HIT, EXACT) else "",
            }
            connection.execute(sa.update(jobs).where(jobs.c.number == number).values(**values))
            last = number


def decide(generation: pb.Generation) -> int:
    """Returns the decision as `find_decision` does today; a migration does not change with the code."""
    if not generation.HasField("plan"):
        return 0
    plan = generation.plan
    donor = generation if generation.state == SUCCEEDED else plan
    if not donor.HasField("donor") or not plan.reuse_steps:
        return MISS
    return EXACT if plan.reuse_steps == plan.total_steps else HIT


def find_donor(generation: pb.Generation) -> str:
    """Returns the id of the donor's generation, of a generation that has one."""
    donor = generation.donor if generation.state == SUCCEEDED else generation.plan.donor
    return donor.generation_id.replace("\0", "")
