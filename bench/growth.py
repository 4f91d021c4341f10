"""Whether Kassa grows slower as its history grows: the same figures on databases of different sizes, in turn."""

import statistics

import sqlalchemy as sa

from bench import closed
from bench.stack import FIRST_DEPOSIT, Bench, load, start
from cli.servers import CannotStart
from core import db
from core.reconcile import violations

SIZES = (1_000, 100_000, 5_000_000)
BUSY_USERS = 50  # who have made all of that history; every size is a multiple
PARTS = ("single", "wait", "batch", "hot", "reads", "balance", "history", "statement")

# Transfers in a ring: user k pays user k + 1, over and over. So each account is paid and pays once in a round, the
# first one in the other order, and balances and versions follow from the number of the round.
FILL = (
    """
CREATE TEMPORARY TABLE ring AS
SELECT (row_number() OVER (ORDER BY u.id) - 1)::int AS k, u.id AS user_id, u.lane, a.id AS account_id
  FROM users u JOIN accounts a ON a.user_id = u.id WHERE u.username IN (
       SELECT 'bench-' || i FROM generate_series(0, {busy} - 1) AS i)""",
    "SET session_replication_role = replica",
    """
INSERT INTO operations (id, user_id, requested_by, seq, lane, turn, type, status, account_id, counterparty_id, amount,
                        currency, request_hash, apply_no, account_version, counterparty_version,
                        created_at, finished_at)
SELECT uuidv7(), s.user_id, s.user_id, 2 + n / {busy}, s.lane, 2 + n / {busy}, 'transfer', 'applied', s.account_id,
       r.account_id, 1, 'RUB', '', {last} + 1 + n,
       2 + 2 * (n / {busy}) + CASE WHEN s.k = 0 THEN 0 ELSE 1 END,
       2 + 2 * (n / {busy}) + CASE WHEN r.k = 0 THEN 1 ELSE 0 END,
       clock_timestamp(), clock_timestamp()
  FROM generate_series({first}, {until} - 1) AS n
  JOIN ring s ON s.k = mod(n, {busy}) JOIN ring r ON r.k = mod(n + 1, {busy})
 ORDER BY n""",
    """
INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after, created_at)
SELECT o.id, e.account_id, e.version, e.amount,
       {deposit} + CASE WHEN mod(e.version, 2) = 1 THEN 0 WHEN s.k = 0 THEN -1 ELSE 1 END, o.finished_at
  FROM operations o CROSS JOIN LATERAL (
       VALUES (o.account_id, o.account_version, -1), (o.counterparty_id, o.counterparty_version, 1)
  ) AS e (account_id, version, amount)
  JOIN ring s ON s.account_id = e.account_id
 WHERE o.apply_no > {last} + {first} AND o.apply_no <= {last} + {until} AND o.type = 'transfer'
 ORDER BY o.apply_no, e.amount""",
)
FINISH = (
    "SET session_replication_role = DEFAULT",
    """
UPDATE users SET next_seq = 1 + {rounds}, done_seq = 1 + {rounds}, turn = 1 + {rounds}
 WHERE id IN (SELECT user_id FROM ring)""",
    "UPDATE accounts SET version = 1 + 2 * {rounds} WHERE id IN (SELECT account_id FROM ring)",
    "UPDATE lanes SET turn = greatest(turn, 1 + {rounds})",
    "SELECT setval('apply_no', {last} + {size})",
)
CHUNK = 250_000


def run(seconds: int, rounds: int, sizes: tuple[int, ...]) -> dict[str, dict[int, list[float]]]:
    """Figures by part and size."""
    figures: dict[str, dict[int, list[float]]] = {part: {size: [] for size in sizes} for part in PARTS}
    for number in range(rounds):
        for size in sizes:
            bench = start(seconds, 10_000, f"bench-growth-{size}", fresh=number == 0)
            try:
                if number == 0:
                    load(bench)
                    fill(bench, size)
                for part in PARTS:
                    measure = closed.operations if part in ("single", "wait", "batch", "hot") else closed.requests
                    figures[part][size].append(measure(bench, part))
                    print(f"round {number + 1}  {size:>9,}  {part:10} {figures[part][size][-1]:10,.0f} /s", flush=True)
                if number in (0, rounds - 1) and (broken := violations(bench.engine)):
                    raise CannotStart(f"the ledger does not reconcile: {broken}")
            finally:
                bench.engine.dispose()
                bench.stack.stop()
    return figures


def fill(bench: Bench, size: int) -> None:
    """Load `size` finished transfers among the busy users, in a ledger that reconciles."""
    with bench.engine.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        [[last]] = connection.exec_driver_sql("SELECT max(apply_no) FROM operations")
        named = {"busy": BUSY_USERS, "last": last, "deposit": FIRST_DEPOSIT, "size": size, "rounds": size // BUSY_USERS}
        for statement in FILL[:2]:
            connection.exec_driver_sql(statement.format(**named))
        for first in range(0, size, CHUNK):
            until = min(first + CHUNK, size)
            for statement in FILL[2:]:
                connection.exec_driver_sql(statement.format(**named, first=first, until=until))
            connection.commit()
            print(f"loaded {until:,} of {size:,} finished operations", flush=True)
        for statement in FINISH:
            connection.exec_driver_sql(statement.format(**named))
        connection.commit()
    with db.autocommit(bench.engine).connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.execute(sa.text("VACUUM ANALYZE"))


def table(figures: dict[str, dict[int, list[float]]]) -> str:
    """Medians by size, and how the largest compares with the smallest."""
    sizes = list(next(iter(figures.values())))
    lines = ["", f"{'part':10}" + "".join(f"{size:>14,}" for size in sizes) + "   largest : smallest (must reach 0.9)"]
    for part, by_size in figures.items():
        medians = [statistics.median(by_size[size]) for size in sizes]
        lines.append(
            f"{part:10}" + "".join(f"{each:12,.0f}/s" for each in medians) + f"   {medians[-1] / medians[0]:.2f}"
        )
    return "\n".join(lines)
