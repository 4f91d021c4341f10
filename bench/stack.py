"""What a measurement runs on: a Kassa of its own, with users, sessions and money, and a look at what it holds."""

import os
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from cli.migrate import migrate
from cli.run import checks, wait_until_ready
from cli.servers import LOOPBACK, CannotStart, free_port
from cli.stack import ROOT, Stack
from core import db, identity, sessions, settings
from core.accounts import open_account

DRAIN_SECONDS_MAX = 120
FIRST_DEPOSIT = 10**12


@dataclass
class Bench:
    """The running stack, and what was measured so far: figures by part."""

    stack: Stack
    engine: sa.Engine
    seconds: int
    users: int
    service: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://{LOOPBACK}:{self.stack.environment['PORT']}"


def start(seconds: int, users: int, name: str = "bench") -> Bench:
    """A stack of its own in DATA_DIR/`name`, its database empty."""
    own = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "SECRET_KEY", "PORT", "FLOWER_PORT", "ADMIN_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    data_dir = Path(environment.get("DATA_DIR") or ROOT / ".data") / name
    stack = Stack(data_dir, environment)
    stack.claim()
    shutil.rmtree((stack.data_dir / "postgres").resolve(), ignore_errors=True)
    for name in ("PORT", "FLOWER_PORT", "ADMIN_PORT"):
        environment[name] = str(free_port(0))
    environment["LOG_LEVEL"] = environment.get("LOG_LEVEL") or "WARNING"
    environment["ACCESS_TOKEN_SECONDS"] = "86400"
    stack.start_servers()
    configuration = settings.load(environment)
    engine = db.engine(configuration.database_url, "bench", 4)
    db.wait_for(engine)
    migrate(engine, configuration.lanes)
    stack.start_processes()
    for name, is_ready in checks(environment, engine).items():
        wait_until_ready(stack, name, is_ready)
    return Bench(stack, engine, seconds, users)


def load(bench: Bench) -> None:
    """Users with sessions and money, and the tables of the bare transactions."""
    print(f"loading {bench.users:,} users ...", flush=True)
    configuration = settings.load(bench.stack.environment)
    lines = []
    with bench.engine.begin() as connection:
        for number in range(bench.users):
            user_id = identity.insert_user(connection, configuration, f"bench-{number}", None, None)
            account = open_account(connection, user_id).account_id
            lines.append(f"{token(connection, configuration, user_id)} {account} {user_id}")
        service = identity.insert_user(connection, configuration, "bench-service", None, None)
        connection.execute(sa.text("UPDATE users SET role = 'service' WHERE id = :id"), {"id": service})
        bench.service = token(connection, configuration, service)
        connection.exec_driver_sql(f"""
            CREATE TABLE bare_accounts (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
            INSERT INTO bare_accounts SELECT i, 1000000 FROM generate_series(1, {bench.users}) AS i;
            CREATE TABLE bare_history (id bigserial PRIMARY KEY, account_id int, amount bigint, created_at timestamptz)
        """)
    (bench.stack.data_dir / "users.txt").write_text("\n".join(lines) + "\n")
    deposit_to_all(bench, [line.split()[2] for line in lines])
    settle(bench)


def token(connection: sa.Connection, configuration: settings.Settings, user_id: str) -> str:
    """An access token of a session of the user."""
    return str(sessions.open_session(connection, configuration, user_id)["access_token"])


def deposit_to_all(bench: Bench, user_ids: list[str]) -> None:
    """Give every user money, by batches through the API."""
    headers = {"Authorization": f"Bearer {bench.service}"}
    with httpx.Client(base_url=bench.url, headers=headers, timeout=60) as client:
        for first in range(0, len(user_ids), 1000):
            items = [{"type": "deposit", "amount": FIRST_DEPOSIT, "user_id": u} for u in user_ids[first : first + 1000]]
            client.post("/v1/operations/batch", json={"operations": items}).raise_for_status()
    wait_until_applied(bench)


def wait_until_applied(bench: Bench) -> None:
    """Return when nothing is pending."""
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    while count(bench, "SELECT count(*) FROM (SELECT FROM queue LIMIT 1) AS unfinished"):
        if time.monotonic() > deadline:
            raise CannotStart(f"operations are still pending after {DRAIN_SECONDS_MAX} s: see the logs.")
        time.sleep(0.02)


def settle(bench: Bench) -> None:
    """Have PostgreSQL do what earlier parts left to be done, vacuums and writes, lest it be done beside the next."""
    with db.autocommit(bench.engine).connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")
        connection.exec_driver_sql("RESET statement_timeout")


def count(bench: Bench, query: str) -> int:
    """One number."""
    with db.autocommit(bench.engine).connect() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


def processes(bench: Bench) -> dict[str, list[psutil.Process]]:
    """Every process of the stack with its children, by name. PostgreSQL's leave its process group."""
    leaders = {
        name: psutil.Process(process.running.pid) for name, process in bench.stack.processes.items() if process.running
    }
    return {name: [leader, *leader.children(recursive=True)] for name, leader in leaders.items()}


def memory(bench: Bench) -> dict[str, int]:
    """Bytes of each process with its children; pages that several share are divided among them (PSS)."""
    return {name: sum(map(share_of_memory, each)) for name, each in processes(bench).items()}


def share_of_memory(process: psutil.Process) -> int:
    """The bytes that a process takes, with its share of what it has in common with others; 0 once it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def processor_seconds(bench: Bench) -> float:
    """What the whole stack has used of processors so far, those of its processes included that have ended."""
    return sum(seconds_of(process) for each in processes(bench).values() for process in each)


def seconds_of(process: psutil.Process) -> float:
    """What a process and its children that have ended have used; 0 where it has ended itself: then its parent tells."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


def ratio(figures: list[float], others: list[float]) -> float:
    """The median of the ratios within each round: what was measured at the same time had the same machine."""
    return statistics.median(figure / other for figure, other in zip(figures, others, strict=True))
