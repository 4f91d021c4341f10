"""What a drain tells those who wait, with its commit: PostgreSQL's notification, and in it what became of operations.

PostgreSQL delivers it when the transaction has committed, and not otherwise. It is a hint, as a bell is: it may be
lost with a connection, and where it would be too long it only says that there is something to look for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

CHANNEL = "kassa_finished"
BYTES_MAX = 7_900  # PostgreSQL's own limit is 8,000
OPERATIONS_MAX = 90  # that is how many have room there


class Finished(NamedTuple):
    """What has changed on an operation since it was accepted, in the columns of `views.FINISHED`."""

    id: str
    status: str
    rejection: Any  # as JSON, or read already
    account_version: int | None
    counterparty_version: int | None
    balance_after: int | None
    counterparty_balance_after: int | None


class Notice(NamedTuple):
    """A drain's notice; `finished` is None where they are too many to tell."""

    finished_at: datetime
    finished: list[Finished] | None


def payload(finished: Sequence[Finished]) -> str:
    """As JSON, or null; `ledger.WRITE` adds when."""
    told = msgspec.json.encode(finished).decode() if len(finished) <= OPERATIONS_MAX else "null"
    return told if len(told) <= BYTES_MAX else "null"


def read(text: str) -> Notice:
    """The notice. Raises msgspec.ValidationError or DecodeError where it is none of ours."""
    return decoder.decode(text)


decoder = msgspec.json.Decoder(Notice)
