"""A finished operation's entry in the index of pending ones stays until a vacuum, and each look at a lane passes it."""

from alembic import op

revision = "0006"
down_revision = "0005"

# By default a vacuum comes when a fifth of the table has changed, a million operations of five, and leaves the indexes
# as they are where that is less than a fiftieth of its pages.
SCHEMA = """
ALTER TABLE operations SET (
    autovacuum_vacuum_scale_factor = 0.005, autovacuum_vacuum_threshold = 20000, vacuum_index_cleanup = on
);
"""


def upgrade() -> None:
    """Have the table vacuumed early, indexes included."""
    op.get_bind().exec_driver_sql(SCHEMA)
