"""The database: engines with every wait bounded, prepared statements, and a refusal to serve from an unsafe one."""

import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

from core.errors import NotReady

NEVER_CONNECTED = "there was no connection"
MIGRATIONS = "core:migrations"
TURNED_AWAY, COMING = "FATAL:", "the database system is"  # PostgreSQL's words to whom it lets in not, and not yet
START_SECONDS_MAX = 20  # for the database to come up; gunicorn gives a process thirty to start
POOL_WAIT_SECONDS = 2  # a request that gets no connection by then is refused, having stored nothing
IDLE_SECONDS_MAX = 0.1  # a connection that was used since is not looked at again before it is used

FEATURE_NOT_SUPPORTED = "0A000"  # among others: "cached plan must not change result type"
UUID_OID = 2950

SESSION = {
    # A worker frozen while it holds a lane's lock loses it after this; a drain is idle for milliseconds.
    "idle_in_transaction_session_timeout": "4s",
    # Longer than the above, so that whoever waits behind a frozen worker gets its turn rather than an error. But see
    # DRAIN_LOCK_TIMEOUT.
    "lock_timeout": "5s",
    "statement_timeout": "15s",
    # A client that died while its statement waited for a lock must not have it executed afterwards.
    "client_connection_check_interval": "1s",
    # A stopped client takes nothing in: PostgreSQL would keep all notifications for it until there is no more room.
    "tcp_user_timeout": "10s",
    "timezone": "UTC",
    # What is prepared is planned once, and as tests/integration/test_plans.py sees it: not anew for each length of an
    # array.
    "plan_cache_mode": "force_generic_plan",
    # Nor is it planned anew as soon as a table fills that was empty then: it must not read it whole. Where that cannot
    # be helped, PostgreSQL before 18 takes the plan for a costly one, and would compile it at each call.
    "enable_seqscan": "off",  # see `scans` of `engine`
    "jit": "off",
}
# Of those who drain: shorter than the time after which a frozen one loses its locks. Else a second one, frozen while it
# waits, would be handed the lock then, and keep it for as long again. The sweeper alone waits longer, for one lane that
# has stood still for long (worker/apart.py).
DRAIN_LOCK_TIMEOUT = "1s"
LOCK_NOT_AVAILABLE = "55P03"
TCP = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}


class FairPool(QueuePool):
    """Gives connections to those who wait in the order in which they came; QueuePool alone lets newcomers overtake."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turns = Turns(self.size())

    def _do_get(self) -> Any:
        if not self._turns.take(self.timeout()):
            raise sa.exc.TimeoutError(f"no connection of {self.size()} came free within {self.timeout()} s")
        try:
            return super()._do_get()
        except BaseException:
            self._turns.give()
            raise

    def _do_return_conn(self, record: Any) -> None:
        try:
            super()._do_return_conn(record)
        finally:
            self._turns.give()


class Turns:
    """So many turns; one that is given back goes to who has waited longest."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def take(self, seconds: float) -> bool:
        """Wait for a turn. Returns False if none came in time."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            called = threading.Event()
            self._waiting.append(called)
        if called.wait(seconds):
            return True
        with self._lock:
            if not called.is_set():
                self._waiting.remove(called)
        return called.is_set()  # it may have come at the very last moment

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def give(self) -> None:
        """Give a turn back."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


