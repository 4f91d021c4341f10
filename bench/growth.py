"""Whether Kassa grows slower as its history grows: the same figures on databases of different sizes, in turn.

All stacks are there at once, and each part is measured on one after another: a machine's speed changes within minutes.
"""

import statistics
from collections import defaultdict
from itertools import product
from tempfile import TemporaryFile
from typing import Any

import sqlalchemy as sa

from bench import closed, paced, rest
from bench.stack import FIRST_DEPOSIT, Bench, load, ratio, settle, start
from cli.servers import CannotStart
from core.reconcile import violations

SIZES = (1_000, 100_000, 5_000_000)
BUSY_USERS = 50  # who have made all of that history; every size is a multiple
OPERATIONS = ("single", "wait", "batch", "hot")
READS = ("reads", "balance", "history", "statement")
OTHERS = {"latency": paced.latency, "fair": paced.fair, "idle": rest.idle}
PER_SECOND = (*OPERATIONS, *READS)

Figures = dict[str, dict[int, list[float]]]  # by name and size, one of each round

# Transfers in a ring: user k pays user k + 1, over and over. So each account is paid and pays once in a round, the
# first one in the other order, and balances and versions follow from the number of the round.
PREPARE = (
    """
CREATE TEMPORARY TABLE ring AS
SELECT (row_number() OVER (ORDER BY u.id) - 1)::int AS k, u.id AS user_id, u.lane, a.id AS account_id
  FROM users u JOIN accounts a ON a.user_id = u.id WHERE u.username IN (
       SELECT 'bench-' || i FROM generate_series(0, {busy} - 1) AS i)""",
    "SET session_replication_role = replica",
)
FILL = {
    """
operations (id, user_id, requested_by, seq, lane, type, status, account_id, counterparty_id, amount, currency,
            request_hash, apply_no, account_version, counterparty_version, created_at, finished_at)""": """
SELECT uuidv7(), s.user_id, s.user_id, 2 + n / {busy}, s.lane, 'transfer', 'applied', s.account_id,
       r.account_id, 1, 'RUB', '', {last} + 1 + n,
       2 + 2 * (n / {busy}) + CASE WHEN s.k = 0 THEN 0 ELSE 1 END,
       2 + 2 * (n / {busy}) + CASE WHEN r.k = 0 THEN 1 ELSE 0 END,
       clock_timestamp(), clock_timestamp()
  FROM generate_series({first}, {until} - 1) AS n
  JOIN ring s ON s.k = mod(n, {busy}) JOIN ring r ON r.k = mod(n + 1, {busy})
 ORDER BY n""",
    "entries (operation_id, account_id, account_version, amount, balance_after, created_at)": """
SELECT o.id, e.account_id, e.version, e.amount,
       {deposit} + CASE WHEN mod(e.version, 2) = 1 THEN 0 WHEN s.k = 0 THEN -1 ELSE 1 END, o.finished_at
  FROM operations o CROSS JOIN LATERAL (
       VALUES (o.account_id, o.account_version, -1), (o.counterparty_id, o.counterparty_version, 1)
  ) AS e (account_id, version, amount)
  JOIN ring s ON s.account_id = e.account_id
 WHERE o.apply_no > {last} + {first} AND o.apply_no <= {last} + {until} AND o.type = 'transfer'
 ORDER BY o.apply_no, e.amount""",
}
FINISH = (
    "SET session_replication_role = DEFAULT",
    "UPDATE users SET next_seq = 1 + {rounds}, turn = 1 + {rounds} WHERE id IN (SELECT user_id FROM ring)",
    "UPDATE progress SET done_seq = 1 + {rounds} WHERE user_id IN (SELECT user_id FROM ring)",
    "UPDATE accounts SET version = 1 + 2 * {rounds} WHERE id IN (SELECT account_id FROM ring)",
    "UPDATE lanes SET turn = greatest(turn, 1 + {rounds})",
    "SELECT setval('apply_no', {last} + {size})",
)
CHUNK = 250_000


