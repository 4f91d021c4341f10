"""The nouns of the road: what a client asks for, what is stored, and how it can end. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

Type = Literal["deposit", "withdrawal", "transfer", "purchase"]
Status = Literal["pending", "applied", "rejected", "canceled", "failed"]


class Command(Struct, frozen=True, kw_only=True):
    """What a client asks for, validated. Amounts are minor units; ids are UUID strings.

    account_id: which of the user's accounts; None is the default one.
    to_*: of a transfer, exactly one of them.
    amount: of a purchase 0; the service's price becomes it at acceptance.
    """

    type: Type
    user_id: str
    requested_by: str
    amount: int = 0
    account_id: str | None = None
    to_user_id: str | None = None
    to_username: str | None = None
    to_account_id: str | None = None
    comment: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    service_id: str | None = None
    idempotency_key: str | None = None
    request_id: str | None = None


class Operation(Struct, frozen=True):
    """A pending operation, as the drain reads it.

    ticket: where its row of the queue is (ctid), which nothing moves before this transaction ends.
    """

    id: str
    user_id: str
    seq: int
    turn: int
    ticket: str
    lane: int
    type: Type
    account_id: str
    counterparty_id: str | None
    amount: int
    currency: str
    cancel_requested: bool
    request_id: str | None
    service_id: str | None = None


class Account(Struct, frozen=True):
    """An account as a decision sees it: locked, with all earlier operations applied."""

    id: str
    currency: str
    balance: int
    version: int
    is_world: bool
    closed: bool


class Shelf(Struct, frozen=True):
    """What decisions about purchases need to know: which services are off sale, and who has bought which."""

    inactive: frozenset[str] = frozenset()
    bought: set[tuple[str, str]] = field(default_factory=set)  # grows while a batch is decided


class Posting(Struct, frozen=True):
    """One side of a movement of money: what an account gains, in minor units (or loses, if negative)."""

    account_id: str
    amount: int


class Applied(Struct, frozen=True):
    """The operation moves money; the postings sum to zero."""

    postings: tuple[Posting, ...]


class Rejected(Struct, frozen=True):
    """A lawful no, with the facts that the decision saw."""

    code: str
    title: str
    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Canceled(Struct, frozen=True):
    """Its client took it back in time."""


class Failed(Struct, frozen=True):
    """A defect of ours: it moves no money and blocks nobody."""


Outcome = Applied | Rejected | Canceled | Failed
