"""A day of Kassa, request by request: the examples of the OpenAPI document, in an order in which they work.

`tests/end_to_end/test_openapi.py` makes every request against the running processes and checks the answer; run with
RECORD_EXAMPLES=1 it also writes `openapi_examples.json`, from which the document shows requests and answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PASSWORD = "correct horse battery"
NEW_PASSWORD = "staple correct horse"
OPERATIONS = "POST /v1/operations"
WAIT = {"Prefer": "wait=10"}


@dataclass(frozen=True)
class Example:
    """One request.

    status: of the answer. code: of the problem, where the answer is one.
    as_: the example whose answer has the caller's tokens; `admin` and `auditor` are logged in from the start.
    standing_still: the worker and the sweeper are stopped meanwhile, so that what is pending stays so.

    In texts `$name.field` stands for a field of the answer to an earlier example.
    """

    name: str
    call: str
    status: int
    body: Mapping[str, Any] | None = None
    as_: str = ""
    code: str = ""
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    standing_still: bool = False


def operation(name: str, status: int = 200, as_: str = "alice", **fields: Any) -> Example:
    """An operation whose outcome is waited for."""
    return Example(name, OPERATIONS, status, fields, as_=as_, header={"Idempotency-Key": name} | WAIT)


ACCOUNT = {"id": "$register.account.id"}

EXAMPLES = (
    # who am I
    Example(
        "register",
        "POST /v1/auth/register",
        201,
        {"username": "alice.example", "password": PASSWORD, "email": "alice@kassa.example"},
    ),
    Example("register-without-email", "POST /v1/auth/register", 201, {"username": "bob.example", "password": PASSWORD}),
    Example(
        "username-taken",
        "POST /v1/auth/register",
        409,
        {"username": "Alice.Example", "password": PASSWORD},
        code="username_taken",
    ),
    Example("alice", "POST /v1/auth/login", 200, {"username": "alice.example", "password": PASSWORD}),
    Example("bob", "POST /v1/auth/login", 200, {"username": "bob.example", "password": PASSWORD}),
    Example(
        "wrong-password",
        "POST /v1/auth/login",
        401,
        {"username": "alice.example", "password": "guess"},
        code="invalid_credentials",
    ),
    Example("refresh", "POST /v1/auth/refresh", 200, {"refresh_token": "$bob.refresh_token"}),
    Example("email-code", "POST /v1/auth/email", 202, {"email": "carol.example@kassa.example"}),
    Example(
        "carol",
        "POST /v1/auth/token",
        200,
        {"email": "carol.example@kassa.example", "confirmation_code": "$mailed.carol.example@kassa.example"},
    ),
    Example(
        "wrong-code",
        "POST /v1/auth/token",
        401,
        {"email": "carol.example@kassa.example", "confirmation_code": "00000000"},
        code="invalid_code",
    ),
    Example("made-by-code", "GET /v1/users/me", 200, as_="carol"),
    Example("set-password", "POST /v1/auth/password", 204, {"new_password": PASSWORD}, as_="carol"),
    Example(
        "change-password",
        "POST /v1/auth/password",
        204,
        {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        as_="carol",
    ),
    Example("logout", "POST /v1/auth/logout", 204, as_="carol"),
    Example("logged-out", "GET /v1/users/me", 401, as_="carol", code="invalid_token"),
    Example(
        "carol-again", "POST /v1/auth/login", 200, {"username": "$made-by-code.username", "password": NEW_PASSWORD}
    ),
    Example("logout-everywhere", "POST /v1/auth/logout/everywhere", 204, as_="carol-again"),
    # users
    Example("me", "GET /v1/users/me", 200, as_="alice"),
    Example("me-unchanged", "GET /v1/users/me", 304, as_="alice", header={"If-None-Match": "$me.ETag"}),
    Example(
        "introduce-myself",
        "PATCH /v1/users/me",
        200,
        {"first_name": "Alice", "last_name": "Liddell", "bio": "Curious."},
        as_="alice",
    ),
    Example("role-cannot-be-set", "PATCH /v1/users/me", 422, {"role": "admin"}, as_="alice", code="validation_failed"),
    Example("users", "GET /v1/users", 200, as_="auditor", query={"search": ".example", "limit": "1"}),
    Example("users-forbidden", "GET /v1/users", 403, as_="alice", code="forbidden"),
    Example("user", "GET /v1/users/{id}", 200, as_="auditor", path={"id": "$register.user.id"}),
    Example("make-auditor", "PATCH /v1/users/{id}", 200, {"role": "auditor"}, as_="admin", path={"id": "$eve.id"}),
    Example("disable-user", "DELETE /v1/users/{id}", 204, as_="admin", path={"id": "$eve.id"}),
    # accounts
    Example("open-account", "POST /v1/accounts", 201, {"currency": "EUR", "name": "holidays"}, as_="alice"),
    Example("account-is-there", "POST /v1/accounts", 200, {"currency": "EUR", "name": "holidays"}, as_="alice"),
    Example("no-such-currency", "POST /v1/accounts", 422, {"currency": "ZZZ"}, as_="alice", code="unknown_currency"),
    # operations
    operation("deposit", type="deposit", amount=150_000, comment="salary", metadata={"month": "2026-11"}),
    Example(
        "deposit-again",
        OPERATIONS,
        200,
        {"type": "deposit", "amount": 150_000, "comment": "salary", "metadata": {"month": "2026-11"}},
        as_="alice",
        header={"Idempotency-Key": "deposit"} | WAIT,
    ),
    Example(
        "key-reused",
        OPERATIONS,
        422,
        {"type": "deposit", "amount": 1},
        as_="alice",
        header={"Idempotency-Key": "deposit"},
        code="idempotency_key_reused",
    ),
    Example("deposit-without-waiting", OPERATIONS, 202, {"type": "deposit", "amount": 500}, as_="bob"),
    operation("withdrawal", type="withdrawal", amount=20_000),
    operation("transfer", type="transfer", amount=10_050, to_username="bob.example", comment="rent"),
    operation("overdraft", type="withdrawal", amount=10**9),
    Example("bad-amount", OPERATIONS, 422, {"type": "deposit", "amount": 0}, as_="alice", code="validation_failed"),
    Example("no-token", OPERATIONS, 401, {"type": "deposit", "amount": 1}, code="missing_token"),
    Example("operation", "GET /v1/operations/{id}", 200, as_="alice", path={"id": "$transfer.id"}),
    Example(
        "operation-unchanged",
        "GET /v1/operations/{id}",
        304,
        as_="alice",
        path={"id": "$transfer.id"},
        header={"If-None-Match": "$operation.ETag"},
    ),
    Example(
        "as-soon-as-finished",
        "GET /v1/operations/{id}",
        200,
        as_="bob",
        path={"id": "$deposit-without-waiting.id"},
        query={"wait": "10"},
    ),
    Example(
        "somebody-elses",
        "GET /v1/operations/{id}",
        404,
        as_="bob",
        path={"id": "$withdrawal.id"},
        code="operation_not_found",
    ),
    Example("history", "GET /v1/operations", 200, as_="alice", query={"type": "transfer", "sort": "-amount"}),
    Example("history-page", "GET /v1/operations", 200, as_="alice", query={"limit": "1"}),
    Example(
        "too-late-to-cancel",
        "DELETE /v1/operations/{id}",
        409,
        as_="alice",
        path={"id": "$deposit.id"},
        code="already_finished",
    ),
    Example("pending", OPERATIONS, 202, {"type": "withdrawal", "amount": 100}, as_="alice", standing_still=True),
    Example(
        "cancel",
        "DELETE /v1/operations/{id}",
        200,
        as_="alice",
        path={"id": "$pending.id"},
        standing_still=True,
    ),
    # what it looks like afterwards
    Example(
        "batch",
        "POST /v1/operations/batch",
        202,
        {"operations": [{"type": "deposit", "amount": 100}, {"type": "withdrawal", "amount": 0}]},
        as_="bob",
        header={"Idempotency-Key": "batch"},
    ),
    Example(
        "atomic-batch",
        "POST /v1/operations/batch",
        422,
        {"atomic": True, "operations": [{"type": "deposit", "amount": 100}]},
        as_="bob",
        code="atomic_not_supported",
    ),
    operation("after-the-batch", as_="bob", type="deposit", amount=1),
    Example("batch-later", "GET /v1/batches/{id}", 200, as_="bob", path={"id": "$batch.batch_id"}),
    Example("balance", "GET /v1/balance", 200, as_="alice"),
    Example("balance-in-dollars", "GET /v1/balance", 200, as_="alice", query={"currency": "USD"}),
    Example("accounts", "GET /v1/accounts", 200, as_="alice"),
    Example("account", "GET /v1/accounts/{id}", 200, as_="alice", path=ACCOUNT),
    Example(
        "account-unchanged",
        "GET /v1/accounts/{id}",
        304,
        as_="alice",
        path=ACCOUNT,
        header={"If-None-Match": "$account.ETag"},
    ),
    Example(
        "read-your-writes",
        "GET /v1/accounts/{id}",
        200,
        as_="alice",
        path=ACCOUNT,
        query={"min_seq": "4", "wait": "5"},
    ),
    Example("as-it-was", "GET /v1/accounts/{id}", 200, as_="alice", path=ACCOUNT, query={"at": "$deposit.finished_at"}),
    Example(
        "statement",
        "GET /v1/accounts/{id}/statement",
        200,
        as_="alice",
        path=ACCOUNT,
        query={"from": "2026-01-01T00:00:00Z", "limit": "2"},
    ),
    Example(
        "statement-as-csv",
        "GET /v1/accounts/{id}/statement",
        200,
        as_="alice",
        path=ACCOUNT,
        header={"Accept": "text/csv"},
    ),
    # services on sale
    Example(
        "offer",
        "POST /v1/services",
        201,
        {"name": "Massage", "description": "An hour.", "price": 2_500},
        as_="admin",
    ),
    Example(
        "offer-forbidden", "POST /v1/services", 403, {"name": "Massage", "price": 1}, as_="alice", code="forbidden"
    ),
    Example(
        "offer-in-dollars", "POST /v1/services", 201, {"name": "Map", "price": 100, "currency": "USD"}, as_="admin"
    ),
    operation("purchase", type="purchase", service_id="$offer.id"),
    operation("purchase-in-dollars", type="purchase", service_id="$offer-in-dollars.id"),
    operation("bought-before", type="purchase", service_id="$offer.id"),
    Example("services", "GET /v1/services", 200, query={"currency": "USD", "limit": "1"}),
    Example("service", "GET /v1/services/{id}", 200, path={"id": "$offer.id"}),
    Example("raise-price", "PATCH /v1/services/{id}", 200, {"price": 3_000}, as_="admin", path={"id": "$offer.id"}),
    Example("off-sale", "DELETE /v1/services/{id}", 204, as_="admin", path={"id": "$offer.id"}),
    Example("revenue", "GET /v1/reports/revenue", 200, as_="auditor"),
    Example("revenue-as-csv", "GET /v1/reports/revenue", 200, as_="auditor", header={"Accept": "text/csv"}),
    # about the service
    Example("live", "GET /health/live", 200),
    Example("ready", "GET /health/ready", 200),
    Example("metrics", "GET /metrics", 200),
    Example("openapi", "GET /openapi.json", 200),
)
