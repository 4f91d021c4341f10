"""Figures per second: pgbench, and wrk with 64 connections that each ask again as soon as they are answered."""

import json
import os
import subprocess
import time
from typing import Any

from bench.stack import Bench, count, memory, wait_until_applied
from cli import servers
from cli.servers import CannotStart
from cli.stack import ROOT

CONNECTIONS = 64
PGBENCH_CLIENTS = (8, 16, 32)


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


def wrk(
    bench: Bench, part: str, *, connections: int = 0, seconds: int = 0, lawful: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run the load generator. Raises CannotStart if a request failed.

    lawful: statuses that are no failure; each is counted then, which costs the generator some time.
    """
    connections = connections or (8 if part in ("batch", "hot") else CONNECTIONS)
    environment = os.environ | {
        "KIND": part,
        "USERS": str(bench.stack.data_dir / "users.txt"),
        "SERVICE": bench.service,
        **({"COUNT_STATUSES": "1"} if lawful else {}),
    }
    command = [
        "wrk",
        *(f"-c{connections}", "-t1", f"-d{seconds or bench.seconds}s", "--timeout", "30s"),
        *("-s", str(ROOT / "bench" / "load.lua"), bench.url),
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    results = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise CannotStart(f"wrk failed: {ran.stdout} {ran.stderr}")
    result: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    unlawful = set(result["statuses"]) - set(lawful) if lawful else result["refused"]
    if unlawful or result["torn"]:
        raise CannotStart(f"{part}: requests failed: {result}")
    bench.notes.setdefault(part, []).append(result | {"memory": memory(bench)})
    return result
