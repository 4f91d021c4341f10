"""The checker: what clients were told, replayed against what the database holds. Pure, and n log n.

Every rule is a method of `Checker` that yields violations; the checker carries what it knows from round to round.
Poison amounts (see `poisoned.py`) may end as failed; nothing else may.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from chaos.history import FINAL, Entry, Event, Item, Row, ToldBalance, ToldOperation
from chaos.poison import POISONS


@dataclass(frozen=True)
class Violation:
    """A promise that was broken, and the shortest facts that show it."""

    rule: str
    facts: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.facts}"


@dataclass
class Asked:
    """All that is known of one item from the requests that asked for it."""

    item: Item
    invoked: float  # the first of them
    acknowledged: float = float("inf")  # the first answer that said so
    refused_only: bool = True
    ids: set[str] = field(default_factory=set)


@dataclass
class Account:
    """An account in the replay."""

    balance: int = 0
    version: int = 0


@dataclass
class Checker:
    """What is known from the rounds before, and what the round that is checked adds to it."""

    accounts: dict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    asked: dict[str, Asked] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # to the id of the operation
    last_seq: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    # (account, version) to balance and operation
    chain: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    bought: set[tuple[str, str]] = field(default_factory=set)
    to_cancel: set[str] = field(default_factory=set)
    versions_told: dict[str, int] = field(default_factory=dict)  # by the end of the round before
    finished_told: set[str] = field(default_factory=set)
    last_apply_no: int = 0

    def check(self, events: Sequence[Event], rows: Sequence[Row], entries: Sequence[Entry]) -> list[Violation]:
        """Check a round. events: those of the round; rows, entries: what was finished in it, in order."""
        self.note(events)
        return [
            *self.answers(events),
            *self.stored(rows),
            *self.kept(events),
            *self.real_time_order(rows),
            *self.replay(rows),
            *self.entered(entries),
            *self.told(events),
            *self.reads(events),
        ]

    def note(self, events: Iterable[Event]) -> None:
        """Learn what was asked for."""
        for event in events:
            if event.canceled and event.outcome != "refused":
                self.to_cancel.add(event.canceled)
            for item in event.items:
                asked = self.asked.setdefault(item.tag, Asked(item, event.invoked))
                asked.invoked = min(asked.invoked, event.invoked)
                asked.refused_only &= event.outcome == "refused"
            for told in event.operations if event.items else ():
                if told.tag in self.asked:
                    asked = self.asked[told.tag]
                    asked.ids.add(told.id)
                    asked.acknowledged = min(asked.acknowledged, event.completed)

    def answers(self, events: Iterable[Event]) -> Iterator[Violation]:
        """Every answer is one that Kassa may give."""
        for event in events:
            if event.outcome == "unlawful":
                yield Violation("unlawful_answer", f"{event.kind} was answered {event.detail}")

    def stored(self, rows: Iterable[Row]) -> Iterator[Violation]:
        """One operation for each item, as it was asked for; nothing invented, nothing that was refused."""
        for row in rows:
            self.rows[row.id] = row
            asked = self.asked.get(row.tag or "")
            if asked is None:
                yield Violation("invented", f"nobody asked for {row}")
                continue
            if row.tag in self.tags and self.tags[row.tag] != row.id:
                yield Violation("doubled", f"{row.tag} is stored as {self.tags[row.tag]} and as {row.id}")
            self.tags[row.tag or ""] = row.id
            if asked.refused_only:
                yield Violation("refused_but_stored", f"{row.tag} was refused, and is stored as {row.id}")
            if not matches(asked.item, row):
                yield Violation("altered", f"asked for {asked.item}, stored {row}")

    def kept(self, events: Iterable[Event]) -> Iterator[Violation]:
        """What was acknowledged is there, under the id that was told."""
        for event in events:
            for told in event.operations:
                if told.id not in self.rows:
                    yield Violation("lost", f"{told.id} ({told.tag}) was told as {told.status}, and is not there")
            for item in event.items:
                if len(self.asked[item.tag].ids) > 1:
                    yield Violation("doubled", f"{item.tag} was acknowledged as {sorted(self.asked[item.tag].ids)}")

    def real_time_order(self, rows: Iterable[Row]) -> Iterator[Violation]:
        """Of one user: what was acknowledged before another was asked for has the lower seq."""
        of_user: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            of_user[row.user].append(row)
        for theirs in of_user.values():
            first_acknowledged, later = float("inf"), None
            for row in sorted(theirs, key=lambda row: -row.seq):
                asked = self.asked.get(row.tag or "")
                if asked is None:
                    continue
                if later is not None and first_acknowledged < asked.invoked:
                    yield Violation("reordered", f"{later} was acknowledged before {row} was asked for")
                if asked.acknowledged < first_acknowledged:
                    first_acknowledged, later = asked.acknowledged, row

    def replay(self, rows: Iterable[Row]) -> Iterator[Violation]:
        """Applied in order of seq without gaps, each outcome what one thread would have come to."""
        for row in rows:
            if row.apply_no is None or row.status not in FINAL:
                yield Violation("unfinished", f"{row}")
                continue
            if row.seq != self.last_seq[row.user] + 1:
                yield Violation("out_of_order", f"{row} was applied after seq {self.last_seq[row.user]}")
            self.last_seq[row.user] = row.seq
            self.last_apply_no = max(self.last_apply_no, row.apply_no)
            lawful = self.lawful(row)
            if row.status not in lawful:
                yield Violation("unjustified", f"{row}: one thread would have {lawful}, {self.accounts[row.account]}")
            if row.status == "applied":
                yield from self.post(row)

    def lawful(self, row: Row) -> tuple[str, ...]:
        """How the operation may have ended on what its predecessors left."""
        also = (*(("canceled",) if row.id in self.to_cancel else ()), *(("failed",) if row.amount in POISONS else ()))
        if row.type == "purchase" and (row.user, row.service) in self.bought:
            return ("rejected", *also)
        short = row.type != "deposit" and self.accounts[row.account].balance < row.amount
        return ("rejected" if short else "applied", *also)

    def post(self, row: Row) -> Iterator[Violation]:
        """Apply it in the replay."""
        if row.type == "purchase":
            self.bought.add((row.user, row.service or ""))
        sides = [(row.account, row.amount if row.type == "deposit" else -row.amount, row.version)]
        if row.type == "transfer":
            sides.append((row.counterparty or "", row.amount, row.counterparty_version))
        for account, amount, version in sides:
            book = self.accounts[account]
            book.balance, book.version = book.balance + amount, book.version + 1
            self.chain[account, book.version] = (book.balance, row.id)
            if version != book.version:
                yield Violation("wrong_version", f"{row}: {account} is at version {book.version}")

    def entered(self, entries: Iterable[Entry]) -> Iterator[Violation]:
        """The entries are those of the replay."""
        for entry in entries:
            if self.chain.get((entry.account, entry.version)) != (entry.balance_after, entry.operation):
                yield Violation("wrong_entry", f"{entry}, not {self.chain.get((entry.account, entry.version))}")

    def told(self, events: Iterable[Event]) -> Iterator[Violation]:
        """Whoever was told an outcome was told the one there is."""
        for event in events:
            for told in event.operations:
                row = self.rows.get(told.id)
                if row is None or told.status not in FINAL:
                    continue
                if told.status != row.status:
                    yield Violation("outcome_changed", f"{told} was told, and {row} is stored")
                if told.version is not None and told.account is not None:
                    yield from self.read(ToldBalance(told.account, told.version, told.balance_after or 0), event)

    def read(self, told: ToldBalance, event: Event) -> Iterator[Violation]:
        """A balance is that of the account's chain at its version, and its operation was asked for before."""
        if told.version == 0:
            if told.balance != 0:
                yield Violation("wrong_balance", f"{told}, before anything was applied")
            return
        balance, operation = self.chain.get((told.account, told.version), (None, ""))
        if balance != told.balance:
            yield Violation("wrong_balance", f"{told}, and the chain has {balance} ({operation})")
        row = self.rows.get(operation)
        if row is not None and row.tag in self.asked and self.asked[row.tag].invoked > event.completed:
            yield Violation("from_the_future", f"{told} was read before {row} was asked for")

    def reads(self, events: Iterable[Event]) -> Iterator[Violation]:
        """Nothing is older than what anybody was told before it was asked for."""
        events = [event for event in events if event.outcome == "ok"]
        completed = sorted(events, key=lambda event: event.completed)
        position = 0
        for event in sorted(events, key=lambda event: event.invoked):
            while position < len(completed) and completed[position].completed < event.invoked:
                self.remember(completed[position])
                position += 1
            for balance in event.balances:
                yield from self.read(balance, event)
                if balance.version < self.versions_told.get(balance.account, 0):
                    at_least = self.versions_told[balance.account]
                    yield Violation("stale_read", f"{balance}, after version {at_least} was told")
            for told in event.operations:
                if told.status not in FINAL and told.id in self.finished_told:
                    yield Violation("stale_read", f"{told}, after its end was told")
        for event in completed[position:]:
            self.remember(event)

    def remember(self, event: Event) -> None:
        """From now on everybody is told at least this."""
        for balance in event.balances:
            self.told_version(balance.account, balance.version)
        for told in event.operations:
            if told.status in FINAL:
                self.finished_told.add(told.id)
                self.told_outcome(told)

    def told_outcome(self, told: ToldOperation) -> None:
        """An applied operation shows the versions of both its accounts."""
        row = self.rows.get(told.id)
        if row is not None and row.status == "applied" and told.status == "applied":
            self.told_version(row.account, row.version or 0)
            if row.counterparty:
                self.told_version(row.counterparty, row.counterparty_version or 0)

    def told_version(self, account: str, version: int) -> None:
        """An account's version was told."""
        self.versions_told[account] = max(version, self.versions_told.get(account, 0))


def matches(item: Item, row: Row) -> bool:
    """Whether the stored operation is what was asked for; a purchase's amount is the service's price."""
    return (
        (row.user, row.type, row.service) == (item.user, item.type, item.service)
        and item.amount in (None, row.amount)
        and item.to_account in (None, row.counterparty)
    )
