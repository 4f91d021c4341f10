"""Every body and query that clients may send: strict, frozen, unknown fields refused."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from core.identity import NEW_USERNAME, USERNAME, USERNAME_CHARACTERS_MAX
from core.money import AMOUNT_MAX
from core.operations import Status, Type

WAIT_SECONDS_MAX = 30
PAGE_ITEMS_MAX = 100
TAG = "type"  # by it the operations are told apart

# Neither NUL nor a lone surrogate can be stored by PostgreSQL.
STORABLE = r"\A[^\x00\ud800-\udfff]*\Z"

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="Minor units.", examples=[10050])]
Username = Annotated[str, Meta(min_length=1, max_length=USERNAME_CHARACTERS_MAX, pattern=USERNAME, examples=["alice"])]
NewUsername = Annotated[
    str, Meta(min_length=1, max_length=USERNAME_CHARACTERS_MAX, pattern=NEW_USERNAME, examples=["alice"])
]
Password = Annotated[str, Meta(min_length=8, max_length=128, pattern=STORABLE, examples=["correct horse"])]
Email = Annotated[
    str,
    Meta(
        max_length=254,
        pattern=r"\A[^@\s\x00-\x1f\x7f\ud800-\udfff]+@[^@\s\x00-\x1f\x7f\ud800-\udfff]+\.[^@\s\x00-\x1f\x7f\ud800-\udfff]+\Z",
    ),
]
Comment = Annotated[str, Meta(max_length=500, pattern=STORABLE)]
ServiceName = Annotated[str, Meta(min_length=1, max_length=100, pattern=STORABLE)]
Description = Annotated[str, Meta(max_length=2000, pattern=STORABLE)]
Name = Annotated[str, Meta(max_length=100, pattern=STORABLE)]
PersonName = Annotated[str, Meta(max_length=150, pattern=STORABLE, examples=["Ada"])]
Bio = Annotated[str, Meta(max_length=2000, pattern=STORABLE)]
Role = Literal["user", "service", "auditor", "admin"]
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

    username: NewUsername
    password: Password
    email: Email | None = None


class Credentials(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/login`: of any form, so that a wrong guess learns nothing."""

    username: Annotated[str, Meta(max_length=254, pattern=STORABLE)]
    password: Annotated[str, Meta(max_length=1024, pattern=STORABLE)]


class RefreshToken(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/refresh`"""

    refresh_token: Annotated[str, Meta(max_length=256, pattern=STORABLE)]


class NewPassword(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/password`: the current one may be absent only where there is none."""

    current_password: Annotated[str, Meta(max_length=1024, pattern=STORABLE)] | None = None
    new_password: Password


class CodeWish(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/email`"""

    email: Email


class CodeCredentials(Body, frozen=True, kw_only=True):
    """`POST /v1/auth/token`: of any form, so that a wrong guess learns nothing."""

    email: Annotated[str, Meta(max_length=254, pattern=STORABLE)]
    confirmation_code: Annotated[str, Meta(max_length=64, pattern=STORABLE)]


class ProfileChange(Body, frozen=True, kw_only=True):
    """`PATCH /v1/users/me`: only what is named changes. A new e-mail address is not confirmed by a code first."""

    first_name: PersonName | UnsetType = UNSET
    last_name: PersonName | UnsetType = UNSET
    username: NewUsername | UnsetType = UNSET
    email: Email | UnsetType = UNSET
    bio: Bio | UnsetType = UNSET


class UserChange(ProfileChange, frozen=True, kw_only=True):
    """`PATCH /v1/users/{id}`: what an administrator may change."""

    role: Role | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET


class UsersQuery(Body, frozen=True, kw_only=True):
    """The query of all users: `search` is a part of the username; `cursor` the `next_cursor` of the page before."""

    search: Annotated[str, Meta(max_length=USERNAME_CHARACTERS_MAX, pattern=STORABLE)] | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = 20
    cursor: Annotated[str, Meta(max_length=100)] | None = None


class NewAccount(Body, frozen=True, kw_only=True):
    """`POST /v1/accounts`"""

    currency: CurrencyCode = "RUB"
    name: Name = ""


class OperationBody(Body, frozen=True, kw_only=True, tag_field=TAG):
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
        if (self.to_user_id, self.to_username, self.to_account_id).count(None) != 2:
            raise ValueError("Exactly one of to_user_id, to_username and to_account_id is needed")


class Purchase(OperationBody, frozen=True, kw_only=True, tag="purchase"):
    """A service is bought at the price in force; it is taken in the account's currency."""

    service_id: UUID


AnyOperation = Deposit | Withdrawal | Transfer | Purchase


BATCH_OPERATIONS_MAX = 10_000


class NewBatch(Body, frozen=True, kw_only=True):
    """`POST /v1/operations/batch`: each operation is accepted or refused for itself."""

    operations: Annotated[list[Any], Meta(min_length=1, max_length=BATCH_OPERATIONS_MAX)]
    atomic: bool = False


class NewService(Body, frozen=True, kw_only=True):
    """`POST /v1/services`"""

    name: ServiceName
    description: Description = ""
    price: Amount
    currency: CurrencyCode = "RUB"
    active: bool = True


class ServiceChange(Body, frozen=True, kw_only=True):
    """`PATCH /v1/services/{id}`: only what is named changes."""

    name: ServiceName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    price: Amount | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET
    active: bool | UnsetType = UNSET


class ServicesQuery(Body, frozen=True, kw_only=True):
    """The query of the services on sale; `cursor` is the `next_cursor` of the page before."""

    currency: CurrencyCode | None = None
    active: bool = True
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = 20
    cursor: UUID | None = None


class RevenueQuery(Body, frozen=True, kw_only=True):
    """The query of the revenue report; without a month it is the current one."""

    month: Annotated[str, Meta(pattern=r"\A\d{4}-(0[1-9]|1[0-2])\Z", examples=["2026-11"])] | None = None


class StatementQuery(Body, frozen=True, kw_only=True, rename={"since": "from", "until": "to"}):
    """The query of a statement: `from` is included, `to` is not. `cursor` is the `next_cursor` of the page before."""

    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 1_000
    cursor: Annotated[int, Meta(ge=0, le=2**62)] = 0


class WaitQuery(Body, frozen=True, kw_only=True):
    """`?wait=` of an operation."""

    wait: WaitSeconds = 0


class AccountsQuery(Body, frozen=True, kw_only=True):
    """The query of all accounts: each balance also in `currency`."""

    currency: CurrencyCode | None = None


class AccountQuery(Body, frozen=True, kw_only=True):
    """The query of an account: in `currency` too, as it was `at` a moment, once all up to `min_seq` is finished."""

    currency: CurrencyCode | None = None
    at: Moment | None = None
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
