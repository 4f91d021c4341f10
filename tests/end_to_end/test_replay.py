"""Real bank statements through the public API, also when processes are killed in the middle."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.stack import ROOT
from tests.conftest import STATEMENTS
from tests.end_to_end.conftest import Kassa, until

pytestmark = pytest.mark.skipif(not STATEMENTS.exists(), reason="the bank statements are not beside the project")

LINES, ACCOUNTS = 1830, 120


class Replay:
    """A replay in a process of its own."""

    def __init__(self, kassa: Kassa, file: Path, state: Path) -> None:
        command = [sys.executable, "-m", "cli", "replay", str(file), "--url", kassa.url, "--state", str(state)]
        environment = kassa.stack.environment | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def until_accepted(self, count: int) -> None:
        """Return when the replay says that it has had this many lines accepted."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if int(re.search(r"([\d,]+) accepted", line)[1].replace(",", "")) >= count:
                return
        pytest.fail("the replay ended first")

    def finish(self) -> tuple[int, str]:
        """The exit code and the last line."""
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output.strip().splitlines()[-1]

    def kill(self) -> None:
        """kill -9"""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_every_balance_is_as_the_bank_printed_it_whoever_is_killed(kassa: Kassa, tmp_path: Path):
    state = tmp_path / "state.json"
    first = Replay(kassa, STATEMENTS, state)
    first.until_accepted(100)
    kassa.kill("worker")
    first.until_accepted(300)
    kassa.kill("redis")
    first.until_accepted(500)
    first.kill()
    second = Replay(kassa, STATEMENTS, state)
    second.until_accepted(900)
    kassa.kill("api")
    code, summary = second.finish()
    assert f"{LINES:,} operations, {ACCOUNTS} accounts" in summary
    assert ", 0 mismatches" in summary
    assert code == 0
    with kassa.engine.connect() as connection:
        query = "SELECT count(*) FROM operations WHERE idempotency_key LIKE 'statement-%%'"
        assert connection.exec_driver_sql(query).scalar_one() == LINES, "no line was doubled or lost"
    until(lambda: kassa.http.get("/health/ready").status_code == 200)


def test_a_mismatch_is_found_and_is_exit_code_1(kassa: Kassa, tmp_path: Path):
    with STATEMENTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["account"] == "2566"][:5]
    rows[2]["balance_after"] = str(int(rows[2]["balance_after"]) + 1)
    wrong = tmp_path / "wrong.csv"
    with wrong.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    code, summary = Replay(kassa, wrong, tmp_path / "state.json").finish()
    assert (code, summary.rpartition(", ")[2]) == (1, "1 mismatches")
