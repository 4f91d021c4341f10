"""The one table from error to HTTP answer, and the handlers that write RFC 9457 problem documents."""

from typing import Any, NamedTuple

import falcon
import msgspec
import psycopg2
import sqlalchemy as sa
import structlog

from core.db import is_connection_lost, never_connected
from core.errors import Refusal

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = "1"

log = structlog.get_logger("kassa.api")


class Problem(NamedTuple):
    """The HTTP status and title of a problem's code. A 422 lists the fields at fault in `errors`."""

    status: int
    title: str


PROBLEMS = {
    "malformed_request": Problem(400, "The request is malformed"),
    "malformed_json": Problem(400, "The body is not JSON"),
    "bad_cursor": Problem(400, "The cursor is not one of ours"),
    "bad_idempotency_key": Problem(400, "The Idempotency-Key is malformed"),
    "missing_token": Problem(401, "An access token is needed"),
    "invalid_token": Problem(401, "The access token is not valid"),
    "invalid_refresh_token": Problem(401, "The refresh token is not valid"),
    "invalid_credentials": Problem(401, "Wrong username or password"),
    "invalid_code": Problem(401, "The confirmation code is not valid"),
    "forbidden": Problem(403, "Not allowed"),
    "self_deposit_forbidden": Problem(403, "Deposits into one's own account are switched off"),
    "user_disabled": Problem(403, "The user is disabled"),
    "not_found": Problem(404, "There is nothing here"),
    "account_not_found": Problem(404, "There is no such account"),
    "operation_not_found": Problem(404, "There is no such operation"),
    "receiver_not_found": Problem(404, "There is no such receiver"),
    "user_not_found": Problem(404, "There is no such user"),
    "method_not_allowed": Problem(405, "The method is not allowed here"),
    "not_acceptable": Problem(406, "Not available in this form"),
    "request_timeout": Problem(408, "The body did not arrive"),
    "already_finished": Problem(409, "The operation is finished"),
    "batch_not_found": Problem(404, "There is no such batch"),
    "atomic_not_supported": Problem(422, "All or nothing is not offered"),
    "service_not_found": Problem(404, "There is no such service"),
    "price_changed": Problem(409, "The price is changing"),
    "price_out_of_range": Problem(422, "The price cannot be paid in this currency"),
    "username_taken": Problem(409, "The username is taken"),
    "email_taken": Problem(409, "The e-mail address is taken"),
    "too_many_accounts": Problem(409, "Too many accounts"),
    "last_admin": Problem(409, "There would be no administrator"),
    "length_required": Problem(411, "The body's length is needed"),
    "body_too_large": Problem(413, "The body is too large"),
    "uri_too_long": Problem(414, "The address is too long"),
    "unsupported_media_type": Problem(415, "The body is not declared as JSON"),
    "expectation_failed": Problem(417, "The expectation cannot be met"),
    "validation_failed": Problem(422, "The request is not valid"),
    "unknown_currency": Problem(422, "There is no such currency"),
    "self_transfer": Problem(422, "A transfer to oneself"),
    "idempotency_key_reused": Problem(422, "The Idempotency-Key stands for another request"),
    "too_many_tries": Problem(429, "Too many tries"),
    "too_many_pending": Problem(429, "Too many unfinished operations"),
    "headers_too_large": Problem(431, "The headers are too large"),
    "internal_error": Problem(500, "A defect of ours"),
    "database_unavailable": Problem(503, "The database is away"),
    "outcome_unknown": Problem(503, "The database went away in the middle"),
    "not_ready": Problem(503, "Not ready"),
    "rates_unavailable": Problem(503, "No exchange rate is known"),
    "overloaded": Problem(503, "Too much is waiting"),
    "busy": Problem(503, "Too many passwords at once"),
    "not_yet": Problem(504, "Not finished yet"),
}

DEFINITE_STATUS_MAX = 499  # a refusal up to here stored nothing, and says so
DEFINITE_CODES = {"rates_unavailable", "busy", "overloaded"}  # beyond it, these too

STATUS_CODES = {
    400: "malformed_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    411: "length_required",
    413: "body_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    417: "expectation_failed",
    422: "validation_failed",
    431: "headers_too_large",
}
"""What Falcon's and gunicorn's own refusals are called."""


