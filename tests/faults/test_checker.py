"""The checker passes a lawful history, and finds each kind of lie in a fabricated one."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checker import Checker
from chaos.history import Entry, Event, Item, Row, ToldBalance, ToldOperation
from chaos.poison import RAISE

ALICE, BOB = "alice's", "bob's"  # their accounts; users are named without the 's


class History:
    """Alice deposits 100, pays Bob 30, and fails to pay him 500; then both look."""

    def __init__(self) -> None:
        self.events = [
            submit(1.0, 2.0, Item("a", "alice", "deposit", 100), "1", "applied", 1, ALICE, 1, 100),
            submit(3.0, 4.0, Item("b", "alice", "transfer", 30, BOB), "2", "pending", 2, ALICE),
            submit(5.0, 6.0, Item("c", "alice", "transfer", 500, BOB), "3", "rejected", 3, ALICE),
            Event("read", 7.0, 8.0, "ok", balances=[ToldBalance(ALICE, 2, 70)]),
            Event("read", 9.0, 10.0, "ok", balances=[ToldBalance(BOB, 1, 30)]),
            Event("read", 11.0, 12.0, "ok", operations=[told("2", "b", "applied", 2, ALICE, 2, 70)]),
            Event("submit", 13.0, 14.0, "refused", "503", [Item("d", "alice", "deposit", 1)]),
            Event("submit", 13.0, 14.0, "unknown", "gone", [Item("e", "alice", "deposit", 1)]),
        ]
        self.rows = [
            Row("1", "alice", 1, "a", "deposit", 100, ALICE, None, None, "applied", 1, 1, None),
            Row("2", "alice", 2, "b", "transfer", 30, ALICE, BOB, None, "applied", 2, 2, 1),
            Row("3", "alice", 3, "c", "transfer", 500, ALICE, BOB, None, "rejected", 3, None, None),
        ]
        self.entries = [Entry(ALICE, 1, 100, 100, "1"), Entry(ALICE, 2, -30, 70, "2"), Entry(BOB, 1, 30, 30, "2")]

    def rules_broken(self) -> set[str]:
        """The names of the rules that the checker finds broken."""
        checker = Checker()
        return {violation.rule for violation in checker.check(self.events, self.rows, self.entries)}

    def change(self, place: int, **changes: Any) -> None:
        """Change a row."""
        self.rows[place] = dataclasses.replace(self.rows[place], **changes)


def told(id: str, tag: str, status: str, seq: int, account: str, version: Any = None, after: Any = None) -> Any:
    return ToldOperation(id, status, tag, seq, account, version, after)


def submit(invoked: float, completed: float, item: Item, *answer: Any) -> Event:
    id_, *rest = answer
    return Event("submit", invoked, completed, "ok", items=[item], operations=[told(id_, item.tag, *rest)])


def test_a_lawful_history_passes():
    assert History().rules_broken() == set()


def test_what_is_unknown_may_be_stored_or_not():
    history = History()
    history.rows.append(Row("5", "alice", 4, "e", "deposit", 1, ALICE, None, None, "applied", 4, 3, None))
    history.entries.append(Entry(ALICE, 3, 1, 71, "5"))
    assert history.rules_broken() == set()


def lose(history: History) -> None:
    del history.rows[2]


def double(history: History) -> None:
    history.rows.append(dataclasses.replace(history.rows[2], id="4", seq=4, apply_no=4))


def double_by_answer(history: History) -> None:
    history.events.append(submit(20.0, 21.0, history.events[2].items[0], "2", "applied", 2, ALICE))


def store_refused(history: History) -> None:
    history.rows.append(Row("4", "alice", 4, "d", "deposit", 1, ALICE, None, None, "applied", 4, 3, None))


def invent(history: History) -> None:
    history.rows.append(Row("4", "alice", 4, "z", "deposit", 1, ALICE, None, None, "applied", 4, 3, None))


def answer_500(history: History) -> None:
    history.events.append(Event("read", 20.0, 21.0, "unlawful", "500"))


def reorder(history: History) -> None:
    history.change(1, seq=3)
    history.change(2, seq=2)


def apply_out_of_order(history: History) -> None:
    history.rows[1:] = [
        dataclasses.replace(history.rows[2], apply_no=2),
        dataclasses.replace(history.rows[1], apply_no=3),
    ]


def read_stale(history: History) -> None:
    history.events.append(Event("read", 20.0, 21.0, "ok", balances=[ToldBalance(ALICE, 1, 100)]))


def read_pending_after_the_end(history: History) -> None:
    history.events.append(Event("read", 20.0, 21.0, "ok", operations=[told("1", "a", "pending", 1, ALICE)]))


def read_torn(history: History) -> None:
    history.events.append(Event("read", 20.0, 21.0, "ok", balances=[ToldBalance(ALICE, 2, 100)]))


def read_the_future(history: History) -> None:
    history.events.append(Event("read", 1.5, 1.6, "ok", balances=[ToldBalance(ALICE, 2, 70)]))


def tell_another_outcome(history: History) -> None:
    history.events.append(Event("read", 20.0, 21.0, "ok", operations=[told("3", "c", "applied", 3, ALICE)]))


def fail_without_poison(history: History) -> None:
    history.change(2, status="failed")


def cancel_unasked(history: History) -> None:
    history.change(2, status="canceled")


def overdraw(history: History) -> None:
    history.change(2, status="applied", version=3, counterparty_version=2)


def leave_pending(history: History) -> None:
    history.change(2, status="pending", apply_no=None)


def alter(history: History) -> None:
    history.change(1, amount=31)


def skip_a_version(history: History) -> None:
    history.change(1, version=3)


def forge_an_entry(history: History) -> None:
    history.entries[1] = dataclasses.replace(history.entries[1], balance_after=71)


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        (lose, "lost"),
        (double, "doubled"),
        (double_by_answer, "doubled"),
        (store_refused, "refused_but_stored"),
        (invent, "invented"),
        (answer_500, "unlawful_answer"),
        (reorder, "reordered"),
        (apply_out_of_order, "out_of_order"),
        (read_stale, "stale_read"),
        (read_pending_after_the_end, "stale_read"),
        (read_torn, "wrong_balance"),
        (read_the_future, "from_the_future"),
        (tell_another_outcome, "outcome_changed"),
        (fail_without_poison, "unjustified"),
        (cancel_unasked, "unjustified"),
        (overdraw, "unjustified"),
        (leave_pending, "unfinished"),
        (alter, "altered"),
        (skip_a_version, "wrong_version"),
        (forge_an_entry, "wrong_entry"),
    ],
)
def test_it_finds(lie: Callable[[History], None], rule: str):
    history = History()
    lie(history)
    assert rule in history.rules_broken()


def test_poison_may_fail_and_what_was_taken_back_may_be_canceled():
    history = History()
    history.events[2] = submit(5.0, 6.0, Item("c", "alice", "deposit", RAISE), "3", "failed", 3, ALICE)
    history.change(2, type="deposit", amount=RAISE, counterparty=None, status="failed")
    assert history.rules_broken() == set()
    history = History()
    history.events[2] = submit(5.0, 6.0, Item("c", "alice", "transfer", 500, BOB), "3", "pending", 3, ALICE)
    history.events.append(Event("cancel", 6.0, 6.5, "ok", canceled="3"))
    history.change(2, status="canceled")
    assert history.rules_broken() == set()


def test_rounds_follow_each_other():
    history, checker = History(), Checker()
    assert checker.check(history.events, history.rows, history.entries) == []
    later = [Event("read", 20.0, 21.0, "ok", balances=[ToldBalance(BOB, 0, 0)])]
    assert [violation.rule for violation in checker.check(later, [], [])] == ["stale_read"]


def test_a_hundred_thousand_events_take_seconds():
    """The time is shown, and bounded only against what is quadratic."""
    checker, events, rows, entries = Checker(), [], [], []
    for number in range(1, 50_001):
        item, at = Item(str(number), "alice", "deposit", 1), number * 10.0
        events.append(submit(at, at + 1, item, str(number), "applied", number, ALICE, number, number))
        events.append(Event("read", at + 2, at + 3, "ok", balances=[ToldBalance(ALICE, number, number)]))
        rows.append(
            Row(
                str(number), "alice", number, item.tag, "deposit", 1, ALICE, None, None, "applied", number, number, None
            )
        )
        entries.append(Entry(ALICE, number, 1, number, str(number)))
    started = time.monotonic()
    assert checker.check(events, rows, entries) == []
    print(f"{len(events):,} events checked in {time.monotonic() - started:.1f} s")
    assert time.monotonic() - started < 120