def psycopg2_url(database_url: str) -> sa.URL:
    """Any spelling of a PostgreSQL URL, for psycopg2 (SQLAlchemy 2.1 takes a bare one for psycopg 3)."""
    return sa.make_url(database_url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg2")


def engine(
    database_url: str,
    process: str,
    pool_size: int = 4,
    pool_wait_seconds: float = POOL_WAIT_SECONDS,
    lock_timeout: str = SESSION["lock_timeout"],
    role: str = "none",
    scans: bool = False,
    **arguments: Any,
) -> sa.Engine:
    """An engine whose connections are named after `process`, never wait without end, and take on the role.

    scans: whether its statements read whole tables, as reports do, and should be planned for that.
    """
    session = SESSION | {"lock_timeout": lock_timeout, "role": role, "enable_seqscan": "on" if scans else "off"}
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    made = sa.create_engine(
        psycopg2_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_wait_seconds,
        pool_use_lifo=True,
        hide_parameters=True,  # errors are logged, and parameters may be secret
        poolclass=FairPool,
        connect_args={"application_name": f"kassa-{process}", "options": options, **TCP},
        **arguments,
    )
    sa.event.listen(made, "connect", ids_as_strings)
    sa.event.listen(made, "checkout", refuse_hung_up)
    sa.event.listen(made, "checkin", note_use)
    sa.event.listen(made, "handle_error", mark_never_connected)
    return made


def autocommit(made: sa.Engine) -> sa.Engine:
    """The same pool, for work that is one statement: it saves the round trips of BEGIN and COMMIT."""
    same = made.execution_options()
    sa.event.listen(same, "engine_connect", commit_by_itself)
    return same


def commit_by_itself(connection: sa.Connection) -> None:
    """Set autocommit until the connection goes back to its pool.

    SQLAlchemy's own way talks to the server here and there, and where that is gone the pool is left without the
    connection: a pool of one for ever.
    """
    driver: Any = connection.connection.dbapi_connection
    if driver.autocommit:
        return
    try:
        connection.info["commits_by_itself"] = driver.autocommit = True
    except psycopg2.Error as error:
        connection.invalidate()
        connection.close()
        raise as_sqlalchemy(error, "autocommit") from error


def autocommit_engine(database_url: str, process: str, pool_size: int, role: str = "none") -> sa.Engine:
    """An engine for the hot paths: its connections always commit by themselves, so that none is reset after use."""
    return engine(database_url, process, pool_size, role=role, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)


def ids_as_strings(connection: Any, _record: object) -> None:
    """Read uuid columns as strings, the form in which ids travel through Kassa: SQLAlchemy has them made UUIDs."""
    connection.string_types.pop(UUID_OID, None)


def mark_never_connected(context: sa.engine.ExceptionContext) -> None:
    """Note on an error that there was no connection yet: only then can no statement have been carried out."""
    if context.connection is None and context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.add_note(NEVER_CONNECTED)


def never_connected(error: BaseException) -> bool:
    """Whether the failure was in connecting."""
    return NEVER_CONNECTED in getattr(error, "__notes__", ())


def note_use(connection: Any, record: Any) -> None:
    """Remember when a connection went back to the pool, and have it as it was."""
    record.info["used"] = time.monotonic()
    if record.info.pop("commits_by_itself", False) and connection is not None and not connection.closed:
        try:
            connection.autocommit = False
        except psycopg2.Error as error:
            record.invalidate(error)


def refuse_hung_up(connection: Any, record: Any, _proxy: object) -> None:
    """Have the pool replace a connection that the server closed while it lay idle: a closed socket is readable."""
    if time.monotonic() - record.info.get("used", 0) < IDLE_SECONDS_MAX:
        return
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError


@dataclass(frozen=True)
class Prepared:
    """A statement that each connection prepares once: psycopg2 alone would have it planned at every call.

    It is the fast path of everything hot: psycopg2's own cursor, without what SQLAlchemy does around each statement.
    Its errors are SQLAlchemy's nevertheless. name: of the prepared statement. types: PostgreSQL types of $1, $2 ... in
    order.
    """

    name: str
    types: Sequence[str]
    sql: str

    def rows(self, connection: sa.Connection, parameters: Sequence[Any]) -> list[Any]:
        """Run it with positional parameters. Returns named tuples."""
        return self._fetch(connection, parameters, psycopg2.extras.NamedTupleCursor)

    def tuples(self, connection: sa.Connection, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The same without names, which are a third of what a row costs: for who reads thousands."""
        return self._fetch(connection, parameters, psycopg2.extensions.cursor)

    def row(self, connection: sa.Connection, parameters: Sequence[Any]) -> Any:
        """The first row, or None."""
        return next(iter(self.rows(connection, parameters)), None)

    def _fetch(self, connection: sa.Connection, parameters: Sequence[Any], kind: type) -> list[Any]:
        driver: Any = connection.connection.dbapi_connection
        try:
            return self._run(connection, driver, parameters, kind)
        except psycopg2.Error as error:
            if driver.closed:
                connection.invalidate(error)
            elif error.pgcode == FEATURE_NOT_SUPPORTED:  # a migration has added a column since: the plan is stale
                connection.info["generation"] = connection.info.get("generation", 0) + 1
                if driver.autocommit:  # otherwise the transaction is lost, and the next one prepares anew
                    return self._run(connection, driver, parameters, kind)
            raise as_sqlalchemy(error, self.name) from error

    def _run(self, connection: sa.Connection, driver: Any, parameters: Sequence[Any], kind: type) -> list[Any]:
        info = connection.info
        name = f"{self.name}_{info.get('generation', 0)}"
        prepared = info.setdefault("prepared", set())
        with driver.cursor(cursor_factory=kind) as cursor:
            if name not in prepared:
                cursor.execute(f"PREPARE {name}{in_brackets(self.types)} AS {self.sql}")
                prepared.add(name)
            cursor.execute(f"EXECUTE {name}{in_brackets(['%s'] * len(self.types))}", tuple(parameters))
            return list(cursor.fetchall())


def in_brackets(words: Sequence[str]) -> str:
    """As in `f (a, b)`; nothing at all for none."""
    return f" ({', '.join(words)})" if words else ""


def as_sqlalchemy(error: psycopg2.Error, statement: str) -> BaseException:
    """The error as SQLAlchemy would have raised it, without parameters, which may be secret."""
    made: BaseException = sa.exc.DBAPIError.instance(
        statement, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=is_connection_lost(error)
    )
    return made


def array(values: Iterable[object]) -> str:
    """Numbers, ids, timestamps or plain words as a PostgreSQL array literal: one parameter, cheap to parse.

    Of other text, which may hold control characters, `text_array` is right.
    """
    return "{" + msgspec.json.encode(list(values)).decode()[1:-1] + "}"


def text_array(values: Iterable[Any]) -> str:
    """Any strings as a PostgreSQL array literal; psycopg2 alone would send an expression for each element."""
    return "{" + ",".join("NULL" if value is None else quoted(value) for value in values) + "}"


def quoted(element: str) -> str:
    """Text as an element of an array literal."""
    return '"' + element.replace("\\", r"\\").replace('"', r"\"") + '"'


def migrations() -> Config:
    """Alembic's configuration; the scripts are found inside the package, wherever it is installed."""
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.set_main_option("path_separator", "os")
    return config


def wait_for(made: sa.Engine, seconds: float = START_SECONDS_MAX) -> None:
    """Return when the database takes connections: it may be starting, or recovering.

    Raises what the last try raised; at once where waiting is of no use, as for a wrong password.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with made.connect():
                return
        except sa.exc.OperationalError as error:
            turned_away = TURNED_AWAY in str(error.orig) and COMING not in str(error.orig)
            if turned_away or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def require_ready(made: sa.Engine, lane_count: int) -> None:
    """Raise NotReady unless the database is durable, has exactly this version's schema, and as many lanes."""
    with made.connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            if connection.exec_driver_sql(f"SHOW {setting}").scalar_one() == "off":
                raise NotReady(
                    f"PostgreSQL runs with {setting}=off and would lose acknowledged operations in a crash: "
                    f"set {setting}=on and start again."
                )
        found = MigrationContext.configure(connection).get_current_revision()
        wanted = ScriptDirectory.from_config(migrations()).get_current_head()
        if found != wanted:
            raise NotReady(f"the database has schema {found}, this version needs {wanted}: run ./kassa migrate.")
        if connection.exec_driver_sql("SELECT count(*) FROM lanes").scalar_one() < lane_count:
            raise NotReady(f"the database has fewer lanes than LANES={lane_count}: run ./kassa migrate.")


def is_lock_timeout(error: BaseException) -> bool:
    """Whether somebody else held a lock for too long."""
    return getattr(getattr(error, "orig", error), "pgcode", None) == LOCK_NOT_AVAILABLE


def is_connection_lost(error: BaseException) -> bool:
    """Whether the server went away, rather than refused a statement.

    psycopg2 mostly raises an OperationalError then; where libpq has not noticed yet that it is cut off, its base class.
    """
    cause: Any = getattr(error, "orig", error)
    away = isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError)
    return (away or type(cause) is psycopg2.DatabaseError) and cause.pgcode in (
        None,
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
    )
