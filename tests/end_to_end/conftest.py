"""A whole Kassa, every process of the Procfile, watched and restarted; after each test its ledger is reconciled."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cli.run import checks, wait_until_ready
from cli.servers import LOOPBACK, free_port
from cli.stack import Stack, group
from core import db
from core.reconcile import violations
from tests.conftest import LANES, TEMPLATE, create_database
from tests.contract import Contract
from tests.mailbox import Mailbox

SETTLE_SECONDS = 20  # until everything accepted must be finished, whatever a test has broken and mended
PASSWORD = "correct horse battery"
PLANTED = "planted-"  # what secrets of tests begin with that are sent, and must not be logged

Answer = httpx.Response


class Kassa:
    """The running system: its addresses, its processes, its database."""

    def __init__(self, stack: Stack, mailbox: Mailbox) -> None:
        self.stack = stack
        self.mailbox = mailbox
        self.url = f"http://{LOOPBACK}:{stack.environment['PORT']}"
        self.admin = f"http://{LOOPBACK}:{stack.environment['ADMIN_PORT']}"
        self.flower = f"http://{LOOPBACK}:{stack.environment['FLOWER_PORT']}"
        self.engine = db.engine(stack.environment["DATABASE_URL"], "tests", 4)
        self.http = httpx.Client(base_url=self.url, timeout=40, limits=httpx.Limits(max_connections=200))
        self.issued: set[str] = set()  # every token of the session, none of which may be in a log
        self._numbers = iter(range(10**9))

    def user(self, deposit: int = 0, name: str = "") -> "User":
        """A new user, logged in, with some money."""
        username = name or f"user-{next(self._numbers)}-{os.getpid()}"
        registered = self.http.post("/v1/auth/register", json={"username": username, "password": PASSWORD})
        assert registered.status_code == 201, registered.text
        user = User(self, registered.json())
        if deposit:
            assert user.operate(type="deposit", amount=deposit).json()["status"] == "applied"
        return user

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the whole group of a process."""
        os.killpg(self.stack.processes[name].running.pid, number)

    def kill(self, name: str, *, and_keep_down: bool = False) -> None:
        """kill -9 the whole group of a process; unless kept down it is started again."""
        process = self.stack.processes[name]
        if and_keep_down:
            process.restart_at = float("inf")
        pid = process.running.pid
        os.killpg(pid, signal.SIGKILL)
        until(lambda: not group(pid))

    def revive(self, name: str) -> None:
        """Let a process that was kept down be started again."""
        self.stack.processes[name].restart_at = 0.0

    def secrets(self) -> set[str]:
        """All that must be in no log."""
        environment = self.stack.environment
        passwords = {environment[name].split(":")[2].split("@")[0] for name in ("DATABASE_URL", "REDIS_URL")}
        return {PASSWORD, PLANTED, "$argon2id$", environment["SECRET_KEY"], *passwords, *self.issued}

    def secrets_logged(self) -> list[str]:
        """The logs in which a secret is."""
        logs = sorted((self.stack.data_dir / "log").glob("*.log"))
        return [log.name for log in logs if any(secret in log.read_text(errors="replace") for secret in self.secrets())]

    def unstructured(self) -> list[str]:
        """What our processes have logged that is no line of JSON."""
        logs = [self.stack.data_dir / "log" / f"{name}.log" for name in ("api", "admin", "worker", "sweeper", "beat")]
        return [
            line for log in logs for line in log.read_text(errors="replace").splitlines() if not line.startswith("{")
        ]

    def pending(self) -> int:
        """How many operations are accepted and not finished."""
        with self.engine.connect() as connection:
            return connection.execute(sa.text("SELECT count(*) FROM operations WHERE status = 'pending'")).scalar_one()


class User:
    """A logged-in client."""

    def __init__(self, kassa: Kassa, registered: dict[str, Any]) -> None:
        self.kassa = kassa
        self.id: str = registered["user"]["id"]
        self.name: str = registered["user"]["username"]
        self.account_id: str = registered["account"]["id"]
        logged_in = kassa.http.post("/v1/auth/login", json={"username": self.name, "password": PASSWORD})
        self.tokens: dict[str, Any] = logged_in.json()
        self.headers = {"Authorization": f"Bearer {self.tokens['access_token']}"}
        kassa.issued |= {self.tokens["access_token"], self.tokens["refresh_token"]}

    def get(self, path: str, **headers: str) -> Answer:
        """GET with the user's token."""
        return self.kassa.http.get(path, headers=self.headers | headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """POST with the user's token."""
        return self.kassa.http.post(path, json=body, headers=self.headers | headers)

    def operate(self, *, wait: int = 10, key: str = "", **body: Any) -> Answer:
        """Hand in an operation, and, with `wait`, wait for its outcome."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        return self.post("/v1/operations", body, **headers, **({"Idempotency-Key": key} if key else {}))

    def balance(self) -> int:
        """The balance of the default account."""
        return self.get("/v1/balance").json()["balance"]


def until(condition: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> float:
    """Wait for a state. Returns the seconds that it took; fails if it does not come."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.fixture(scope="session")
def mailbox() -> Iterator[Mailbox]:
    """Where all of Kassa's mail goes."""
    with Mailbox() as made:
        yield made


@pytest.fixture(scope="session")
def running(servers: Stack, mailbox: Mailbox) -> Iterator[Kassa]:
    """All processes, for the whole session."""
    servers.environment |= {
        "DATABASE_URL": create_database(servers, "kassa_end_to_end", TEMPLATE),
        "PORT": str(free_port(0)),
        "ADMIN_PORT": str(free_port(0)),
        "FLOWER_PORT": str(free_port(0)),
        "LANES": str(LANES),
        "SMTP_URL": mailbox.url,
        "RATES_URL": f"http://{LOOPBACK}:{free_port(0)}/scripts/XML_daily.asp",  # nobody there, until a test is
        "FLOWER_UNAUTHENTICATED_API": "1",
    }
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            servers.watch()

    watcher = threading.Thread(target=watch, daemon=True)
    kassa = Kassa(servers, mailbox)
    try:
        servers.start_processes()
        for name, is_ready in checks(servers.environment, kassa.engine).items():
            wait_until_ready(servers, name, is_ready)
        contract = Contract(kassa.http.get("/openapi.json").raise_for_status().json())
        kassa.http.event_hooks = {"response": [contract.hold]}  # whatever a test asks is answered as documented
        watcher.start()
        yield kassa
        assert kassa.secrets_logged() == []
        assert kassa.unstructured() == []
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()
        kassa.http.close()
        kassa.engine.dispose()


@pytest.fixture
def kassa(running: Kassa) -> Iterator[Kassa]:
    """The running system; when the test is over, all is finished and the ledger reconciles."""
    yield running
    until(lambda: running.pending() == 0)
    assert violations(running.engine) == []


@pytest.fixture
def log_directory(running: Kassa) -> Path:
    """Where the processes log."""
    return running.stack.data_dir / "log"
