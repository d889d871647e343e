"""Adds tenant and priority to the index of the queue, from which the shares of tenants are read."""

from alembic import op
from sqlalchemy import text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHERE = text("queue_key IS NOT NULL")


def upgrade() -> None:
    op.drop_index("jobs_in_queue", "jobs")
    op.create_index(
        "jobs_in_queue",
        "jobs",
        ["queue_key", "number", "work", "estimated", "tenant", "priority"],
        sqlite_where=WHERE,
        postgresql_where=WHERE,
    )
