"""The books, checked: what must be true of every database at every moment, one query for each truth.

A query returns the rows that break it, so an empty answer is a pass. Operators (`./kassa verify`), tests and benches
use this same list. All run in one read-only snapshot, and so may run beside a working system.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

SAMPLES_MAX = 5

TRUTHS = {
    "entries_sum_to_zero": """
        SELECT a.currency, sum(e.amount) AS sum FROM entries e JOIN accounts a ON a.id = e.account_id
         GROUP BY a.currency HAVING sum(e.amount) <> 0""",
    "operations_sum_to_zero": """
        SELECT e.operation_id, a.currency, sum(e.amount) AS sum FROM entries e JOIN accounts a ON a.id = e.account_id
         GROUP BY e.operation_id, a.currency HAVING sum(e.amount) <> 0""",
    "entries_belong_to_applied_operations": """
        SELECT e.operation_id, e.account_id, e.account_version, o.status
          FROM entries e LEFT JOIN operations o ON o.id = e.operation_id
          LEFT JOIN accounts a ON a.id = e.account_id
         WHERE o.status IS DISTINCT FROM 'applied' OR a.id IS NULL""",
    "applied_operations_have_their_entries": """
        SELECT o.id, o.type, o.amount, e.amount AS entered, ce.amount AS counterparty_entered
          FROM operations o
          LEFT JOIN entries e
            ON e.operation_id = o.id AND e.account_id = o.account_id AND e.account_version = o.account_version
          LEFT JOIN entries ce ON ce.operation_id = o.id AND ce.account_id = o.counterparty_id
           AND ce.account_version = o.counterparty_version
         WHERE o.status = 'applied'
           AND (e.amount IS DISTINCT FROM CASE WHEN o.type = 'deposit' THEN o.amount ELSE -o.amount END
                OR (o.counterparty_id IS NOT NULL AND ce.amount IS DISTINCT FROM o.amount))""",
    "applied_operations_have_two_entries": """
        SELECT o.id, count(e.operation_id) AS entries
          FROM operations o LEFT JOIN entries e ON e.operation_id = o.id
         WHERE o.status = 'applied' GROUP BY o.id HAVING count(e.operation_id) <> 2""",
    "money_goes_where_the_type_says": """
        SELECT o.id, o.type, e.account_id, a.kind FROM operations o
          JOIN entries e ON e.operation_id = o.id AND e.account_id <> o.account_id
          JOIN accounts a ON a.id = e.account_id
         WHERE CASE o.type WHEN 'transfer' THEN a.id IS DISTINCT FROM o.counterparty_id
                           WHEN 'purchase' THEN a.kind <> 'revenue' OR a.lane <> o.lane
                           ELSE a.kind <> 'world' OR a.lane <> o.lane END""",
    "purchases_are_applied_once": """
        SELECT p.user_id, p.service_id, p.operation_id, o.id, o.status
          FROM (SELECT * FROM operations WHERE type = 'purchase' AND status = 'applied') AS o
          FULL JOIN purchases p
            ON p.operation_id = o.id AND p.user_id = o.user_id AND p.service_id = o.service_id
         WHERE o.id IS NULL OR p.operation_id IS NULL""",
    "balance_is_sum_of_entries": """
        SELECT a.id, a.balance, coalesce(sum(e.amount), 0) AS sum
          FROM accounts a LEFT JOIN entries e ON e.account_id = a.id
         GROUP BY a.id HAVING a.balance <> coalesce(sum(e.amount), 0)""",
    "version_is_count_of_entries": """
        SELECT a.id, a.version, count(e.account_id) AS entries, max(e.account_version) AS last
          FROM accounts a LEFT JOIN entries e ON e.account_id = a.id
         GROUP BY a.id HAVING a.version <> count(e.account_id) OR a.version <> coalesce(max(e.account_version), 0)""",
    "chain_is_unbroken": """
        SELECT account_id, account_version, balance_before, amount, balance_after FROM (
            SELECT *, lag(balance_after, 1, 0) OVER account AS balance_before,
                   lag(account_version, 1, 0) OVER account AS version_before
              FROM entries WINDOW account AS (PARTITION BY account_id ORDER BY account_version)) AS chain
         WHERE balance_before + amount <> balance_after OR version_before + 1 <> account_version""",
    "nothing_below_zero": """
        SELECT a.id AS account_id, a.balance, e.account_version, e.balance_after
          FROM accounts a LEFT JOIN entries e ON e.account_id = a.id AND e.balance_after < 0
         WHERE a.kind <> 'world' AND (a.balance < 0 OR e.balance_after < 0)""",
    "seq_is_gapless": """
        SELECT u.id, u.next_seq, count(o.id) AS operations, min(o.seq) AS first, max(o.seq) AS last
          FROM users u LEFT JOIN operations o ON o.user_id = u.id
         GROUP BY u.id
        HAVING count(o.id) <> u.next_seq OR coalesce(max(o.seq), 0) <> u.next_seq
            OR (count(o.id) > 0 AND min(o.seq) <> 1)""",
    "operations_have_a_user": """
        SELECT o.id, o.user_id FROM operations o LEFT JOIN users u ON u.id = o.user_id AND u.lane = o.lane
         WHERE u.id IS NULL""",
    "the_queue_holds_what_is_pending": """
        SELECT o.id, o.lane, q.operation_id AS queued_id, q.lane AS queued_lane, q.turn AS queued_turn, q.times
          FROM (SELECT * FROM operations WHERE status = 'pending') AS o
          FULL JOIN (SELECT *, count(*) OVER (PARTITION BY operation_id) AS times FROM queue) AS q
            ON q.operation_id = o.id AND q.lane = o.lane
         WHERE o.id IS NULL OR q.operation_id IS NULL OR q.times > 1""",
    "nobody_is_overtaken": """
        SELECT user_id, seq, status, status_before FROM (
            SELECT *, lag(status) OVER (PARTITION BY user_id ORDER BY seq) AS status_before FROM operations) AS ordered
         WHERE status <> 'pending' AND status_before = 'pending'""",
    "applied_in_order_of_seq": """
        SELECT user_id, seq, apply_no, apply_no_before FROM (
            SELECT *, lag(apply_no) OVER (PARTITION BY user_id ORDER BY seq) AS apply_no_before
              FROM operations WHERE status <> 'pending') AS ordered
         WHERE apply_no <= apply_no_before""",
    "accounts_follow_order_of_application": """
        SELECT account_id, account_version, apply_no, apply_no_before FROM (
            SELECT e.account_id, e.account_version, o.apply_no, lag(o.apply_no)
                   OVER (PARTITION BY e.account_id ORDER BY e.account_version) AS apply_no_before
              FROM entries e JOIN operations o ON o.id = e.operation_id) AS ordered
         WHERE apply_no <= apply_no_before""",
    "apply_no_is_unique": """
        SELECT apply_no, count(*) AS operations FROM operations
         WHERE apply_no IS NOT NULL GROUP BY apply_no HAVING count(*) > 1""",
    "done_seq_is_the_finished_prefix": """
        SELECT u.id, progress.done_seq, coalesce(p.first_pending - 1, u.next_seq) AS prefix
          FROM users u LEFT JOIN progress ON progress.user_id = u.id LEFT JOIN (
              SELECT user_id, min(seq) AS first_pending FROM operations WHERE status = 'pending' GROUP BY user_id
          ) AS p ON p.user_id = u.id
         WHERE progress.done_seq IS DISTINCT FROM coalesce(p.first_pending - 1, u.next_seq)""",
}


@dataclass(frozen=True)
class Finding:
    """One truth: how many rows break it, and some of them in words."""

    truth: str
    violations: int
    samples: tuple[str, ...]


def reconcile(engine: sa.Engine) -> Iterator[Finding]:
    """Check every truth in one snapshot, yielding each result as it comes."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        # Whole tables are joined, about which PostgreSQL may know little if they have just grown.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = on")
        connection.exec_driver_sql("SET LOCAL enable_nestloop = off")
        for truth, query in TRUTHS.items():
            rows = connection.execute(
                sa.text(f"SELECT *, count(*) OVER () AS violations FROM ({query}) AS broken LIMIT {SAMPLES_MAX}")
            ).all()
            samples = tuple(
                ", ".join(f"{name}={value}" for name, value in row._mapping.items() if name != "violations")
                for row in rows
            )
            yield Finding(truth, rows[0].violations if rows else 0, samples)


def violations(engine: sa.Engine) -> list[Finding]:
    """The truths that do not hold; an empty list is what everybody wants to see."""
    return [finding for finding in reconcile(engine) if finding.violations]
