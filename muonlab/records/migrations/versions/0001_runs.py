"""Runs, one row per key."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("horizon_tokens", sa.BigInteger, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("final_loss", sa.Double),
        sa.Column("wall_seconds", sa.Double, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
