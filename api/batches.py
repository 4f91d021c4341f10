"""Handing in many operations at once, and asking what became of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import UUID

import falcon
import structlog

from api.auth import EVERYONE, allowed
from api.dependencies import Dependencies
from api.errors import tell_limit
from api.operations import MAY_ASK, RETRY_AFTER_SECONDS, command_of, require_may_ask
from api.requests import convert, idempotency_key, read_json
from api.responses import send, send_tagged
from api.schemas import AnyOperation, NewBatch, OperationBody, Purchase
from core import batches
from core.db import Turns
from core.errors import Refusal
from core.identity import Caller
from core.metrics import ACCEPTED, REFUSED
from core.operations import Command

BATCH_BYTES_MAX = 8 * 1024 * 1024
REFUSED_SECONDS = 2.0
TURN_SECONDS_MAX = 5.0  # as long as for any lock
WAITING_MAX = 16  # batches of this process: some three seconds' worth


class Batches:
    """`/v1/operations/batch` and `/v1/batches/{id}`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies
        self._turns = Turns(1)

    @allowed(*MAY_ASK)
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Accept each operation of a batch for itself, all of them durably in one transaction."""
        caller: Caller = request.context.caller
        key = idempotency_key(request)
        self._require_hope(caller, key)
        body: NewBatch = read_json(request, NewBatch, BATCH_BYTES_MAX)
        if body.atomic:
            detail = "Each operation of a batch is accepted and applied for itself: leave `atomic` out."
            raise Refusal("atomic_not_supported", detail, pointer="/atomic")
        commands, invalid = self._commands(request, body)
        header = batches.Header(caller.id, key, request.context.request_id)
        stored = self._store(commands, invalid, header)
        request.context.stored = True
        for lane in stored.lanes:
            self.dependencies.doorbell.ring(lane)
        for kind, count in stored.accepted.items():
            ACCEPTED.labels(kind).inc(count)
        structlog.contextvars.bind_contextvars(batch=stored.batch_id, lanes=sorted(stored.lanes))
        send(response, stored.document or self._document(stored.batch_id, caller), falcon.HTTP_202)
        response.set_header("Location", f"/v1/batches/{stored.batch_id}")
        response.set_header("Retry-After", RETRY_AFTER_SECONDS)
        if stored.replayed:
            response.set_header("Idempotency-Replayed", "true")
        if stored.own_room is not None:
            tell_limit(response, self.dependencies.limits.user_pending_max, stored.own_room)

    def _require_hope(self, caller: Caller, key: str | None) -> None:
        """Raise Refusal overloaded for a new batch where there is no room for any, or too many wait for their turn; not
        too soon, for who asks again at once would have us do little else.
        """
        hopeless = self._turns.waiting >= WAITING_MAX or not self.dependencies.limits.has_hope()
        if hopeless and not self._is_known(caller.id, key):
            time.sleep(REFUSED_SECONDS)
            REFUSED.labels("overloaded").inc()
            raise self.dependencies.limits.refusal()

    def _commands(
        self, request: falcon.Request, body: NewBatch
    ) -> tuple[dict[int, Command], dict[int, batches.Errors]]:
        """What is asked for, by place in the batch; and the errors of the places where nothing valid is."""
        caller: Caller = request.context.caller
        commands: dict[int, Command] = {}
        invalid: dict[int, batches.Errors] = {}
        for place, item in enumerate(body.operations):
            try:
                operation: OperationBody = convert(item, AnyOperation)
                if isinstance(operation, Purchase):
                    raise Refusal("not_in_a_batch", "Hand in a purchase by itself.", pointer="/type")
                command = command_of(caller.id, request, operation, None)
                require_may_ask(self.dependencies, caller, command)
                commands[place] = command
            except Refusal as refusal:
                invalid[place] = refusal.facts.get("errors") or [
                    {"pointer": refusal.pointer or "", "code": refusal.code, "detail": refusal.detail}
                ]
        return commands, invalid

    def _store(
        self, commands: dict[int, Command], invalid: dict[int, batches.Errors], header: batches.Header
    ) -> batches.Stored:
        """The stored batch; where another request has just stored it under the same key, that one."""
        with nullcontext() if self._is_known(header.requested_by, header.idempotency_key) else self._turn():
            try:
                with self.dependencies.engine.begin() as connection:
                    return batches.accept(connection, commands, invalid, header, self.dependencies.limits)
            except batches.Simultaneous:
                with self.dependencies.engine.begin() as connection:
                    return batches.accept(connection, commands, invalid, header, self.dependencies.limits)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """New batches of this process are stored one after another, as they are in the database.

        To wait there would take a connection, and keep what has been updated meanwhile from being cleaned up, which
        slows down the drains. Raises Refusal overloaded.
        """
        if not self._turns.take(TURN_SECONDS_MAX):
            raise self.dependencies.limits.refusal()
        try:
            yield
        finally:
            self._turns.give()

    def _is_known(self, requested_by: str, key: str | None) -> bool:
        """Whether there is a batch under the key already."""
        if key is None:
            return False
        with self.dependencies.reader.connect() as connection:
            return batches.is_known(connection, requested_by, key)

    @allowed(*EVERYONE)
    def on_get_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """What has become of a batch so far: counts by status, and every item."""
        send_tagged(request, response, self._document(str(id), request.context.caller))

    def _document(self, batch_id: str, caller: Caller) -> dict[str, Any]:
        """The batch as its sender sees it. Raises Refusal batch_not_found."""
        with self.dependencies.reader.connect() as connection:
            batch = batches.find(connection, batch_id)
            if batch is None or (batch.requested_by != caller.id and not caller.reads_everything):
                raise Refusal("batch_not_found", "You have no such batch.")
            return batches.document(batch, batches.items(connection, batch))
