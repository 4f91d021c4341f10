"""Batches: many operations handed in at once."""

from alembic import op

revision = "0003"
down_revision = "0002"

SCHEMA = """
ALTER TABLE operations
    ADD COLUMN batch_id UUID,
    ADD COLUMN batch_index INTEGER;

CREATE INDEX operations_batch_id ON operations (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE batches (
    id UUID NOT NULL,
    requested_by UUID NOT NULL,
    idempotency_key TEXT,
    request_hash BYTEA NOT NULL,
    size INTEGER NOT NULL,
    refused JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT batches_requested_by_idempotency_key_key UNIQUE (requested_by, idempotency_key)
);
"""


def upgrade() -> None:
    """Create them."""
    op.get_bind().exec_driver_sql(SCHEMA)
