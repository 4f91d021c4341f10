"""Handing in operations, and asking what became of them."""

from typing import Any
from uuid import UUID

import falcon
import msgspec
import psycopg2
import sqlalchemy as sa
import structlog

from api.auth import EVERYONE, Bearer, allowed, require
from api.dependencies import Dependencies
from api.errors import tell_limit
from api.requests import idempotency_key, preferred_wait, read_json, read_query
from api.responses import is_known_state, send, send_tagged
from api.schemas import AnyOperation, OperationBody, OperationsQuery, WaitQuery
from core import history, views
from core.acceptance import Accepted, Asker, request_cancellation
from core.errors import Refusal
from core.identity import Caller, reads_everything
from core.metrics import ACCEPTED
from core.operations import Command
from core.views import Asked

RETRY_AFTER_SECONDS = "1"
MAY_ASK = ("user", "service", "admin")
log = structlog.get_logger("kassa.api")

CANCEL_WAIT_SECONDS = 2  # a lane that stands still for longer finishes it later, and the client need not wait


class Operations:
    """`/v1/operations` and `/v1/operations/{id}`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    @allowed(*MAY_ASK, looks_itself=True)
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Accept an operation: stored durably, then announced, then answered."""
        bearer: Bearer = request.context.bearer
        body: OperationBody = read_json(request, AnyOperation)
        asked = command_of(bearer.user_id, request, body, idempotency_key(request))
        wait = preferred_wait(request)
        asker = Asker(
            bearer.session_id,
            roles_that_may_ask(self.dependencies, asked),
            lambda connection: require_may_ask(
                self.dependencies, require(self.dependencies, request, MAY_ASK, connection), asked
            ),
        )
        accepted = self.dependencies.gathering.accept(asked, asker)
        request.context.stored = True
        if not accepted.replayed:
            ACCEPTED.labels(asked.type).inc()
            self.dependencies.doorbell.ring(accepted.row.lane)
        structlog.contextvars.bind_contextvars(operation=accepted.row.id, lane=accepted.row.lane)
        row = self._await(accepted.row, wait) if wait else accepted.row
        self._receipt(response, row, accepted, wait)

    def _await(self, row: Any, seconds: int) -> Any:
        """The operation once it is finished, or as it is when the time is over."""
        if row.status != "pending":
            return row
        finished = self.dependencies.waiting.until_finished(row.id, seconds)
        if finished is not None:
            return views.as_finished(row, finished)
        try:
            with self.dependencies.reader.connect() as connection:
                return views.find_operation(connection, row.id) or row
        except (sa.exc.SQLAlchemyError, psycopg2.Error):  # it is stored, whatever has happened to the database
            log.warning("outcome_not_read", operation=row.id)
        return row

    def _receipt(self, response: falcon.Response, row: Any, accepted: Accepted, wait: int | None) -> None:
        """200 with the finished operation for those who waited, else 202."""
        finished = wait is not None and row.status != "pending"
        send(response, views.operation(row), falcon.HTTP_200 if finished else falcon.HTTP_202)
        response.set_header("Location", f"/v1/operations/{row.id}")
        response.set_header("Vary", "Prefer")
        if finished:
            response.set_header("Preference-Applied", f"wait={wait}")
        else:
            response.set_header("Retry-After", RETRY_AFTER_SECONDS)
        if accepted.replayed:
            response.set_header("Idempotency-Replayed", "true")
        else:
            most = self.dependencies.limits.user_pending_max
            tell_limit(response, most, max(0, most - accepted.row.user_pending))

    @allowed(*EVERYONE, looks_itself=True)
    def on_get_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """One operation; with `wait`, as soon as it is finished."""
        query: WaitQuery = read_query(request, WaitQuery)
        bearer: Bearer = request.context.bearer
        row = self._find(bearer, str(id))
        if query.wait:
            row = self._await(row, query.wait)
        if row.status == "pending":
            response.set_header("Retry-After", RETRY_AFTER_SECONDS)
        send_tagged(request, response, views.operation(row, incoming=views.is_incoming(row, bearer.user_id)))

    def _find(self, bearer: Bearer, operation_id: str) -> Any:
        """The operation, if who asks may see it. Raises Refusal operation_not_found."""
        row = self.dependencies.operations.ask(Asked(bearer.session_id, bearer.user_id, operation_id))
        return require_visible(row, bearer.user_id, row is not None and reads_everything(row.caller_role))

    def _find_for(self, caller: Caller, operation_id: str) -> Any:
        """The same for a caller who is known, whatever has become of the session since."""
        with self.dependencies.reader.connect() as connection:
            row = views.find_operation(connection, operation_id)
        return require_visible(row, caller.id, caller.reads_everything)

    @allowed(*EVERYONE)
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """The caller's history, a page at a time."""
        fields = msgspec.structs.asdict(read_query(request, OperationsQuery))
        fields["account_id"] = str(fields["account_id"]) if fields["account_id"] else None
        caller: Caller = request.context.caller
        with self.dependencies.reader.connect() as connection:
            owner = self._owner(connection, caller, fields["account_id"])
            if is_known_state(request, response, *history.state(connection, owner)):
                return
            page = history.page(connection, owner, history.Query(**fields))
        send(response, {"items": page.items, "next_cursor": page.next_cursor})
        if page.next_cursor:
            following = dict(request.params) | {"cursor": page.next_cursor}
            response.append_link(f"/v1/operations{falcon.to_query_str(following)}", "next")

    def _owner(self, connection: sa.Connection, caller: Caller, account_id: str | None) -> str:
        """Whose history is read: the caller's, or, by those who read everything, that of the account's owner."""
        account = views.find_account(connection, account_id) if account_id and caller.reads_everything else None
        return account.user_id if account is not None else caller.id

    @allowed("user", "service", "admin")
    def on_delete_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Take an operation back, unless it is finished."""
        caller: Caller = request.context.caller
        row = self._find_for(caller, str(id))
        if row.user_id != caller.id and not caller.acts_for_others:
            raise Refusal("operation_not_found", "You have no such operation.")
        if row.status != "pending":
            raise Refusal("already_finished", f"The operation is {row.status}.", operation=views.operation(row))
        with self.dependencies.engine.begin() as connection:
            request_cancellation(connection, row.id, row.lane)
        request.context.stored = True
        self.dependencies.doorbell.ring(row.lane)
        row = self._await(self._find_for(caller, row.id), CANCEL_WAIT_SECONDS)
        if row.status not in ("canceled", "pending"):
            raise Refusal("already_finished", f"The operation is {row.status}.", operation=views.operation(row))
        send(response, views.operation(row))


def require_visible(row: Any, user_id: str, sees_everything: bool) -> Any:
    """The row of an operation that the user may see. Raises Refusal operation_not_found."""
    if row is None or row.id is None or not (sees_everything or views.may_see_operation(row, user_id)):
        raise Refusal("operation_not_found", "You have no such operation.")
    return row


def command_of(asker_id: str, request: falcon.Request, body: OperationBody, key: str | None) -> Command:
    """What is asked for, and in whose name: by default the asker's own."""
    fields: dict[str, Any] = msgspec.to_builtins(body)
    return Command(
        user_id=fields.pop("user_id", None) or asker_id,
        requested_by=asker_id,
        idempotency_key=key,
        request_id=request.context.request_id,
        **fields,
    )


def roles_that_may_ask(dependencies: Dependencies, command: Command) -> tuple[str, ...]:
    """Only a service acts for another user; and users deposit for themselves only where that is switched on."""
    if command.user_id != command.requested_by:
        return ("service",)
    if command.type == "deposit" and not dependencies.settings.self_deposit:
        return ("service", "admin")
    return MAY_ASK


def require_may_ask(dependencies: Dependencies, caller: Caller, command: Command) -> None:
    """Raise Refusal unless the caller's role may ask for this: forbidden, self_deposit_forbidden."""
    if caller.role in roles_that_may_ask(dependencies, command):
        return
    if command.user_id != caller.id:
        raise Refusal("forbidden", "Only a service may act for another user.", pointer="/user_id")
    raise Refusal("self_deposit_forbidden", "Ask whoever runs this service to deposit for you.")
