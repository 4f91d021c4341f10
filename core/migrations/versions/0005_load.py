"""How much waits, known to all API processes."""

from alembic import op

revision = "0005"
down_revision = "0004"

SCHEMA = """
CREATE TABLE load (
    one BOOLEAN DEFAULT true NOT NULL,
    counted BIGINT DEFAULT '0' NOT NULL,
    counted_at TIMESTAMP WITH TIME ZONE DEFAULT '1970-01-01 00:00:00+00' NOT NULL,
    count_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,
    oldest_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,
    let_in BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (one),
    CONSTRAINT load_one_row CHECK (one)
) WITH (fillfactor = 10);

INSERT INTO load DEFAULT VALUES;
"""


def upgrade() -> None:
    """Make the table and its one row."""
    op.get_bind().exec_driver_sql(SCHEMA)
