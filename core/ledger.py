"""Step 6, the writing half: the accounts that a drain has locked, and the one writer of balances and entries."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import sqlalchemy as sa

from core import notices
from core.db import Prepared, array, text_array
from core.notices import Finished
from core.operations import Account, Applied, Canceled, Failed, Operation, Outcome, Posting, Rejected

LOCK = Prepared(
    "lock_accounts",
    ["uuid[]"],
    """
SELECT id, currency, balance, version, kind = 'world' AS is_world, closed_at IS NOT NULL AS is_closed
  FROM accounts WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE
""",
)

WRITE = Prepared(
    "write_outcomes",
    [
        *("int[]", "int[]", "bigint[]", "bigint[]", "bigint[]"),  # entries, operation and account by their place below
        *("uuid[]", "bigint[]", "bigint[]"),
        *("uuid[]", "text[]", "text[]", "bigint[]", "bigint[]"),
        *("int[]", "bigint[]", "tid[]", "json"),
        *("uuid[]", "bigint[]", "bigint[]"),  # users, the first and the last of each that is finished now
    ],
    f"""
WITH posted AS (
    INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after, created_at)
    SELECT ($9)[e.operation], ($6)[e.account], version, amount, balance_after, statement_timestamp()
      FROM unnest($1, $2, $3, $4, $5) AS e (operation, account, version, amount, balance_after)
), balances AS (
    UPDATE accounts SET balance = b.balance, version = b.version
      FROM unnest($6, $7, $8) AS b (id, balance, version) WHERE accounts.id = b.id
), finished AS (
    UPDATE operations
       SET status = o.status, rejection = o.rejection::jsonb, account_version = o.account_version,
           counterparty_version = o.counterparty_version, apply_no = o.apply_no, finished_at = statement_timestamp()
      FROM (SELECT *, nextval('apply_no') AS apply_no
              FROM unnest($9, $10, $11, $12, $13)
                AS o (id, status, rejection, account_version, counterparty_version)) AS o
     WHERE operations.id = o.id RETURNING 1
), taken_off AS (
    DELETE FROM queue WHERE ctid = ANY ($16) RETURNING 1
), clock AS (
    UPDATE lanes SET turn = greatest(lanes.turn, l.turn) FROM unnest($14, $15) AS l (id, turn) WHERE lanes.id = l.id
), moved_on AS (
    UPDATE progress SET done_seq = p.last FROM unnest($18, $19, $20) AS p (user_id, first, last)
     WHERE progress.user_id = p.user_id AND progress.done_seq = p.first - 1 RETURNING 1
)
SELECT (SELECT count(*) FROM finished) AS finished, (SELECT count(*) FROM taken_off) AS taken_off,
       (SELECT count(*) FROM moved_on) AS moved_on,
       pg_notify('{notices.CHANNEL}', json_build_array(statement_timestamp(), $17)::text)
""",
)

Entry = tuple[str, int, int, int]  # operation, version of the account, amount, balance after it
Decided = tuple[Operation, Outcome, dict[str, int]]  # with the version that each account of it got


class LedgerError(Exception):
    """A defect: what is about to be written would break a promise. The transaction must not commit."""


class Books:
    """The accounts that this transaction has locked, and the entries posted to each of them so far, by its id."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self.accounts = {account.id: account for account in accounts}
        self.entries: dict[str, list[Entry]] = {}

    def post(self, operation_id: str, postings: Sequence[Posting]) -> dict[str, int]:
        """Post one operation's movements. Returns the new version of each account that it touched.

        Raises LedgerError if they do not sum to zero per currency, or touch an account that is not locked.
        """
        sums: dict[str, int] = {}
        for posting in postings:
            if posting.account_id not in self.accounts:
                raise LedgerError(f"account {posting.account_id} is not locked")
            currency = self.accounts[posting.account_id].currency
            sums[currency] = sums.get(currency, 0) + posting.amount
        if any(sums.values()):
            raise LedgerError(f"operation {operation_id} does not sum to zero: {sums}")
        return {posting.account_id: self._enter(operation_id, posting) for posting in postings}

    def _enter(self, operation_id: str, posting: Posting) -> int:
        before = self.accounts[posting.account_id]
        after = Account(
            before.id,
            before.currency,
            before.balance + posting.amount,
            before.version + 1,
            before.is_world,
            before.closed,
        )
        self.accounts[after.id] = after
        self.entries.setdefault(after.id, []).append((operation_id, after.version, posting.amount, after.balance))
        return after.version


