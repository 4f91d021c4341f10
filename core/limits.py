"""Overload is refused before anything is stored: to a user with too much unfinished, and to all where too much waits.

The limit of a user is part of the accepting statements, which have the user's row locked anyway, and so is exact.

For the whole, the one row of the table `load` says how many operations waited when they were last counted, and how
many have been let in since. Counting takes the longer the more wait, and so is done the more seldom. Far from the limit
a process notes there a few times a second what it has let in. Batches always, and near the limit everybody, lock the
row until they have stored; just below the limit they count under that lock. So no more get in than are allowed, however
many processes there are. Retries of what is stored, and reads, are served in any case.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
import structlog

from core import lanes
from core.db import Prepared
from core.errors import Refusal
from core.metrics import REFUSED

LOOK_SECONDS = 0.5
COUNTING_SHARE = 0.05  # of the time goes into counting, at most
APART_SECONDS_MAX = 10  # are counts, though one took long: it may have been frozen
OLD_SECONDS = 5  # a count that should have been repeated so long ago says nothing about now
NEAR_SHARE, NEAR_OPERATIONS = 0.1, 10_000  # so close to the limit everybody locks; more than come in between two looks
TRUSTED_SHARE = 0.95  # of the limit: up to there what was let in since the last count need not be known exactly
RETRY_SECONDS_MAX = 60
ENOUGH = 0.9  # of the limit: when so much is left, it is worth asking again

FOUND = """
counted + let_in AS pending, load.oldest_seconds, count_seconds,
extract(epoch FROM clock_timestamp() - counted_at)::float AS age,
coalesce(pg_sequence_last_value('apply_no'::regclass), 0) AS finished
"""
LOOK = Prepared("load_look", [], f"SELECT {FOUND} FROM load")
LOCK = Prepared("load_lock", [], f"SELECT {FOUND} FROM load FOR NO KEY UPDATE")
LOCK_IF_FREE = Prepared("load_lock_if_free", [], f"SELECT {FOUND} FROM load FOR NO KEY UPDATE SKIP LOCKED")
NOTE = Prepared("load_note", ["bigint"], f"UPDATE load SET let_in = let_in + $1 RETURNING {FOUND}")
COUNT = Prepared(
    "load_count",
    [],
    f"""
WITH waiting AS MATERIALIZED (
    SELECT (SELECT count(*) FROM queue) AS operations,
           coalesce((SELECT extract(epoch FROM clock_timestamp() - min(created_at))
                       FROM ({lanes.WAITING_SINCE}) AS heads), 0) AS oldest_seconds
)
UPDATE load SET counted = waiting.operations, let_in = 0, oldest_seconds = waiting.oldest_seconds,
                counted_at = clock_timestamp(),
                count_seconds = extract(epoch FROM clock_timestamp() - statement_timestamp())
  FROM waiting
RETURNING {FOUND}
""",
)
log = structlog.get_logger("kassa.api")


@dataclass(frozen=True)
class Bounds:
    """What an acceptance is held to: a user's unfinished operations; `refusal` where there is no room for anybody."""

    user_pending_max: int = 2**62
    refusal: Refusal | None = None
    retry_after_seconds: int = 1


@dataclass
class Load:
    """What a look has found, and how much this process has let in since, and not noted in the row yet."""

    at: float = 0.0  # monotonic
    pending: int = 0
    finished: int = 0
    oldest_seconds: float = 0.0
    finished_per_second: float = 0.0
    let_in: int = 0


@dataclass
class Admission:
    """A connection to store operations by, how many may be stored there, and how many were."""

    connection: sa.Connection
    room: int
    stored: int = 0


