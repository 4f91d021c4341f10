"""Idempotency keys: only operations that have one are in their index, so that the others do not pay for it."""

from alembic import op

revision = "0004"
down_revision = "0003"

SCHEMA = """
ALTER TABLE operations DROP CONSTRAINT operations_user_id_idempotency_key_key;

CREATE UNIQUE INDEX operations_user_id_idempotency_key_key ON operations (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
"""


def upgrade() -> None:
    """Replace the constraint by a unique index of the same name."""
    op.get_bind().exec_driver_sql(SCHEMA)
