"""What each call of the contract takes and answers with: the part of the OpenAPI document that no code says by itself.

Paths, methods, summaries and roles come from the routes; fields from `api/schemas.py` and `api/answers.py`; statuses
and titles of problems from `api/errors.py`. `tests/unit/test_openapi.py` holds this table and the routes together, and
`tests/end_to_end/test_openapi.py` the table and the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api import answers, schemas

EVERY_CALL = ("malformed_request", "uri_too_long", "expectation_failed", "headers_too_large", "internal_error")
"""What the server says to any request that it cannot take, and of any defect of ours."""
ELSEWHERE = ("not_found", "method_not_allowed", "not_acceptable")
"""What is said where there is no such call."""
WITH_TOKEN = ("missing_token", "invalid_token")
WITH_BODY = (
    "length_required",
    "request_timeout",
    "body_too_large",
    "unsupported_media_type",
    "malformed_json",
    "validation_failed",
)
WITH_DATABASE = ("database_unavailable", "outcome_unknown")

LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")
ACCEPTED_HEADERS = ("Location", "Retry-After", "Vary", "Idempotency-Replayed", *LIMIT_HEADERS)
FINISHED_HEADERS = ("Location", "Preference-Applied", "Vary", "Idempotency-Replayed", *LIMIT_HEADERS)


@dataclass(frozen=True)
class Call:
    """One method of one path.

    answers: what a success looks like, by status; None where it has no body.
    problems: codes beyond those that follow from the rest.
    tagged: it answers with an ETag, and with 304 to If-None-Match. csv: it answers with CSV where that is preferred.
    """

    answers: Mapping[int, Any]
    body: Any = None
    query: Any = None
    problems: tuple[str, ...] = ()
    request_headers: tuple[str, ...] = ()
    headers: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    tagged: bool = False
    csv: bool = False
    database: bool = True
    media_type: str = "application/json"


OPERATION_PROBLEMS = (
    "forbidden",
    "self_deposit_forbidden",
    "user_disabled",
    "user_not_found",
    "account_not_found",
    "receiver_not_found",
    "service_not_found",
    "price_changed",
    "price_out_of_range",
    "self_transfer",
    "rates_unavailable",
    "too_many_pending",
    "overloaded",
)

CALLS = {
    "POST /v1/auth/register": Call(
        {201: answers.Registered},
        schemas.Registration,
        problems=("username_taken", "email_taken", "too_many_tries", "busy"),
    ),
    "POST /v1/auth/login": Call(
        {200: answers.Tokens}, schemas.Credentials, problems=("invalid_credentials", "too_many_tries", "busy")
    ),
    "POST /v1/auth/refresh": Call({200: answers.Tokens}, schemas.RefreshToken, problems=("invalid_refresh_token",)),
    "POST /v1/auth/logout": Call({204: None}),
    "POST /v1/auth/logout/everywhere": Call({204: None}),
    "POST /v1/auth/password": Call(
        {204: None}, schemas.NewPassword, problems=("invalid_credentials", "too_many_tries", "busy")
    ),
    "POST /v1/auth/email": Call({202: answers.OnItsWay}, schemas.CodeWish, problems=("too_many_tries",)),
    "POST /v1/auth/token": Call(
        {200: answers.Tokens}, schemas.CodeCredentials, problems=("invalid_code", "too_many_tries")
    ),
    "GET /v1/users/me": Call({200: answers.Profile}, tagged=True),
    "PATCH /v1/users/me": Call(
        {200: answers.Profile}, schemas.ProfileChange, problems=("username_taken", "email_taken")
    ),
    "GET /v1/users": Call(
        {200: answers.Users}, query=schemas.UsersQuery, problems=("bad_cursor",), headers={200: ("Link",)}
    ),
    "GET /v1/users/{id}": Call({200: answers.FullProfile}, problems=("user_not_found",), tagged=True),
    "PATCH /v1/users/{id}": Call(
        {200: answers.FullProfile},
        schemas.UserChange,
        problems=("user_not_found", "username_taken", "email_taken", "last_admin"),
    ),
    "DELETE /v1/users/{id}": Call({204: None}, problems=("user_not_found", "last_admin")),
    "POST /v1/accounts": Call(
        {201: answers.Account, 200: answers.Account},
        schemas.NewAccount,
        problems=("unknown_currency", "too_many_accounts"),
        headers={200: ("Location",), 201: ("Location",)},
    ),
    "GET /v1/accounts": Call(
        {200: answers.Accounts},
        query=schemas.AccountsQuery,
        problems=("unknown_currency", "rates_unavailable"),
        tagged=True,
    ),
    "GET /v1/accounts/{id}": Call(
        {200: answers.Account},
        query=schemas.AccountQuery,
        problems=("account_not_found", "unknown_currency", "rates_unavailable", "not_yet"),
        tagged=True,
    ),
    "GET /v1/balance": Call(
        {200: answers.Account},
        query=schemas.AccountQuery,
        problems=("unknown_currency", "rates_unavailable", "not_yet"),
        tagged=True,
    ),
    "GET /v1/accounts/{id}/statement": Call(
        {200: answers.Statement}, query=schemas.StatementQuery, problems=("account_not_found",), csv=True, tagged=True
    ),
    "POST /v1/operations": Call(
        {202: answers.Operation, 200: answers.Operation},
        schemas.AnyOperation,
        problems=(*OPERATION_PROBLEMS, "bad_idempotency_key", "idempotency_key_reused"),
        request_headers=("Idempotency-Key", "Prefer"),
        headers={202: ACCEPTED_HEADERS, 200: FINISHED_HEADERS},
    ),
    "GET /v1/operations": Call(
        {200: answers.Operations},
        query=schemas.OperationsQuery,
        problems=("account_not_found", "bad_cursor"),
        headers={200: ("Link",)},
        tagged=True,
    ),
    "GET /v1/operations/{id}": Call(
        {200: answers.Operation},
        query=schemas.WaitQuery,
        problems=("operation_not_found",),
        headers={200: ("Retry-After",)},
        tagged=True,
    ),
    "DELETE /v1/operations/{id}": Call({200: answers.Operation}, problems=("operation_not_found", "already_finished")),
    "GET /v1/services": Call({200: answers.Services}, query=schemas.ServicesQuery),
    "POST /v1/operations/batch": Call(
        {202: answers.Batch},
        schemas.NewBatch,
        problems=(
            "atomic_not_supported",
            "bad_idempotency_key",
            "idempotency_key_reused",
            "batch_not_found",
            "overloaded",
        ),
        request_headers=("Idempotency-Key",),
        headers={202: ("Location", "Retry-After", "Idempotency-Replayed", *LIMIT_HEADERS)},
    ),
    "GET /v1/batches/{id}": Call({200: answers.Batch}, problems=("batch_not_found",), tagged=True),
    "GET /v1/services/{id}": Call({200: answers.Service}, problems=("service_not_found",)),
    "POST /v1/services": Call(
        {201: answers.Service}, schemas.NewService, problems=("unknown_currency",), headers={201: ("Location",)}
    ),
    "PATCH /v1/services/{id}": Call(
        {200: answers.Service}, schemas.ServiceChange, problems=("service_not_found", "unknown_currency")
    ),
    "DELETE /v1/services/{id}": Call({204: None}, problems=("service_not_found",)),
    "GET /v1/reports/revenue": Call({200: answers.RevenueReport}, query=schemas.RevenueQuery, csv=True),
    "GET /health/live": Call({200: answers.Alive}, database=False),
    "GET /health/ready": Call({200: answers.Ready}, problems=("not_ready",), database=False),
    "GET /metrics": Call({200: str}, media_type="text/plain"),
    "GET /openapi.json": Call({200: answers.OpenApi}, tagged=True, database=False),
}

TAGS = {
    "/v1/auth": ("Who am I", "Registration, sessions, passwords."),
    "/v1/users": ("Users", "Profiles; and all users, for administrators and auditors."),
    "/v1/accounts": ("Accounts", "Accounts, balances, statements."),
    "/v1/balance": ("Accounts", "Accounts, balances, statements."),
    "/v1/operations": ("Operations", "Handed in, accepted durably, applied in order, and read back."),
    "/v1/batches": ("Operations", "Handed in, accepted durably, applied in order, and read back."),
    "/v1/services": ("Services", "What is on sale."),
    "/v1/reports": ("Reports", "For auditors and administrators."),
    "/": ("About the service", "Health, metrics and this document."),
}
"""The name and description of the group that a path belongs to, by how it begins; the first that fits."""

REQUEST_HEADERS = {
    "X-Request-Id": (
        "Comes back in the answer, and stands in every log line of the request. One is made where it is absent, or is "
        "not 1 to 128 letters, digits, dots, underscores and hyphens.",
        {"type": "string"},
    ),
    "Idempotency-Key": (
        "Used before by this user, it stands for the first request: that one's operation is the answer, and nothing is "
        "stored twice. Bare or in quotes.",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x20-\x7e]+$"},
    ),
    "Prefer": (
        "`wait=N`: the answer may take up to N seconds, at most 30, and shows the finished operation if it finishes "
        "in time (RFC 7240).",
        {"type": "string"},
    ),
    "If-None-Match": ("The ETag of an answer that the client has: 304 if it would be the same.", {"type": "string"}),
}

HEADERS = {
    "X-Request-Id": ("The request's id.", {"type": "string"}),
    "Location": ("Where what was made can be read.", {"type": "string", "format": "uri-reference"}),
    "Retry-After": ("Seconds after which to ask again.", {"type": "integer", "minimum": 0}),
    "RateLimit-Policy": ("How many unfinished operations a user may have.", {"type": "string"}),
    "RateLimit": ("How many more there is room for, and in how many seconds again.", {"type": "string"}),
    "ETag": ("Changes with anything that the answer shows.", {"type": "string"}),
    "Vary": ("The request header that the answer depends on.", {"type": "string"}),
    "Preference-Applied": ("The `wait` that was granted.", {"type": "string", "pattern": r"^wait=\d+$"}),
    "Idempotency-Replayed": ("There where the key was used before.", {"type": "string", "enum": ["true"]}),
    "Link": ("The next page, with `rel=next`, unless this is the last.", {"type": "string"}),
    "Content-Disposition": ("The name to keep a CSV file by.", {"type": "string"}),
    "WWW-Authenticate": ("What kind of token is needed.", {"type": "string"}),
    "Allow": ("The methods that there are.", {"type": "string"}),
}
