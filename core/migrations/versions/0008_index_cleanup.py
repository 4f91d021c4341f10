"""A vacuum of the queue, PostgreSQL's own included, is for its index, however few of the table's pages have dead rows."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Have no vacuum leave the index as it is."""
    op.get_bind().exec_driver_sql("ALTER TABLE queue SET (vacuum_index_cleanup = on)")
