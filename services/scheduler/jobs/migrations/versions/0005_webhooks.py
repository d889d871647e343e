"""Adds the outbox of the webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SECONDS: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("created", SECONDS, nullable=False),
        sa.Column("due", SECONDS, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("webhooks_by_due", "webhooks", ["due", "job_id"])
    op.create_index("webhooks_by_tenant", "webhooks", ["tenant"])
    op.create_index("webhooks_by_age", "webhooks", ["created"])
