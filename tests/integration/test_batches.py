"""Batches: each user's operations as far as there is room for them, and none of one who is disabled."""

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from core import batches
from core.acceptance import accept
from core.limits import Limits
from core.operations import Command
from tests.integration.conftest import Bank, User, aside, until

ROOM = 4  # unfinished operations of a user


def hand_in(bank: Bank, users: Sequence[User], room: int = ROOM) -> tuple[list[str], batches.Stored]:
    """A batch of one deposit for each of them, in this order. Returns what became of each, and the whole."""
    commands = {
        place: Command(type="deposit", user_id=user.id, requested_by=users[0].id, amount=1)
        for place, user in enumerate(users)
    }
    limits = Limits(bank.autocommit, bank.engine, user_pending=room, pending=100_000, pending_seconds=60)
    with bank.engine.begin() as connection:
        stored = batches.accept(connection, commands, {}, batches.Header(users[0].id, None, None), limits)
    assert stored.document is not None
    return [item["errors"][0]["code"] if "errors" in item else "accepted" for item in stored.document["items"]], stored


def places(bank: Bank, user: User) -> list[tuple[int, int]]:
    """The `seq` and turns of the user's operations, and last the numbers that the user's row has come to."""
    taken = "SELECT seq, turn FROM operations o JOIN queue ON operation_id = o.id WHERE user_id = :id ORDER BY seq"
    return [*bank.rows(taken, id=user.id), *bank.rows("SELECT next_seq, turn FROM users WHERE id = :id", id=user.id)]


def test_of_each_user_so_many_are_accepted_as_there_is_room_for(bank: Bank):
    free, nearly_full, full = bank.user(), bank.user(), bank.user()
    hand_in(bank, [nearly_full] * (ROOM - 2) + [full] * ROOM)
    became, stored = hand_in(bank, [free, nearly_full, full] * 3 + [free])
    crowded = "too_many_pending"
    assert became == [*["accepted", "accepted", crowded] * 2, "accepted", crowded, crowded, "accepted"]
    assert stored.own_room == 0
    for user in (free, nearly_full, full):
        consecutive = [(number, number) for number in range(1, ROOM + 1)]
        assert places(bank, user) == [*consecutive, consecutive[-1]]
    bank.drain()
    assert [bank.balance(user) for user in (free, nearly_full, full)] == [ROOM] * 3


def test_who_has_more_unfinished_than_there_is_room_for_now_keeps_them(bank: Bank):
    alice = bank.user()
    hand_in(bank, [alice] * ROOM)
    before = places(bank, alice)
    became, stored = hand_in(bank, [alice], room=ROOM - 2)
    assert (became, stored.own_room) == (["too_many_pending"], 0)
    assert places(bank, alice) == before


@pytest.mark.parametrize(
    ("pending", "meanwhile", "asked", "accepted"),
    [
        pytest.param(0, 1, 2, 2, id="room for all is still there"),
        pytest.param(1, 2, 3, 1, id="room for all has become room for some"),
        pytest.param(1, 3, 2, 0, id="room for all has become none"),
        pytest.param(2, 1, 4, 1, id="room for some has become less"),
        pytest.param(2, 2, 4, 0, id="room for some has become none"),
        pytest.param(2, 9, 4, 0, id="there is less than no room"),
        pytest.param(0, "disabled_at = now()", 2, 0, id="disabled, with room"),
        pytest.param(2, "disabled_at = now()", 4, 0, id="disabled, without"),
        pytest.param(1, "turn = turn", 3, 3, id="nothing that matters, with room"),
        pytest.param(2, "turn = turn", 4, 2, id="nothing that matters, without"),
    ],
)
def test_a_batch_that_waits_for_a_user_reckons_with_what_has_happened_meanwhile(
    bank: Bank, pending: int, meanwhile: Any, asked: int, accepted: int
):
    alice, bob = bank.user(), bank.user()
    hand_in(bank, [bob] * pending or [alice])
    with bank.held("SELECT FROM users WHERE id = :id FOR UPDATE", id=bob.id) as holder:
        batch = aside(lambda: hand_in(bank, [alice] + [bob] * asked))
        until(lambda: bank.waiting_for_lock("kassa-tests"))
        if isinstance(meanwhile, str):
            holder.execute(sa.text(f"UPDATE users SET {meanwhile} WHERE id = :id"), {"id": bob.id})
        else:
            for _ in range(meanwhile):
                accept(holder, Command(type="deposit", user_id=bob.id, requested_by=bob.id, amount=1))
    became, _ = batch.result(10)
    refused = "user_disabled" if "disabled" in str(meanwhile) else "too_many_pending"
    assert became == ["accepted"] * (1 + accepted) + [refused] * (asked - accepted)
    before = pending + (meanwhile if isinstance(meanwhile, int) else 0)
    assert places(bank, bob)[pending:] == [(seq, seq) for seq in range(pending + 1, before + accepted + 1)] + [
        (before + accepted, before + accepted)
    ]


def test_the_sender_is_told_how_much_room_is_left(bank: Bank):
    alice, bob = bank.user(), bank.user()
    assert hand_in(bank, [alice, bob, bob])[1].own_room == ROOM - 1
    assert hand_in(bank, [alice, bob, bob])[1].own_room == ROOM - 2


@pytest.mark.parametrize("operations", [1, ROOM + 1], ids=["with room", "without"])
def test_a_disabled_user_has_none_accepted(bank: Bank, operations: int):
    alice, bob = bank.user(), bank.user()
    bank.execute("UPDATE users SET disabled_at = now() WHERE id = :id", id=bob.id)
    became, stored = hand_in(bank, [alice] + [bob] * operations)
    assert became == ["accepted"] + ["user_disabled"] * operations
    assert stored.accepted == {"deposit": 1}
    assert places(bank, bob)[-1][0] == 0


def test_a_batch_has_its_own_operations_and_no_others(bank: Bank):
    alice, bob = bank.user(), bank.user()
    _, first = hand_in(bank, [alice, bob, alice])
    bank.accept(bob)
    hand_in(bank, [bob])
    bank.execute("UPDATE batches SET last_operation_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff'")
    with bank.engine.connect() as connection:
        items = batches.items(connection, batches.find(connection, first.batch_id))
    assert first.document is not None
    assert items == first.document["items"]
