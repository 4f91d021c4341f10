"""How far a user's operations are finished stands in a table of its own: who accepts and who applies never wait."""

from alembic import op

revision = "0009"
down_revision = "0008"

# The lock is for processes of an older Kassa that still run: what they accept or apply must not slip between the lines.
# Without the column they can accept and apply nothing from now on.
SCHEMA = """
LOCK TABLE users IN ACCESS EXCLUSIVE MODE;

CREATE TABLE progress (
    user_id UUID NOT NULL,
    done_seq BIGINT DEFAULT '0'::bigint NOT NULL,
    CONSTRAINT progress_pkey PRIMARY KEY (user_id),
    CONSTRAINT progress_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT progress_done_seq_not_negative CHECK (done_seq >= 0)
) WITH (fillfactor = 50);

INSERT INTO progress (user_id, done_seq) SELECT id, done_seq FROM users;

ALTER TABLE users DROP CONSTRAINT users_done_seq_within_accepted;
ALTER TABLE users DROP COLUMN done_seq;
ALTER TABLE users ADD CONSTRAINT users_next_seq_not_negative CHECK (next_seq >= 0);
"""


def upgrade() -> None:
    """Make the table, and move over how far everybody has come."""
    op.get_bind().exec_driver_sql(SCHEMA)
