"""The real acceptance, drain and schema do what a ledger in dicts does, after every step of any sequence of steps.

`make test` runs some sequences, the same ones each time; `make model` a hundred thousand new ones.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from core import batches
from core.errors import Refusal
from core.ids import new_id
from core.operations import Command
from core.reconcile import violations
from tests.conftest import TEMPLATE, create_database
from tests.model.universe import Bank, expected

SEQUENCES = int(os.environ.get("MODEL_SEQUENCES", "0"))  # 0: the short budget, always the same sequences
SHORT_SEQUENCES = 400
ROUND_SEQUENCES = 200  # between two lines of progress
STEPS_MAX = 15

place = st.integers(0, 11)  # of a user, an account, an operation ...: taken modulo how many there are
key = st.sampled_from([None, None, None, "a", "b"])
asked = st.tuples(
    st.sampled_from(["deposit", "withdrawal", "transfer", "transfer", "purchase", "purchase"]),
    place,  # whose
    st.sampled_from([1, 5, 100, 150, 10**15]),
    st.one_of(st.none(), st.none(), place),  # about which account: mostly the default one
    st.sampled_from(["to_user_id", "to_username", "to_account_id"]),
    place,  # to whom, or which service
    key,
)


class Model(RuleBasedStateMachine):
    """Every step is done to the real bank and to the ledger in dicts, and then the two are compared."""

    bank: Bank
    done = 0

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.users = self.bank.begin()
        self.service_user = new_id()
        self.batches: dict[str, list[Command]] = {}
        self.commands: list[Command] = []
        for user in self.users:  # with nothing to spend, most sequences would show one rejection only
            self.submit(Command(type="deposit", user_id=user, requested_by=user, amount=400))

    def command(self, wanted: Any, *, single: bool = True) -> Command:
        """What was drawn, with the ids of this universe; the last place of each kind is a stranger."""
        kind, whose, amount, account, how, whom, used = wanted
        ledger, user = self.ledger, self.users[whose % 3]
        fields: dict[str, Any] = {"type": kind, "user_id": user, "requested_by": user, "amount": amount}
        if account is not None:
            fields["account_id"] = pick([*ledger.accounts, new_id()], account)
        if kind == "purchase":
            fields |= {"amount": 0, "service_id": pick([*ledger.services, new_id()], whom)}
        if kind == "transfer":
            names = [one["name"].upper() for one in ledger.users.values()]
            known = {"to_user_id": self.users, "to_username": names, "to_account_id": list(ledger.accounts)}
            fields[how] = pick([*known[how], new_id()], whom)
        return Command(**fields, idempotency_key=used if single else None)

    @rule(wanted=st.lists(asked, min_size=1, max_size=4))
    def hand_in(self, wanted: list[Any]) -> None:
        for one in wanted:
            self.submit(self.command(one))

    @rule(which=place)
    def retry(self, which: int) -> None:
        if self.commands:
            self.submit(pick(self.commands, which))

    def submit(self, command: Command) -> None:
        """One command to both: the same receipt, the same replay, or the same refusal."""
        self.commands.append(command)
        name = (command.user_id, command.idempotency_key or "")
        before = self.ledger.keys.get(name) if command.idempotency_key else None
        reused = before is not None and before[0] != command
        refusal = "idempotency_key_reused" if reused else None if before else self.ledger.refusal(command)
        if refusal:
            with pytest.raises(Refusal) as refused:
                self.bank.accept(command)
            assert refused.value.code == refusal
            return
        accepted = self.bank.accept(command)
        assert accepted.replayed == (before is not None)
        if before is not None:
            assert accepted.row.id == before[1]
            return
        self.ledger.accept(command, accepted.row.id)
        if command.idempotency_key:
            self.ledger.keys[name] = (command, accepted.row.id)

    @rule(wanted=st.lists(asked.filter(lambda one: one[0] != "purchase"), min_size=1, max_size=5), used=key)
    def hand_in_batch(self, wanted: list[Any], used: str | None) -> None:
        commands = [self.command(one, single=False) for one in wanted]
        self.submit_batch(commands, used)

    @rule(used=st.sampled_from(["a", "b"]))
    def retry_batch(self, used: str) -> None:
        if used in self.batches:
            self.submit_batch(self.batches[used], used)

    def submit_batch(self, commands: list[Command], used: str | None) -> None:
        """A batch to both: each item accepted or refused alike."""
        before = self.batches.get(used) if used else None
        header = batches.Header(self.service_user, used, None)
        if before not in (None, commands):
            with pytest.raises(Refusal, match="idempotency_key_reused"):
                self.bank.accept_batch(commands, header)
            return
        replayed, items = self.bank.accept_batch(commands, header)
        assert replayed == (before is not None)
        if before is not None:
            return
        for command, item in zip(commands, items, strict=True):
            refusal = self.ledger.refusal(command)
            assert [error["code"] for error in item.get("errors", [])] == ([refusal] if refusal else [])
            if not refusal:
                self.ledger.accept(command, item["id"])
        if used:
            self.batches[used] = commands

    @rule(lane=place, limit=st.integers(1, 6))
    def drain(self, lane: int, limit: int) -> None:
        next_ones = self.ledger.pending(pick(list(self.ledger.lanes), lane))[:limit]
        assert self.bank.drain(pick(list(self.ledger.lanes), lane), limit) == len(next_ones)
        for operation in next_ones:
            self.ledger.finish(operation)

    @rule(lanes=st.sampled_from([(0, 1), (1, 0), (0, 0), (1, 1)]))
    def drain_at_once(self, lanes: tuple[int, int]) -> None:
        """Each lane in its order, the lanes as it happened: by `apply_no`."""
        drained = [list(self.ledger.lanes)[lane] for lane in lanes]
        queues = {lane: self.ledger.pending(lane) for lane in drained}
        self.bank.drain_at_once(drained)
        found = self.bank.state(self.ledger)["operations"]
        fresh = {operation for queue in queues.values() for operation in queue}
        order = sorted(fresh, key=lambda operation: found[operation][-1])
        for lane, queue in queues.items():
            assert [operation for operation in order if self.ledger.operations[operation]["lane"] == lane] == queue
        for operation in order:
            self.ledger.finish(operation)

    @rule(which=place)
    def cancel(self, which: int) -> None:
        if self.ledger.operations:
            operation = pick(list(self.ledger.operations), -which)
            one = self.ledger.operations[operation]
            self.bank.cancel(operation, one["lane"])
            one["cancel"] = one["cancel"] or one["status"] == "pending"

    @rule(whose=place, currency=st.sampled_from(["RUB", "USD", "CHF"]))
    def open_account(self, whose: int, currency: str) -> None:
        user = self.users[whose % 3]
        account = self.bank.open(user, currency)
        if account not in self.ledger.accounts:
            self.ledger.open(user, currency, account)

    @rule(which=place, closed=st.booleans())
    def close_account(self, which: int, closed: bool) -> None:
        account = pick([id for id, one in self.ledger.accounts.items() if one["kind"] == "main"], which)
        self.bank.execute(
            "UPDATE accounts SET closed_at = CASE WHEN :x THEN now() END WHERE id = :id", x=closed, id=account
        )
        self.ledger.accounts[account]["closed"] = closed

    @rule(whose=place, disabled=st.booleans())
    def disable_user(self, whose: int, disabled: bool) -> None:
        user = self.users[whose % 3]
        self.bank.execute(
            "UPDATE users SET disabled_at = CASE WHEN :x THEN now() END WHERE id = :id", x=disabled, id=user
        )
        self.ledger.users[user]["disabled"] = disabled

    @rule(which=place, price=st.sampled_from([1, 50, 150, 250]), active=st.booleans())
    def change_service(self, which: int, price: int, active: bool) -> None:
        service = pick(list(self.ledger.services), which)
        self.bank.execute("UPDATE services SET price = :p, active = :a WHERE id = :id", p=price, a=active, id=service)
        self.ledger.services[service].update(price=price, active=active)

    @invariant()
    def same(self) -> None:
        found = self.bank.state(self.ledger)
        numbers = {id: facts.pop() for id, facts in found["operations"].items()}
        for kind, wanted in expected(self.ledger):
            assert found[kind] == wanted, kind
        finished = sorted((number, id) for id, number in numbers.items() if number is not None)
        assert [id for _, id in finished] == self.ledger.applied

    def teardown(self) -> None:
        """Whatever is pending is applied, and every truth holds of this universe."""
        self.drain_at_once((0, 1))
        self.same()
        assert self.bank.broken(self.ledger) == []
        Model.done += 1


def pick(known: list[Any], which: int) -> Any:
    """The element at a place, counted round and round."""
    return known[which % len(known)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Drains log each batch, which nobody would read here."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.fixture
def bank(servers: Any) -> Iterator[Bank]:
    made = Bank(create_database(servers, "model", TEMPLATE))
    yield made
    made.close()


def test_kassa_agrees_with_a_ledger_in_dicts(bank: Bank):
    Model.bank, Model.done, began = bank, 0, time.monotonic()
    first_seed = int.from_bytes(os.urandom(4), "big") if SEQUENCES else 0
    for number, size in enumerate(rounds()):
        budget = settings(
            max_examples=size,
            stateful_step_count=STEPS_MAX,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(first_seed + number)(Model), settings=budget)
        rate = Model.done / (time.monotonic() - began)
        print(f"{Model.done} sequences, {rate:.1f}/s, seed {first_seed + number}", file=sys.stderr, flush=True)
    assert violations(bank.engine) == []


def rounds() -> list[int]:
    """How many sequences to run at a time."""
    whole, rest = divmod(SEQUENCES or SHORT_SEQUENCES, ROUND_SEQUENCES)
    return [ROUND_SEQUENCES] * whole + [rest] * bool(rest)