def problem(code: str, detail: str, **facts: Any) -> dict[str, Any]:
    """An RFC 9457 document. A definite refusal carries `accepted: false`: nothing was stored."""
    status, title = PROBLEMS[code]
    document = {"type": f"urn:kassa:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    if status <= DEFINITE_STATUS_MAX or code in DEFINITE_CODES:
        document["accepted"] = False
    return document | facts


def answer(response: falcon.Response, document: dict[str, Any]) -> None:
    """Write a problem document as the whole answer."""
    response.status = falcon.code_to_http_status(document["status"])
    response.content_type = PROBLEM_JSON
    response.data = msgspec.json.encode(document)
    response.text = response.media = None
    response.set_header("Cache-Control", "no-store")
    response.delete_header("ETag")
    if document["status"] == 401:
        error = "" if document["code"] == "missing_token" else ', error="invalid_token"'
        response.set_header("WWW-Authenticate", f'Bearer realm="kassa"{error}')
    if document["status"] == 503:
        response.set_header("Retry-After", RETRY_AFTER_SECONDS)
    if "retry_after_seconds" in document:
        response.set_header("Retry-After", str(document["retry_after_seconds"]))
    if document["code"] == "too_many_pending":
        tell_limit(response, document["limit"], 0, document["retry_after_seconds"])


def tell_limit(response: falcon.Response, limit: int, remaining: int, seconds: int | None = None) -> None:
    """How many unfinished operations a user may have, how many more, and in how many seconds there is room again.

    The fields of draft-ietf-httpapi-ratelimit-headers.
    """
    response.set_header("RateLimit-Policy", f'"pending";q={limit}')
    response.set_header("RateLimit", f'"pending";r={remaining}' + (f";t={seconds}" if seconds else ""))


def on_refusal(_request: falcon.Request, response: falcon.Response, refusal: Refusal, _params: Any) -> None:
    """A definite no from `core` or from a resource."""
    document = problem(refusal.code, refusal.detail, **refusal.facts)
    if refusal.pointer:
        document["errors"] = [{"pointer": refusal.pointer, "code": refusal.code, "detail": refusal.detail}]
    answer(response, document)


def on_http_error(_request: falcon.Request, response: falcon.Response, error: falcon.HTTPError, _params: Any) -> None:
    """A no from Falcon itself: no such route, method not allowed, a header that cannot be read."""
    code = STATUS_CODES.get(error.status_code, "malformed_request" if error.status_code < 500 else "internal_error")
    for name, value in dict(error.headers or {}).items():
        response.set_header(name, value)
    answer(response, problem(code, error.description or PROBLEMS[code].title + "."))


def on_database_error(
    request: falcon.Request, response: falcon.Response, error: sa.exc.SQLAlchemyError | psycopg2.Error, params: Any
) -> None:
    """The database is away. That is a definite no only where no statement of the request can have reached it."""
    stored = getattr(request.context, "stored", False)
    if not stored and (isinstance(error, sa.exc.TimeoutError) or never_connected(error)):
        log.warning("database_unavailable", error=repr(error))
        answer(response, problem("database_unavailable", "Nothing was stored: try again in a second.", accepted=False))
    elif stored or isinstance(error, psycopg2.Error) or is_connection_lost(error):
        log.warning("outcome_unknown", error=repr(error))
        detail = "It is unknown whether the request was stored: repeat it with the same Idempotency-Key."
        answer(response, problem("outcome_unknown", detail))
    elif isinstance(error, sa.exc.OperationalError):  # cancelled by a timeout: undone, and safe to try again
        log.warning("statement_cancelled", error=repr(error))
        answer(response, problem("database_unavailable", "Nothing was stored: try again in a second.", accepted=False))
    else:
        on_bug(request, response, error, params)


def on_bug(request: falcon.Request, response: falcon.Response, _error: Exception, _params: Any) -> None:
    """Anything unforeseen: loud in the log, and nothing of it in the answer."""
    log.exception("internal_error", method=request.method, path=request.path)
    answer(response, problem("internal_error", "The error was logged; repeat with the same Idempotency-Key."))


def install(app: falcon.App) -> None:
    """Have every error of the application answered from here."""
    app.add_error_handler(Exception, on_bug)
    app.add_error_handler(falcon.HTTPError, on_http_error)
    app.add_error_handler(sa.exc.SQLAlchemyError, on_database_error)
    app.add_error_handler(psycopg2.Error, on_database_error)
    app.add_error_handler(Refusal, on_refusal)
