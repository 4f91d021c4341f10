"""A universe of its own for each sequence: new lanes and users, so that no table is emptied and none is scanned."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from core import batches, db
from core.acceptance import Accepted, accept, request_cancellation
from core.accounts import open_account
from core.ids import new_id, own_account_id
from core.limits import Limits
from core.operations import Command
from core.reconcile import TRUTHS
from tests.model.ledger import Ledger
from worker.drain import drain, drain_batch

LANES = 2
numbers = itertools.count(1000)  # of lanes

# The ledger's truths see copies of one universe's rows under the tables' names: so they hold of each, and cost little.
COPIES = {
    "users": "id = ANY (%(users)s::uuid[])",
    "progress": "user_id = ANY (%(users)s::uuid[])",
    "accounts": "id = ANY (%(accounts)s::uuid[])",
    "operations": "user_id = ANY (%(users)s::uuid[])",
    "queue": "lane = ANY (%(lanes)s::int[])",
    "purchases": "user_id = ANY (%(users)s::uuid[])",
    "entries": "account_id = ANY (%(accounts)s::uuid[])",
}
KEYED = ("users", "accounts", "operations")
MAKE_COPIES = ";".join(
    f"CREATE TEMP TABLE {table} (LIKE public.{table}{', PRIMARY KEY (id)' if table in KEYED else ''})"
    " ON COMMIT DELETE ROWS"
    for table in COPIES
)
FILL_COPIES = ";".join(
    f"INSERT INTO {table} SELECT * FROM public.{table} WHERE {rows}" for table, rows in COPIES.items()
)
BROKEN = " UNION ALL ".join(
    f"SELECT '{truth}', row_to_json(b)::text FROM ({query}) AS b" for truth, query in TRUTHS.items()
)
STATE = db.Prepared(
    "state",
    ["uuid[]", "uuid[]"],
    """
SELECT 'operations', id, json_build_array(seq, lane,
       (SELECT turn FROM queue WHERE queue.lane = o.lane AND operation_id = o.id), status, type, account_id,
       counterparty_id, amount, currency, rejection->>'code', (rejection->>'available')::bigint, account_version,
       counterparty_version, apply_no)
  FROM operations o WHERE user_id = ANY ($1)
UNION ALL SELECT 'accounts', id, json_build_array(currency, balance, version) FROM accounts WHERE id = ANY ($2)
UNION ALL SELECT 'users', id, json_build_array(next_seq, done_seq, turn)
  FROM users JOIN progress ON user_id = id WHERE id = ANY ($1)