def run(seconds: int, rounds: int, sizes: tuple[int, ...]) -> Figures:
    """A stack of each size, and the figures of all parts on all of them."""
    benches: dict[int, Bench] = {}
    try:
        for size in sizes:
            benches[size] = start(seconds, 10_000, f"bench-growth-{size}")
            load(benches[size])
            fill(benches[size], size)
        figures = play(benches, rounds)
        if broken := [each for bench in benches.values() for each in violations(bench.engine)]:
            raise CannotStart(f"a ledger does not reconcile: {broken}")
        return figures
    finally:
        for bench in benches.values():
            bench.engine.dispose()
            bench.stack.stop()


def play(benches: dict[int, Bench], rounds: int) -> Figures:
    """Measure each part on all sizes before the next one, in each round the sizes in another order."""
    sizes = list(benches)
    figures: Figures = defaultdict(lambda: {size: [] for size in sizes})
    for number in range(rounds):
        first = number % len(sizes)
        for part, size in product((*PER_SECOND, *OTHERS), (*sizes[first:], *sizes[:first])):
            benches[size].figures["single"] = figures["single"][sizes[0]]  # latency: at the same rate on all sizes
            for name, figure in measure(benches[size], part).items():
                figures[name][size].append(figure)
                print(f"round {number + 1}  {size:>9,}  {name:16} {figure:10,.2f} {unit(name)}", flush=True)
    return figures


def measure(bench: Bench, part: str) -> dict[str, float]:
    """The figures of a part, by name."""
    if part in OTHERS:
        return OTHERS[part](bench)
    return {part: closed.operations(bench, part) if part in OPERATIONS else closed.requests(bench, part)}


def unit(name: str) -> str:
    """Of a figure."""
    return "/s" if name in PER_SECOND else rest.UNITS.get(name, "ms")


def fill(bench: Bench, size: int) -> None:
    """Load `size` finished transfers among the busy users, in a ledger that reconciles."""
    with bench.engine.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        [[last]] = connection.exec_driver_sql("SELECT max(apply_no) FROM operations")
        named = {"busy": BUSY_USERS, "last": last, "deposit": FIRST_DEPOSIT, "size": size, "rounds": size // BUSY_USERS}
        for statement in PREPARE:
            connection.exec_driver_sql(statement.format(**named))
        for first in range(0, size, CHUNK):
            until = min(first + CHUNK, size)
            for into, query in FILL.items():
                copy(connection, query.format(**named, first=first, until=until), into)
            connection.commit()
            print(f"loaded {until:,} of {size:,} finished operations", flush=True)
        for statement in FINISH:
            connection.exec_driver_sql(statement.format(**named))
        connection.commit()
    settle(bench)


def copy(connection: sa.Connection, query: str, into: str) -> None:
    """Load what a query gives into a table, named with its columns."""
    connection.exec_driver_sql("SELECT 1")  # SQLAlchemy commits no transaction that it has not seen begin
    cursor: Any = connection.connection.cursor()
    with TemporaryFile() as rows:
        cursor.copy_expert(f"COPY ({query}) TO STDOUT", rows)
        rows.seek(0)
        cursor.copy_expert(f"COPY {into} FROM STDIN", rows)


def table(figures: Figures) -> str:
    """Medians by size, and how the largest compares with the smallest."""
    sizes = list(next(iter(figures.values())))
    lines = ["", f"{'figure':16}" + "".join(f"{size:>15,}" for size in sizes) + "   largest : smallest"]
    for name, by_size in figures.items():
        medians = "".join(f"{statistics.median(by_size[size]):11,.2f} {unit(name):3}" for size in sizes)
        bound = "at least 0.9" if name in PER_SECOND else "at most 1.1"
        lines.append(f"{name:16}{medians}   {ratio(by_size[sizes[-1]], by_size[sizes[0]]):.2f} ({bound})")
    return "\n".join(lines)
