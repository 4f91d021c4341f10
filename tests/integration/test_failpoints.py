"""Every statement of accepting and of applying, struck before and after it: the process killed, its connection torn, a
long pause.

Whatever happens, an operation is there whole or not at all, is applied once in the end, and the ledger reconciles.
`make failpoints` takes every case, and names it; otherwise each statement is struck in one way before and in another
after it, and a commit is cut at some of its bytes.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from chaos.tap import BEGIN_HERE, Tap, When
from core import acceptance, batches, db
from core.acceptance import Asker
from core.gathering import Gathering
from core.ids import new_id
from core.limits import Limits
from core.operations import Command
from tests.integration.conftest import Bank, User, until
from worker.drain import drain

ALL = os.environ.get("FAILPOINTS") == "all"
ACTIONS = ("kill", "tear", "pause")
STRUCK: tuple[When, ...] = ("before", "after")
CUT: tuple[When, ...] = ("within", "answering")
EDGE_BYTES = 24  # of a long statement or answer: its beginning and its end
PAUSE_SECONDS = 0.05
PRICE, RICH = 10, 1_000


@dataclass
class Case:
    """What one case works on: users of its own on lane 0, the sender rich."""

    bank: Bank
    sender: User
    receiver: User
    service: str
    session: str
    key: str = field(default_factory=new_id)

    def command(self, kind: str, **fields: object) -> Command:
        """By the sender."""
        common = {"user_id": self.sender.id, "requested_by": self.sender.id, "amount": 3}
        return Command(type=kind, **(common | fields))  # type: ignore[arg-type]


def alone(case: Case, engine: sa.Engine) -> None:
    with db.autocommit(engine).connect() as connection:
        command = case.command("purchase", amount=0, service_id=case.service, idempotency_key=case.key)
        acceptance.accept(connection, command)


def group(case: Case, engine: sa.Engine) -> None:
    reader = db.autocommit(engine)
    limits = Limits(reader, engine, user_pending=100, pending=100_000, pending_seconds=60)
    asker = Asker(case.session, ("user",), lambda _: None)
    command = case.command("transfer", to_user_id=case.receiver.id, idempotency_key=case.key)
    Gathering(reader, limits).accept(command, asker)


def group_near_the_limit(case: Case, engine: sa.Engine) -> None:
    reader = db.autocommit(engine)
    limits = Limits(reader, engine, user_pending=100, pending=50, pending_seconds=60)
    asker = Asker(case.session, ("user",), lambda _: None)
    Gathering(reader, limits).accept(case.command("deposit", idempotency_key=case.key), asker)


def batch(case: Case, engine: sa.Engine) -> None:
    commands = [case.command("deposit"), case.command("transfer", to_account_id=case.receiver.account_id)]
    limits = Limits(db.autocommit(engine), engine, user_pending=100, pending=100_000, pending_seconds=60)
    with engine.begin() as connection:
        header = batches.Header(case.sender.id, case.key, None)
        batches.accept(connection, dict(enumerate(commands)), {}, header, limits)


def cancel(case: Case, engine: sa.Engine) -> None:
    [(operation_id,)] = case.bank.rows("SELECT id FROM operations WHERE idempotency_key = :key", key=case.key)
    with engine.begin() as connection:
        acceptance.request_cancellation(connection, operation_id, 0)


def apply(case: Case, engine: sa.Engine) -> None:
    drain(engine, 0, others=True)


def hand_in_all(case: Case) -> None:
    alone(case, case.bank.engine)
    case.bank.accept(case.sender, "transfer", 5, to_user_id=case.receiver.id)
    case.bank.accept(case.sender, "withdrawal", 10 * RICH)


def nothing(case: Case) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Road:
    """What is struck, and what must come of it: how many operations there are in the end, and how they end."""

    act: Callable[[Case, sa.Engine], None]
    prepare: Callable[[Case], None]
    ends: tuple[list[str], ...]
    statements: frozenset[str]


ROADS = {
    "purchase": Road(alone, nothing, (["applied"],), frozenset({"EXECUTE accept_0"})),
    "group": Road(group, nothing, (["applied"],), frozenset({"EXECUTE load_lock_if_free_0", "EXECUTE accept_group_0"})),
    "group near the limit": Road(
        group_near_the_limit, nothing, (["applied"],), frozenset({"EXECUTE load_lock_0", "EXECUTE accept_group_0"})
    ),
    "batch": Road(
        batch, nothing, (["applied"] * 2,), frozenset({"EXECUTE load_note_0", "EXECUTE accept_batch_0", "COMMIT"})
    ),
    "cancel": Road(
        cancel,
        lambda case: alone(case, case.bank.engine),
        (["applied"], ["canceled"]),
        frozenset({"UPDATE operations", "COMMIT"}),
    ),
    "drain": Road(
        apply,
        hand_in_all,
        (["applied", "applied", "rejected"],),
        frozenset(
            {"EXECUTE lock_lanes_0", "EXECUTE pending_0", "EXECUTE lock_accounts_0", "INSERT INTO purchases"}
            | {"EXECUTE write_outcomes_0", "COMMIT"}
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(ROADS))
def test_whatever_strikes_it_is_there_whole_or_not_at_all(bank: Bank, name: str):
    road = ROADS[name]
    with Tap(port_of(bank)) as tap:
        assert play(bank, road, tap, "")
    statements = list(tap.statements)
    for expected in road.statements:
        assert any(expected in statement for statement in statements), f"{expected} is not among {statements}"
    for number, statement in enumerate(statements):
        for place, when in enumerate(STRUCK):
            for action in ACTIONS if ALL else [ACTIONS[(number + place) % 3]]:
                print(f"{name}: {action} {when} statement {number}: {statement.split()[:3]}")
                with Tap(port_of(bank), number, when) as tap:
                    acknowledged = play(bank, road, tap, action)
                assert len(tap.statements) > number, "it was never reached"
                assert acknowledged or action != "pause", "a pause is no failure"


COMMITS = {"group": "EXECUTE accept_group_0", "batch": "COMMIT", "cancel": "COMMIT", "drain": "COMMIT"}


@pytest.mark.parametrize("name", sorted(COMMITS))
def test_a_commit_that_is_cut_at_any_byte_is_whole_or_nothing(bank: Bank, name: str):
    with Tap(port_of(bank)) as tap:
        assert play(bank, ROADS[name], tap, "")
    [*_, number] = (n for n, statement in enumerate(tap.statements) if statement.startswith(COMMITS[name]))
    for when, size in zip(CUT, tap.sizes[number], strict=True):
        for cut in edges(size)[:: 1 if ALL else 9]:
            print(f"{name}: cut {when} statement {number}, {cut} of {size} bytes: {COMMITS[name]}")
            with Tap(port_of(bank), number, when, cut=cut) as tap:
                acknowledged = play(bank, ROADS[name], tap, "")
            assert len(tap.statements) > number, "it was never reached"
            assert not acknowledged or (when, cut) == ("answering", size)


def edges(size: int) -> list[int]:
    """The numbers of bytes that get through: all, or, of what is long, those at its beginning and its end."""
    return [cut for cut in range(size, -1, -1) if min(cut, size - cut) <= EDGE_BYTES]


def play(bank: Bank, road: Road, tap: Tap, action: str) -> bool:
    """One case. Returns whether the child was told that it went well."""
    case = new_case(bank)
    road.prepare(case)
    before = bank.statuses(case.sender)
    bank.execute("UPDATE load SET counted_at = 'epoch'")  # so that every case counts what waits
    url = bank.engine.url.set(port=tap.port)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine = db.engine(url.render_as_string(hide_password=False), "failing", 2)
            with engine.connect() as connection:
                connection.exec_driver_sql(BEGIN_HERE)
            road.act(case, engine)
            code = 0
        finally:
            os._exit(code)

    def strike() -> bool:
        if action == "kill":
            os.kill(child, signal.SIGKILL)
        if action == "pause":
            time.sleep(PAUSE_SECONDS)
        return action == "pause"

    tap.act = strike
    _, status = os.waitpid(child, 0)
    acknowledged = status == 0
    until(lambda: not bank.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kassa-failing'"))
    after = bank.statuses(case.sender)
    assert after in (before, *whole(road)), "there in part"
    if acknowledged:
        assert after in whole(road)
    if road.prepare is nothing and not acknowledged:
        road.act(case, bank.engine)  # the client repeats it with the same key
    bank.drain()
    assert bank.statuses(case.sender)[1:] in road.ends
    assert bank.value("SELECT count(*) FROM operations WHERE idempotency_key = :key", key=case.key) <= 1
    return acknowledged


def whole(road: Road) -> list[list[str]]:
    """The statuses of the sender's operations where what was struck happened; the first is how the sender got rich."""
    pending = [["applied", *["pending"] * len(ends)] for ends in road.ends]
    return [*pending, *(["applied", *ends] for ends in road.ends)]


def new_case(bank: Bank) -> Case:
    """Users and a service of its own."""
    sender, receiver, service = bank.rich(RICH), bank.user(), new_id()
    bank.execute(
        "INSERT INTO services (id, name, description, price, currency) VALUES (:id, :id, '', :price, 'RUB')",
        id=service,
        price=PRICE,
    )
    return Case(bank, sender, receiver, service, bank.session(sender))


def port_of(bank: Bank) -> int:
    """Of the real server."""
    port = bank.engine.url.port
    assert port is not None
    return port
