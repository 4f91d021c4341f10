"""Measure Kassa beside bare SQL transactions on the same PostgreSQL, in the same run.

Starts a fresh stack of its own in DATA_DIR/bench, loads users through the API's own code, and then runs every part
several times, interleaved, because machines are shared and noisy. Each part ends when everything accepted is applied;
a figure whose ledger does not reconcile is an error. Prints a table, and writes DATA_DIR/bench/results.json.

Needs wrk (Debian: apt-get install wrk); pgbench comes with the bundled PostgreSQL.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from cli import servers
from cli.migrate import migrate, wait_for
from cli.run import checks, wait_until_ready
from cli.servers import LOOPBACK, CannotStart, free_port
from cli.stack import ROOT, Stack, group
from core import db, identity, sessions, settings
from core.accounts import open_account
from core.reconcile import violations

CONNECTIONS = 64
PGBENCH_CLIENTS = (8, 16, 32)
DRAIN_SECONDS_MAX = 120
FIRST_DEPOSIT = 10**12
MUST = {"single": ("bare", 0.30), "batch": ("bare", 1.5), "hot": ("bare_hot", 4.0), "reads": ("bare_read", 0.04)}


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


PARTS = ("bare", "bare_hot", "bare_read", "single", "wait", "batch", "hot", "reads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and which parts."""
    parser.add_argument("--seconds", type=int, default=8, help="of each run of a part (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each part (default: %(default)s)")
    parser.add_argument("--users", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")


def main(arguments: argparse.Namespace) -> int:
    """Run all parts, interleaved, and print the table."""
    if not shutil.which("wrk"):
        raise CannotStart("wrk is missing: install it (Debian: apt-get install wrk).")
    bench = start(arguments)
    try:
        load(bench)
        for number in range(arguments.rounds):
            for part in arguments.parts:
                figure = RUN[part](bench, part)
                bench.figures.setdefault(part, []).append(figure)
                print(f"round {number + 1}  {part:10} {figure:12,.0f} /s", flush=True)
            if broken := violations(bench.engine):
                raise CannotStart(f"the ledger does not reconcile: {broken}")
        print(table(bench))
        results = bench.stack.data_dir / "results.json"
        results.write_text(json.dumps({"figures": bench.figures, "notes": bench.notes}, indent=1))
        print(f"The ledger reconciles. Figures are in {results}.")
    finally:
        bench.engine.dispose()
        bench.stack.stop()
    return 0


def start(arguments: argparse.Namespace) -> Bench:
    """A fresh stack."""
    own = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "PORT", "FLOWER_PORT", "ADMIN_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    data_dir = Path(environment.get("DATA_DIR") or ROOT / ".data") / "bench"
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
    wait_for(engine)
    migrate(engine, configuration.lanes)
    stack.start_processes()
    for name, is_ready in checks(environment, engine).items():
        wait_until_ready(stack, name, is_ready)
    return Bench(stack, engine, arguments.seconds, arguments.users)


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
    with db.autocommit(bench.engine).connect() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


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
    while count(bench, "SELECT count(*) FROM operations WHERE status = 'pending'"):
        if time.monotonic() > deadline:
            raise CannotStart(f"operations are still pending after {DRAIN_SECONDS_MAX} s: see the logs.")
        time.sleep(0.02)


def count(bench: Bench, query: str) -> int:
    """One number."""
    with db.autocommit(bench.engine).connect() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


def bare(bench: Bench, part: str) -> float:
    """Transactions a second of pgbench, at the best number of clients."""
    script = "read.sql" if part == "bare_read" else "bare.sql"
    payers = 1 if part == "bare_hot" else bench.users
    best = 0.0
    for clients in PGBENCH_CLIENTS:
        command = [
            str(servers.postgres_binaries() / "pgbench"),
            *("--no-vacuum", "--protocol=prepared", "--jobs=2", f"--client={clients}"),
            *(f"--time={max(2, bench.seconds // 2)}", f"--define=users={bench.users}", f"--define=payers={payers}"),
            f"--file={ROOT / 'bench' / script}",
            bench.stack.environment["DATABASE_URL"],
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise CannotStart(f"pgbench failed: {ran.stderr.strip()}")
        [line] = [line for line in ran.stdout.splitlines() if line.startswith("tps = ")]
        best = max(best, float(line.split()[2]))
    return best


def operations(bench: Bench, part: str) -> float:
    """Operations a second, accepted and applied, from the first request until nothing is pending."""
    before, started = count(bench, "SELECT count(*) FROM operations"), time.monotonic()
    wrk(bench, part)
    wait_until_applied(bench)
    seconds = time.monotonic() - started
    return (count(bench, "SELECT count(*) FROM operations") - before) / seconds


def requests(bench: Bench, part: str) -> float:
    """Requests a second."""
    result = wrk(bench, part)
    return float(result["requests"]) / result["microseconds"] * 1e6


def wrk(bench: Bench, part: str) -> dict[str, Any]:
    """Run the load generator. Raises CannotStart if a request failed."""
    connections = 8 if part in ("batch", "hot") else CONNECTIONS
    environment = os.environ | {
        "KIND": part,
        "USERS": str(bench.stack.data_dir / "users.txt"),
        "SERVICE": bench.service,
    }
    command = [
        "wrk",
        *(f"-c{connections}", "-t1", f"-d{bench.seconds}s", "--timeout", "30s"),
        *("-s", str(ROOT / "bench" / "load.lua"), bench.url),
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    results = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise CannotStart(f"wrk failed: {ran.stdout} {ran.stderr}")
    result: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    if result["errors"]:
        raise CannotStart(f"{part}: {result['errors']} requests failed.")
    bench.notes.setdefault(part, []).append(result | {"memory": memory(bench)})
    return result


def memory(bench: Bench) -> dict[str, int]:
    """Resident bytes of each process with its children (shared pages counted once for each)."""
    return {
        name: sum(psutil.Process(pid).memory_info().rss for pid in group(process.running.pid))
        for name, process in bench.stack.processes.items()
        if process.running
    }


RUN: dict[str, Callable[[Bench, str], float]] = {
    **dict.fromkeys(("bare", "bare_hot", "bare_read"), bare),
    **dict.fromkeys(("single", "wait", "batch", "hot"), operations),
    "reads": requests,
}


def table(bench: Bench) -> str:
    """Each figure's median, minimum and maximum, and its ratio to pgbench in the same run."""
    medians = {part: statistics.median(figures) for part, figures in bench.figures.items()}
    lines = ["", f"{'part':10} {'median/s':>12} {'min':>12} {'max':>12}  ratio"]
    for part, figures in bench.figures.items():
        base, must = MUST.get(part, ("", 0.0))
        ratio = f"{medians[part] / medians[base]:.3f} x {base} (must reach {must})" if base in medians else ""
        if part == "wait" and "single" in medians:
            ratio = f"{medians[part] / medians['single']:.3f} x single (must reach 0.8)"
        lines.append(f"{part:10} {medians[part]:12,.0f} {min(figures):12,.0f} {max(figures):12,.0f}  {ratio}")
    return "\n".join(lines)