def lock(connection: sa.Connection, account_ids: Iterable[str]) -> Books:
    """Lock the accounts in id order, so that no two drains wait for each other, and read them."""
    return Books(Account(*row) for row in LOCK.tuples(connection, (array(sorted(set(account_ids))),)))


def write(connection: sa.Connection, books: Books, decided: Sequence[Decided]) -> None:
    """Write entries, balances and outcomes of a batch, and how far its users have come, in one statement.

    decided: operations in the order of application.
    Raises LedgerError if an operation was finished before, or a user's operations are not the next ones in order.
    """
    prefixes = finished_prefixes(operation for operation, _, _ in decided)
    finished = list(outcomes(books, decided))
    accounts = [books.accounts[account_id] for account_id in sorted(books.entries)]
    places = {each.id: place for place, each in enumerate(finished, 1)}
    entries = [  # account by account, as their index has them
        (places[operation_id], place, version, amount, balance_after)
        for place, account in enumerate(accounts, 1)
        for operation_id, version, amount, balance_after in books.entries[account.id]
    ]
    turns: dict[int, int] = {}
    for operation, _, _ in decided:
        turns[operation.lane] = max(operation.turn, turns.get(operation.lane, 0))
    written = WRITE.row(
        connection,
        (
            *columns(entries, 5),
            *columns([(account.id, account.balance, account.version) for account in accounts], 3),
            array(each.id for each in finished),
            array(each.status for each in finished),
            text_array(each.rejection for each in finished),
            array(each.account_version for each in finished),
            array(each.counterparty_version for each in finished),
            *columns(sorted(turns.items()), 2),
            array(operation.ticket for operation, _, _ in decided),
            notices.payload(finished),
            *columns([(user, *ends) for user, ends in prefixes.items()], 3),
        ),
    )
    if {written.finished, written.taken_off} != {len(decided)} or written.moved_on != len(prefixes):
        raise LedgerError(
            f"{written.finished} of {len(decided)} finished, {written.taken_off} taken off the queue,"
            f" {written.moved_on} of {len(prefixes)} users moved on"
        )


def outcomes(books: Books, decided: Sequence[Decided]) -> Iterator[Finished]:
    """What is written of each operation, and what those who wait read of it."""
    balances: dict[tuple[str | None, int | None], int] = {}
    if len(decided) <= notices.OPERATIONS_MAX:  # of more nobody is told
        balances = {
            (id, version): balance for id, entries in books.entries.items() for _, version, _, balance in entries
        }
    for operation, outcome, versions in decided:
        version = versions.get(operation.account_id)
        counterparty_version = versions.get(operation.counterparty_id or "")
        yield Finished(
            operation.id,
            status_of(outcome),
            rejection_json(outcome),
            version,
            counterparty_version,
            balance_after=balances.get((operation.account_id, version)),
            counterparty_balance_after=balances.get((operation.counterparty_id, counterparty_version)),
        )


def finished_prefixes(operations: Iterable[Operation]) -> dict[str, tuple[int, int]]:
    """For each user the first and last `seq` of the batch. Raises LedgerError on a gap or a step back."""
    prefixes: dict[str, tuple[int, int]] = {}
    for operation in operations:
        first, last = prefixes.get(operation.user_id, (operation.seq, operation.seq - 1))
        if operation.seq != last + 1:
            raise LedgerError(f"user {operation.user_id}: operation {operation.seq} comes after {last}")
        prefixes[operation.user_id] = first, operation.seq
    return prefixes


def columns(rows: Sequence[tuple[object, ...]], width: int) -> list[str]:
    """Rows as one array literal per column."""
    return [array(column) for column in zip(*rows, strict=True)] if rows else ["{}"] * width


def status_of(outcome: Outcome) -> str:
    """The status under which an outcome is stored."""
    return STATUS[type(outcome)]


STATUS = {Applied: "applied", Rejected: "rejected", Canceled: "canceled", Failed: "failed"}


def rejection_json(outcome: Outcome) -> str | None:
    """A rejection as clients will read it, in the order that jsonb gives it; None for other outcomes."""
    if not isinstance(outcome, Rejected):
        return None
    told = {"code": outcome.code, "title": outcome.title, "detail": outcome.detail, **outcome.facts}
    return json.dumps({name: told[name] for name in sorted(told, key=lambda name: (len(name), name))})


def touched(operation_ids: Iterable[Iterable[str]]) -> set[str]:
    """The union of several operations' accounts."""
    return set(chain.from_iterable(operation_ids))
