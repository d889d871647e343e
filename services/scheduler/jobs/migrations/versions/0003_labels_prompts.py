"""Adds labels, and the prompts as a search compares them."""

import sqlalchemy as sa
from alembic import op
from chorus.scheduler.v1 import scheduler_pb2 as pb

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 500


def upgrade() -> None:
    op.add_column("jobs", sa.Column("prompt_folded", sa.Text, nullable=False, server_default=""))
    fill()
    op.create_table(
        "labels",
        sa.Column("number", NUMBER, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("labels_by_value", "labels", ["tenant", "key", "value", "number"])


def fill() -> None:
    """Fills the new column from the stored generations, a batch at a time."""
    jobs = sa.table("jobs", *(sa.column(name) for name in ("number", "generation", "prompt_folded")))
    connection = op.get_bind()
    last = -1
    while rows := connection.execute(
        sa.select(jobs.c.number, jobs.c.generation)
        .where(jobs.c.number > last)
        .order_by(jobs.c.number)
        .limit(BATCH)
    ).fetchall():
        for number, data in rows:
            # As `search.fold_text` does today; a migration does not change with the code.
            folded = pb.Generation.FromString(data).spec.prompt.casefold().replace("\0", "")
            connection.execute(sa.update(jobs).where(jobs.c.number == number).values(prompt_folded=folded))
            last = number
