"""An operation writes less: no lock of its row for a trigger, and no entry of an index to find its batch.

A batch knows between which ids its operations are. Before an update, PostgreSQL locked each row for the guard's sake.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

# The locks are for processes of an older Kassa that still run, taken at once and in the order of a batch. From now on
# they can store no batch: it would not be found. Meanwhile nobody else gets at operations; with millions of them that
# is some seconds.
SCHEMA = """
LOCK TABLE load, batches, operations IN ACCESS EXCLUSIVE MODE;

ALTER TABLE batches ADD COLUMN first_operation_id UUID, ADD COLUMN last_operation_id UUID;

UPDATE batches SET first_operation_id = id, last_operation_id = id;

UPDATE batches SET first_operation_id = its.first, last_operation_id = its.last
  FROM (SELECT batch_id, min(id::text COLLATE "C")::uuid AS first, max(id::text COLLATE "C")::uuid AS last
          FROM operations WHERE batch_id IS NOT NULL GROUP BY batch_id) AS its
 WHERE batches.id = its.batch_id;

ALTER TABLE batches ALTER COLUMN first_operation_id SET NOT NULL, ALTER COLUMN last_operation_id SET NOT NULL;

DROP INDEX operations_batch_id;

DROP TRIGGER operations_finished_for_ever ON operations;

CREATE TRIGGER operations_finished_for_ever AFTER UPDATE ON operations
    FOR EACH ROW WHEN (OLD.status <> 'pending')
    EXECUTE FUNCTION refuse_change('a finished operation never changes');
"""


def upgrade() -> None:
    """Note the ids of all batches, and drop the index; replace the trigger, with no moment without one."""
    op.get_bind().exec_driver_sql(SCHEMA)