""",
)


class Bank:
    """The real thing: one connection for what comes one after another, two threads for drains at once."""

    def __init__(self, database_url: str) -> None:
        self.engine = db.engine(database_url, "model", 4)
        self.one = db.autocommit(self.engine)
        self.limits = Limits(self.one, self.engine, user_pending=10**9, pending=10**9, pending_seconds=10**9)
        self.threads = ThreadPoolExecutor(2)
        with self.one.connect() as connection:
            connection.exec_driver_sql(
                "DELETE FROM rates;"
                "INSERT INTO rates (currency, rate_date, rubles, source) VALUES ('USD', '2022-03-15', 100, 'model')"
            )
        self.checker = sa.create_engine(self.engine.url, pool_size=1, max_overflow=0)
        with self.checker.begin() as connection:
            # Planned once, while the tables are still empty: the plan must suit them when they are full, too.
            connection.exec_driver_sql("SET jit = off; SET enable_seqscan = off")
            connection.exec_driver_sql(f"{MAKE_COPIES}; PREPARE broken AS {BROKEN}")

    def close(self) -> None:
        """Give all connections back."""
        self.threads.shutdown()
        self.engine.dispose()
        self.checker.dispose()

    def begin(self) -> tuple[Ledger, list[str]]:
        """Two lanes, three users, each with an account in roubles, and two services. Returns the ids of the users."""
        ledger = Ledger(lanes=dict.fromkeys(itertools.islice(numbers, LANES), 0))
        users = [new_id() for _ in range(3)]
        for place, user in enumerate(users):
            lane = list(ledger.lanes)[place % LANES]
            facts = {"name": f"User-{user}", "lane": lane, "disabled": False, "next_seq": 0, "done_seq": 0, "turn": 0}
            ledger.users[user] = facts
            ledger.open(user, "RUB", new_id())
        for price, currency in ((150, "RUB"), (1, "USD")):
            ledger.services[new_id()] = {"price": price, "currency": currency, "active": True}
        self.store(ledger)
        return ledger, users

    def store(self, ledger: Ledger) -> None:
        """Write the beginnings of a universe, all in one round trip."""
        rows = {
            "lanes": [{"id": lane, "turn": 0} for lane in ledger.lanes],
            "users": [{"id": id, "username": one["name"], "lane": one["lane"]} for id, one in ledger.users.items()],
            "progress": [{"user_id": id, "done_seq": 0} for id in ledger.users],
            "services": [{"id": id, "name": "service", **one} for id, one in ledger.services.items()],
            "accounts": [
                {"id": id, "user_id": one["user"], "is_default": one["default"], "lane": lane_of(ledger, id)}
                | {"kind": one["kind"], "currency": one["currency"]}
                for id, one in ledger.accounts.items()
            ],
        }
        statements = [
            f"INSERT INTO {table} ({', '.join(lines[0])}) SELECT {', '.join(lines[0])}"
            f" FROM json_populate_recordset(NULL::{table}, '{json.dumps(lines)}')"
            for table, lines in rows.items()
        ]
        with self.one.connect() as connection:
            connection.exec_driver_sql(";".join(statements))

    def accept(self, command: Command) -> Accepted:
        """Hand in one operation."""
        with self.one.connect() as connection:
            return accept(connection, command)

    def accept_batch(self, commands: list[Command], header: batches.Header) -> tuple[bool, list[dict[str, Any]]]:
        """Hand in a batch. Returns whether it was there before, and its items."""
        with self.engine.begin() as connection:
            stored = batches.accept(connection, dict(enumerate(commands)), {}, header, self.limits)
            batch = batches.find(connection, stored.batch_id)
            assert batch is not None
            return stored.replayed, batches.items(connection, batch)

    def cancel(self, operation: str, lane: int) -> None:
        """What `DELETE /v1/operations/{id}` does."""
        with self.engine.begin() as connection:
            request_cancellation(connection, operation, lane)

    def open(self, user: str, currency: str) -> str:
        """Open an account. Returns its id."""
        with self.engine.begin() as connection:
            return open_account(connection, user, currency).account_id

    def execute(self, statement: str, **parameters: Any) -> None:
        """Run a statement of an administrator's."""
        with self.one.connect() as connection:
            connection.execute(sa.text(statement), parameters)

    def drain(self, lane: int, limit: int) -> int:
        """Apply up to `limit` operations. Returns how many it were."""
        return drain_batch(self.engine, lane, limit, wait=True).total()

    def drain_at_once(self, lanes: list[int]) -> None:
        """Drain lanes, or one lane twice, at the same time."""
        for done in self.threads.map(lambda lane: drain(self.engine, lane), lanes):
            assert not done.counts["failed"]

    def state(self, ledger: Ledger) -> dict[str, dict[str, Any]]:
        """What is stored of a universe, as `expected` writes it."""
        found: dict[str, dict[str, Any]] = {"operations": {}, "accounts": {}, "users": {}}
        with self.one.connect() as connection:
            for kind, id, facts in STATE.rows(connection, (db.array(ledger.users), db.array(ledger.accounts))):
                found[kind][id] = facts
        return found

    def broken(self, ledger: Ledger) -> list[Any]:
        """The truths that do not hold of a universe."""
        of_universe = {"users": ledger.users, "accounts": ledger.accounts, "lanes": ledger.lanes}
        ids = {name: db.array(each) for name, each in of_universe.items()}
        with self.checker.begin() as connection:
            connection.exec_driver_sql(FILL_COPIES, ids)
            return list(connection.exec_driver_sql("EXECUTE broken"))


def lane_of(ledger: Ledger, account: str) -> int | None:
    """The lane of one of Kassa's own accounts; a user's account has none."""
    for lane in ledger.lanes:
        if account in (own_account_id("world", lane, "RUB"), own_account_id("revenue", lane, "RUB")):
            return lane
    return None


def expected(ledger: Ledger) -> Iterator[tuple[str, dict[str, Any]]]:
    """What must be stored; the apply_no stands apart, since only its order means anything."""
    yield (
        "operations",
        {
            id: [one[name] for name in ("seq", "lane", "turn", "status", "type", "account", "receiver", "amount")]
            + [one[name] for name in ("currency", "code", "available", "version", "receiver_version")]
            for id, one in ledger.operations.items()
        },
    )
    yield (
        "accounts",
        {id: [one[name] for name in ("currency", "balance", "version")] for id, one in ledger.accounts.items()},
    )
    yield "users", {id: [one[name] for name in ("next_seq", "done_seq", "turn")] for id, one in ledger.users.items()}
