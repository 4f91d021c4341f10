"""`./kassa run`, as an operator meets it: started, killed in every way, started again, with nothing lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cli.servers import LOOPBACK, free_port
from cli.stack import ROOT, Stack

READY_SECONDS = 60
BODY = {"username": "alice", "password": "correct horse"}


class Run:
    """One `./kassa run`."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        given = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        given |= {"DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT), **environment}
        self.data_dir = data_dir
        self.url = f"http://{LOOPBACK}:{environment['PORT']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run"], env=given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def until_ready(self) -> str:
        """Everything said until it is up."""
        said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said += line.decode()
            if "-d '" in said:
                return said
        pytest.fail(said)

    def children(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Signal it, and return its exit code and last words."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="kassa-run-"))
    path.chmod(0o755)
    yield path
    leftovers = Stack(path, {}, say=lambda _line: None)
    leftovers.claim()  # stops whatever a failed test has left behind
    leftovers.stop()
    shutil.rmtree(path)


def test_data_survives_ctrl_c_and_kill_9_of_everything(data_dir: Path):
    ports = {"PORT": str(free_port(0)), "ADMIN_PORT": str(free_port(0)), "FLOWER_PORT": str(free_port(0))}
    run = Run(data_dir, **ports)
    said = run.until_ready()
    assert run.url in said
    assert "curl" in said
    httpx.post(f"{run.url}/v1/auth/register", json=BODY).raise_for_status()
    headers = log_in(run)
    deposit = {"type": "deposit", "amount": 500}
    assert httpx.post(f"{run.url}/v1/operations", json=deposit, headers=headers).status_code == 202
    assert (data_dir / "run.env").stat().st_mode & 0o077 == 0
    assert len(set(names(run)) & {"postgres", "redis", "api", "admin", "worker", "sweeper", "beat", "flower"}) == 8

    again = Run(data_dir, **ports)
    output, _ = again.process.communicate(timeout=READY_SECONDS)
    assert (again.process.returncode, b"already runs" in output) == (1, True)

    for process in [*run.children(), psutil.Process(run.process.pid)]:
        process.kill()
    run.process.communicate()
    run = Run(data_dir, **ports)
    run.until_ready()
    assert balance(run, headers) == 500, "the same secret, the same data"

    run.process.kill()  # the supervisor alone: what it leaves behind is found and stopped
    run.process.communicate()
    run = Run(data_dir, **ports)
    assert "left behind" in run.until_ready()
    assert balance(run, headers) == 500
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    assert run.process.stdout is not None
    assert any(b"stopping" in line for line in run.process.stdout)
    code, said = run.stop(signal.SIGTERM)  # impatient
    assert (code, "stopped" in said) == (0, True)
    assert [child for child in children if child.is_running()] == []


def log_in(run: Run) -> dict[str, str]:
    token = httpx.post(f"{run.url}/v1/auth/login", json=BODY).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


def balance(run: Run, headers: dict[str, str]) -> int:
    path = f"{run.url}/v1/balance?min_seq=1&wait=10"
    return httpx.get(path, headers=headers, timeout=20).raise_for_status().json()["balance"]


def names(run: Run) -> list[str]:
    return [name for name, _, _ in json.loads((run.data_dir / "processes.json").read_text())]


def test_a_taken_port_is_one_clear_line(data_dir: Path):
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        output, _ = Run(data_dir, PORT=port).process.communicate(timeout=READY_SECONDS)
    assert output.decode().splitlines() == [
        f"kassa run: port {port} on 127.0.0.1 is taken: stop what uses it, or choose another with PORT=..."
    ]


@pytest.mark.parametrize(
    ("variable", "value"), [("LANES", "none"), ("SECRET_KEY", "short"), ("PORT", "http"), ("SELF_DEPOSIT", "perhaps")]
)
def test_a_wrong_variable_is_named(data_dir: Path, variable: str, value: str):
    ports = {name: str(free_port(0)) for name in ("PORT", "ADMIN_PORT", "FLOWER_PORT")}
    environment = ports | {variable: value}
    output, _ = Run(data_dir, **environment).process.communicate(timeout=READY_SECONDS)
    last = output.decode().splitlines()[-1]
    assert last.startswith("kassa run: ")
    assert variable in last
