"""What a drain tells those who wait, with its commit: PostgreSQL's notification, and in it what became of operations.

PostgreSQL delivers it when the transaction has committed, and not otherwise. It is a hint, as a bell is: it may be
lost with a connection, and where it would be too long it only says that there is something to look for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

CHANNEL = "kassa_finished"  # whoever changes Finished changes this name: workers and API may be of two versions
BYTES_MAX = 7_900  # PostgreSQL's own limit is 8,000
OPERATIONS_MAX = 80  # so many have room there, unless they were rejected


class Finished(msgspec.Struct, array_like=True, gc=False):
    """What has changed on an operation since it was accepted, in the columns of `views.FINISHED`."""

    id: str
    status: str
    rejection: str | dict[str, str | int] | None  # as JSON, or read already
    account_version: int | None
    counterparty_version: int | None
    balance_after: int | None
    counterparty_balance_after: int | None
    finished_at: datetime | None = None  # a drain does not know it yet: PostgreSQL says when


class Notice(NamedTuple):
    """As it travels: a JSON array."""

    finished_at: datetime
    finished: list[Finished] | None


def payload(finished: Sequence[Finished]) -> str:
    """The second half of a notice as JSON: null where they are too many to tell. `ledger.WRITE` adds the first."""
    told = msgspec.json.encode(finished if len(finished) <= OPERATIONS_MAX else None)
    return told.decode() if len(told) <= BYTES_MAX else "null"


def read(text: str) -> list[Finished] | None:
    """What a notice tells, None where it was too much. Raises msgspec.MsgspecError where it is none of ours."""
    notice = decoder.decode(text)
    if notice.finished is None:
        return None
    for each in notice.finished:
        each.finished_at = notice.finished_at
    return notice.finished


decoder = msgspec.json.Decoder(Notice)
