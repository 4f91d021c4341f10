"""Every answer that clients get: described once, for the OpenAPI document, and for the tests that hold it to be true.

The answers themselves are written by `core`, which does not know of this.
"""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.errors import PROBLEMS
from api.schemas import Role
from core.operations import Status, Type

Minor = Annotated[int, Meta(description="Minor units of the currency.", examples=[10050])]
Decimal = Annotated[
    str, Meta(pattern=r"\A-?\d+(\.\d+)?\Z", description="The same in major units.", examples=["100.50"])
]
Currency = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z", description="ISO 4217.", examples=["RUB"])]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339, UTC, with microseconds.")]
Number = Annotated[int, Meta(ge=0)]
Rate = Annotated[str, Meta(pattern=r"\A\d+(\.\d+)?\Z", description="Decimal.", examples=["92.5058"])]


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all answers have in common: nothing in them is undescribed."""


class FieldError(Answer, frozen=True, kw_only=True):
    """A field at fault: of the body by `pointer` (RFC 6901), of the query by `parameter`."""

    code: str
    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `code` is stable, `detail` is for people. With `"accepted": false` nothing was stored, for certain.

    Some codes bring more members with the facts, such as `limit`, `done` or `retry_after_seconds`.
    """

    type: Annotated[str, Meta(examples=["urn:kassa:problem:validation_failed"])]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    code: Literal[*PROBLEMS]  # type: ignore[valid-type]
    accepted: Literal[False] | UnsetType = UNSET
    errors: list[FieldError] | UnsetType = UNSET


class User(Answer, frozen=True, kw_only=True):
    """A user, as registration shows it."""

    id: UUID
    username: str
    email: str | None
    role: Role


class Profile(User, frozen=True, kw_only=True):
    """A user, as the user sees it."""

    first_name: str
    last_name: str
    bio: str
    created_at: Moment


class FullProfile(Profile, frozen=True, kw_only=True):
    """A user, as administrators and auditors see it."""

    disabled: bool


class Users(Answer, frozen=True, kw_only=True):
    """A page of users, oldest first."""

    items: list[FullProfile]
    next_cursor: str | None


class Tokens(Answer, frozen=True, kw_only=True):
    """A session's pair of tokens; the times are in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: Number
    refresh_token: str
    refresh_expires_in: Number


class OnItsWay(Answer, frozen=True, kw_only=True):
    """The same for every address."""

    detail: str


class Converted(Answer, frozen=True, kw_only=True):
    """A balance in another currency, with all that is needed to compute it again."""

    currency: Currency
    balance: Minor
    balance_decimal: Decimal
    rate: Rate
    rate_date: date | None
    rate_source: str | None
    rate_age_days: Number


class Account(Answer, frozen=True, kw_only=True):
    """An account, now or `at` a moment; `pending_operations` counts the owner's unfinished ones, on all accounts."""

    id: UUID
    user_id: UUID
    name: str
    currency: Currency
    balance: Minor
    balance_decimal: Decimal
    held: Minor
    available: Minor
    version: Annotated[int, Meta(ge=0, description="How many entries the account has.")]
    pending_operations: Number
    created_at: Moment
    converted: Converted | UnsetType = UNSET


class Accounts(Answer, frozen=True, kw_only=True):
    """All of the caller's accounts, oldest first."""

    items: list[Account]


class Registered(Answer, frozen=True, kw_only=True):
    """A new user and the user's default account."""

    user: User
    account: Account


class Party(Answer, frozen=True, kw_only=True):
    """The other side of a transfer."""

    user_id: UUID
    username: str
    account_id: UUID


class Bought(Answer, frozen=True, kw_only=True):
    """What was bought: the price and the rate that were in force when the purchase was accepted."""

    service_id: UUID
    service: str
    price: Minor
    price_decimal: Decimal
    price_currency: Currency
    rate: Rate | None
    rate_date: date | None


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why an operation was rejected, with further members for the facts that the decision saw."""

    code: Annotated[str, Meta(examples=["insufficient_funds"])]
    title: str
    detail: str


class OperationLinks(Answer, frozen=True, kw_only=True):
    """Where to go on."""

    self: str
    account: str


class Operation(Answer, frozen=True, kw_only=True):
    """An operation. A finished status never changes; `seq` numbers the user's operations without a gap."""

    id: UUID
    seq: Annotated[int, Meta(ge=1)]
    type: Type
    status: Status
    direction: Literal["incoming", "outgoing"]
    amount: Minor
    amount_decimal: Decimal
    currency: Currency
    account_id: UUID
    counterparty: Party | None
    purchase: Bought | None
    comment: str | None
    metadata: dict[str, str]
    created_at: Moment
    finished_at: Moment | None
    rejection: Rejection | None
    balance_after: Minor | None
    account_version: int | None
    links: OperationLinks


class BatchItem(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one operation of a batch: its id and status, or its errors."""

    index: int
    id: UUID | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    errors: list[FieldError] | UnsetType = UNSET


class Batch(Answer, frozen=True, kw_only=True):
    """A batch: `accepted` is how many operations were stored; `counts` is by status, and `refused`."""

    batch_id: UUID
    atomic: bool
    accepted: int
    counts: dict[str, int]
    created_at: Moment
    items: list[BatchItem]


class Operations(Answer, frozen=True, kw_only=True):
    """A page of the history."""

    items: list[Operation]
    next_cursor: str | None


class Entry(Answer, frozen=True, kw_only=True):
    """One line of a statement; `amount` is negative where money went out."""

    version: Annotated[int, Meta(ge=1)]
    created_at: Moment
    amount: Minor
    amount_decimal: Decimal
    balance_after: Minor
    balance_after_decimal: Decimal
    operation_id: UUID
    type: Type
    counterparty: Party | None
    comment: str | None


class Statement(Answer, frozen=True, kw_only=True, rename={"since": "from", "until": "to"}):
    """A page of a statement; the balances are those of the whole statement."""

    account_id: UUID
    currency: Currency
    since: Moment | None
    until: Moment | None
    opening_balance: Minor
    opening_balance_decimal: Decimal
    entries: list[Entry]
    closing_balance: Minor
    closing_balance_decimal: Decimal
    next_cursor: int | None


class Service(Answer, frozen=True, kw_only=True):
    """A service on sale."""

    id: UUID
    name: str
    description: str
    price: Minor
    price_decimal: Decimal
    currency: Currency
    active: bool


class Services(Answer, frozen=True, kw_only=True):
    """A page of services, in the order in which they were put on sale."""

    items: list[Service]
    next_cursor: UUID | None


class Revenue(Answer, frozen=True, kw_only=True):
    """What one service earned in one currency."""

    service_id: UUID
    service: str
    currency: Currency
    purchases: Number
    revenue: Minor
    revenue_decimal: Decimal


class RevenueReport(Answer, frozen=True, kw_only=True):
    """The revenue of a month."""

    month: Annotated[str, Meta(pattern=r"\A\d{4}-\d{2}\Z", examples=["2026-11"])]
    items: list[Revenue]


class Alive(Answer, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["alive"]


class Ready(Answer, frozen=True, kw_only=True):
    """Operations can be accepted; a broker that is down delays them a little."""

    status: Literal["ready"]
    database: Literal["up"]
    broker: Literal["up", "down"]
    oldest_pending_seconds: Annotated[float, Meta(ge=0)]


OpenApi = dict[str, Any]
"""The document in which you read this."""
