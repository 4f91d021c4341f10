"""What is read for several who ask at the same time: to each their own."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from api.dependencies import reading_together
from core import db, views
from core.ids import new_id
from core.views import Asked
from tests.integration.conftest import Bank, User

Find = Callable[[sa.Connection, Sequence[Asked]], list[Any]]


def id_of(bank: Bank, find: Find, user: User) -> str:
    """The user's account, or an operation of theirs."""
    return user.account_id if find is views.find_accounts_for else str(bank.accept(user).row.id)


@pytest.mark.parametrize("find", [views.find_accounts_for, views.find_operations_for])
def test_each_is_told_what_they_asked_for_in_their_own_role(bank: Bank, find: Find):
    alice, bob, auditor, gone, disabled = (bank.user() for _ in range(5))
    session = {user.id: bank.session(user) for user in (alice, bob, auditor, gone, disabled)}
    wanted = {user.id: id_of(bank, find, user) for user in (alice, bob, gone, disabled)}
    bank.execute("UPDATE users SET role = 'auditor' WHERE id = :id", id=auditor.id)
    bank.execute("UPDATE users SET disabled_at = clock_timestamp() WHERE id = :id", id=disabled.id)
    bank.execute("UPDATE sessions SET ended_at = clock_timestamp() WHERE user_id = :id", id=gone.id)
    nothing, nobody = (None, None), None
    told: list[tuple[Asked, tuple[str | None, str | None] | None, str]] = [
        (Asked(session[alice.id], alice.id, wanted[alice.id]), (wanted[alice.id], alice.id), "user"),
        (Asked(session[alice.id], alice.id, wanted[alice.id]), (wanted[alice.id], alice.id), "user"),
        (Asked(session[bob.id], bob.id, wanted[bob.id]), (wanted[bob.id], bob.id), "user"),
        (Asked(session[bob.id], bob.id, wanted[alice.id]), (wanted[alice.id], alice.id), "user"),
        (Asked(session[auditor.id], auditor.id, wanted[alice.id]), (wanted[alice.id], alice.id), "auditor"),
        (Asked(session[bob.id], bob.id, new_id()), nothing, "user"),
        (Asked(session[gone.id], gone.id, wanted[gone.id]), nobody, ""),
        (Asked(session[disabled.id], disabled.id, wanted[disabled.id]), nobody, ""),
        (Asked(session[bob.id], alice.id, wanted[alice.id]), nobody, ""),
        (Asked(new_id(), alice.id, wanted[alice.id]), nobody, ""),
    ]
    if find is views.find_accounts_for:
        told.append((Asked(session[bob.id], bob.id, None), (bob.account_id, bob.id), "user"))
        told.append((Asked(session[gone.id], gone.id, None), nobody, ""))
    random.Random(1).shuffle(told)
    with bank.autocommit.connect() as connection:
        rows = find(connection, [asked for asked, _, _ in told])
        alone = [find(connection, [asked])[0] for asked, _, _ in told]
    assert [row and (row.id, row.user_id) for row in rows] == [expected for _, expected, _ in told]
    assert [row and row.caller_role for row in rows] == [role or None for _, _, role in told]
    assert [row and row[1:] for row in rows] == [row and row[1:] for row in alone], "all but the place"


def test_a_read_whose_connection_is_lost_is_made_once_more(bank: Bank):
    losses: list[int] = []

    def find(connection: sa.Connection, asked: Sequence[Asked]) -> list[Any]:
        if losses:
            losses.pop()
            db.Prepared("end_of_this_connection", [], "SELECT pg_terminate_backend(pg_backend_pid())").rows(
                connection, ()
            )
        return [each.id for each in asked]

    reads = reading_together(bank.autocommit, find)
    losses[:] = [1]
    assert reads.ask(Asked("", "", "it")) == "it"
    losses[:] = [1, 1]
    with pytest.raises(sa.exc.OperationalError):
        reads.ask(Asked("", "", "it"))
    assert losses == []
