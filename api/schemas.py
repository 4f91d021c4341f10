"""Every body and query that clients may send: strict, frozen, unknown fields refused."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from core.money import AMOUNT_MAX
from core.operations import Status, Type

WAIT_SECONDS_MAX = 30
PAGE_ITEMS_MAX = 100

# Neither NUL nor a lone surrogate can be stored by PostgreSQL.
STORABLE = r"\A[^\x00\ud800-\udfff]*\Z"

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="Minor units.", examples=[10050])]
Username = Annotated[str, Meta(min_length=1, max_length=150, pattern=r"\A[A-Za-z0-9_.@+-]+\Z", examples=["alice"])]
Password = Annotated[str, Meta(min_length=8, max_length=128, pattern=STORABLE, examples=["correct horse"])]
Email = Annotated[
    str,
    Meta(
        max_length=254,
        pattern=r"\A[^@\s\x00-\x1f\x7f\ud800-\udfff]+@[^@\s\x00-\x1f\x7f\ud800-\udfff]+\.[^@\s\x00-\x1f\x7f\ud800-\udfff]+\Z",
    ),
]
Comment = Annotated[str, Meta(max_length=500, pattern=STORABLE)]
Name = Annotated[str, Meta(max_length=100, pattern=STORABLE)]
CurrencyCode = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z", examples=["RUB"])]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE)]
MetadataValue = Annotated[str, Meta(max_length=500, pattern=STORABLE)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=20)]
Moment = Annotated[datetime, Meta(tz=True)]
WaitSeconds = Annotated[int, Meta(ge=0, le=WAIT_SECONDS_MAX)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all bodies and queries have in common: nothing unknown is let through."""


class Registration(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/register`"""

    username: Username
    password: Password
    email: Email | None = None


class Credentials(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/login`: of any form, so that a wrong guess learns nothing."""

    username: Annotated[str, Meta(max_length=254, pattern=STORABLE)]
    password: Annotated[str, Meta(max_length=1024, pattern=STORABLE)]


class RefreshToken(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/refresh`"""

    refresh_token: Annotated[str, Meta(max_length=256, pattern=STORABLE)]


class NewAccount(Body, frozen=True, kw_only=True):
    """`POST /v1/accounts`"""

    currency: CurrencyCode = "RUB"
    name: Name = ""


class OperationBody(Body, frozen=True, kw_only=True, tag_field="type"):
    """What every operation takes. `user_id` is for `service` tokens, which act for any user."""

    account_id: UUID | None = None
    comment: Comment | None = None
    metadata: Metadata = {}
    user_id: UUID | None = None


class Deposit(OperationBody, frozen=True, kw_only=True, tag="deposit"):
    """Money comes in."""

    amount: Amount


class Withdrawal(OperationBody, frozen=True, kw_only=True, tag="withdrawal"):
    """Money goes out."""

    amount: Amount


class Transfer(OperationBody, frozen=True, kw_only=True, tag="transfer"):
    """Money goes to exactly one receiver."""

    amount: Amount
    to_user_id: UUID | None = None
    to_username: Username | None = None
    to_account_id: UUID | None = None

    def __post_init__(self) -> None:
        named = [name for name in (self.to_user_id, self.to_username, self.to_account_id) if name is not None]
        if len(named) != 1:
            raise ValueError("exactly one of to_user_id, to_username and to_account_id is needed")


AnyOperation = Deposit | Withdrawal | Transfer


class WaitQuery(Body, frozen=True, kw_only=True):
    """`?wait=` of an operation."""

    wait: WaitSeconds = 0


class AccountQuery(Body, frozen=True, kw_only=True):
    """The query of an account: wait until the caller's operations up to `min_seq` are finished."""

    min_seq: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    wait: WaitSeconds = 0


class OperationsQuery(Body, frozen=True, kw_only=True):
    """The query of the history; `since` is included, `until` is not."""

    account_id: UUID | None = None
    type: Type | None = None
    status: Status | None = None
    direction: Literal["incoming", "outgoing"] | None = None
    since: Moment | None = None
    until: Moment | None = None
    min_amount: Amount | None = None
    max_amount: Amount | None = None
    sort: Literal["created_at", "-created_at", "amount", "-amount"] = "-created_at"
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = 20
    cursor: Annotated[str, Meta(max_length=500)] | None = None