class Limits:
    """The limits of one API process. `reader`: in autocommit; `engine`: for transactions."""

    def __init__(
        self, reader: sa.Engine, engine: sa.Engine, *, user_pending: int, pending: int, pending_seconds: int
    ) -> None:
        self.user_pending_max = user_pending
        self._reader = reader
        self._engine = engine
        self._pending_max = pending
        self._pending_seconds_max = pending_seconds
        self._load = Load(pending=pending - 1)  # all count until it has been seen
        self._looking = threading.Lock()
        self._batches_wait = False

    @contextmanager
    def admission(self, wanted: int) -> Iterator[Admission]:
        """For the wanted, or fewer, to be stored by one statement. Whoever stores them says so in the admission."""
        self._look_now_and_then()
        if self._is_full():
            with self._reader.connect() as connection:
                yield Admission(connection, 0)
        elif self._load.pending + self._load.let_in + wanted <= self._far():
            self._load.let_in += wanted
            with self._reader.connect() as connection:
                yield Admission(connection, wanted)
        else:
            with self._engine.begin() as connection:
                admission = Admission(connection, min(wanted, self._locked_room(connection, wanted, exactly=True)))
                yield admission
                self._note(admission)

    @contextmanager
    def admission_of_all(self, connection: sa.Connection, wanted: int) -> Iterator[Admission]:
        """For all the wanted, in the transaction that is to store them. Raises Refusal overloaded."""
        self._look_now_and_then()
        if self._is_full() or wanted > self._locked_room(connection, wanted, exactly=False):
            self._batches_wait = True
            REFUSED.labels("overloaded").inc(wanted)
            raise self.refusal()
        admission = Admission(connection, wanted)
        yield admission
        self._note(admission)

    def has_hope(self) -> bool:
        """Before a batch is read: False if one found no room, and not enough has become free since.

        To read and validate what is refused anyway would take from the workers what they need to make room.
        """
        self._look_now_and_then()
        return not self._batches_wait

    def bounds(self, room: int) -> Bounds:
        """For an acceptance for which there is so much room."""
        return Bounds(self.user_pending_max, None if room else self.refusal(), self.retry_after_seconds())

    def refusal(self) -> Refusal:
        """For whoever finds no room."""
        seconds = self.retry_after_seconds()
        return Refusal("overloaded", f"Too much is waiting: ask again in {seconds} s.", retry_after_seconds=seconds)

    def retry_after_seconds(self) -> int:
        """When there will be room, by how fast the workers are."""
        excess = self._load.pending + self._load.let_in - ENOUGH * self._pending_max
        if excess <= 0:
            return 1
        if self._load.finished_per_second < 1:
            return RETRY_SECONDS_MAX
        return max(1, min(RETRY_SECONDS_MAX, round(excess / self._load.finished_per_second)))

    def is_near(self) -> bool:
        """Whether everybody counts, or is refused: retries of what is stored had better not queue up for that."""
        return self._is_full() or self._load.pending + self._load.let_in >= self._far()

    def _is_full(self) -> bool:
        """Whether there was no room a moment ago: then nobody counts again, or waits for those who do."""
        return self._load.pending >= self._pending_max or self._load.oldest_seconds > self._pending_seconds_max

    def _far(self) -> float:
        """Up to here nobody needs to count."""
        return self._pending_max - max(NEAR_OPERATIONS, NEAR_SHARE * self._pending_max)

    def _locked_room(self, connection: sa.Connection, wanted: int, *, exactly: bool) -> int:
        """How many may be stored in this transaction; nobody else is let in until it ends.

        exactly: count whatever it costs where only that can tell. Otherwise there is no room for now.
        """
        found, trusted = LOCK.row(connection, ()), TRUSTED_SHARE * self._pending_max - self._load.let_in
        unknown = found.pending + wanted > trusted
        if is_due(found, LOOK_SECONDS) or (unknown and (exactly or is_due(found, 0))):
            self._see(COUNT.row(connection, ()))
            return max(0, self._pending_max - self._load.pending)
        self._load.pending = found.pending
        return 0 if unknown else wanted

    def _note(self, admission: Admission) -> None:
        """Under the row's lock: what was stored."""
        if admission.stored:
            self._load.pending = NOTE.row(admission.connection, (admission.stored,)).pending

    def _look_now_and_then(self) -> None:
        if time.monotonic() - self._load.at < LOOK_SECONDS or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except sa.exc.SQLAlchemyError as error:  # whoever accepts will meet it, too, and knows how to tell
            log.warning("load_not_seen", error=repr(error))
        finally:
            self._looking.release()

    def _look(self) -> None:
        """Others go on meanwhile, by what was seen before; if that was long ago, they count."""
        before, now = self._load, time.monotonic()
        recent = now - before.at < OLD_SECONDS
        self._load = replace(before, at=now) if recent else Load(now, self._pending_max - 1)
        with self._engine.begin() as connection:
            found, let_in = LOCK_IF_FREE.row(connection, ()), self._load.let_in
            if found is None:  # whoever has the row counts, if it is time
                found, let_in = LOOK.row(connection, ()), 0
            elif is_due(found, LOOK_SECONDS):
                found = COUNT.row(connection, ())
            else:
                found = NOTE.row(connection, (let_in,))
        self._load.let_in -= let_in
        if not is_due(found, OLD_SECONDS):
            self._see(found)
        if recent:
            self._load.finished_per_second = max(0, found.finished - before.finished) / (now - before.at)

    def _see(self, found: Any) -> None:
        self._load.pending, self._load.finished = found.pending, found.finished
        self._load.oldest_seconds = found.oldest_seconds
        if found.pending <= ENOUGH * self._pending_max and not self._is_full():
            self._batches_wait = False


def is_due(found: Any, seconds: float) -> bool:
    """Whether the last count is older than that, and it is affordable to count again.

    If it lies in the future, PostgreSQL's clock has been set back since.
    """
    return not 0 <= found.age <= max(seconds, min(found.count_seconds / COUNTING_SHARE, APART_SECONDS_MAX))
