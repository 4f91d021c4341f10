"""A whole Kassa on one machine: PostgreSQL and Redis where none are given, and the processes of the Procfile.

Processes are restarted when they die. Each is the leader of a process group of its own and is noted in
`DATA_DIR/processes.json`, so that what a killed run left behind is found and stopped by the next one.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from cli import servers
from cli.servers import LOOPBACK, CannotStart, Server

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 10  # then a process is killed
SAME_PROCESS_SECONDS = 2  # the time of a process's creation is told from the clock, which may have been set since
RESTART_SECONDS = 0.5  # pause before a dead process is started again
LOG_BYTES_MAX = 50 * 1024 * 1024  # a larger log is put aside when its process starts


@dataclass
class Process:
    """A child: how to start it, and, while it runs, what it is."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    user: str | None = None
    running: subprocess.Popen[bytes] | None = None
    starts: int = 0
    restart_at: float = 0.0

    def start(self) -> None:
        """Start it, its output appended to its log."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.rename(self.log.with_suffix(".log.1"))
        account = pwd.getpwnam(self.user) if self.user else None
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                self.command,
                cwd="/" if account else ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        self.starts += 1

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


@dataclass
class Stack:
    """Everything that runs in one DATA_DIR.

    environment: what the operator gave; DATABASE_URL, REDIS_URL and SECRET_KEY are made where they are missing.
    """

    data_dir: Path
    environment: dict[str, str]
    say: Callable[[str], None] = print
    processes: dict[str, Process] = field(default_factory=dict)
    _lock: IO[str] | None = None

    def claim(self) -> None:
        """Take the data directory, and stop what a killed run left behind in it. Raises CannotStart."""
        self.data_dir = self.data_dir.resolve()
        (self.data_dir / "log").mkdir(parents=True, exist_ok=True)
        self._take_data_dir()
        self._stop_leftovers()

    def start_servers(self) -> None:
        """Complete the environment, and start the servers that it did not name. Raises CannotStart."""
        env = self.environment
        env["DATA_DIR"] = str(self.data_dir)
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        env["PYTHONPATH"] = str(ROOT)
        env["PYTHONUNBUFFERED"] = "1"
        if not env.get("SECRET_KEY"):
            env["SECRET_KEY"] = servers.kept_secret(self.data_dir / "secret.key")
        if not env.get("DATABASE_URL"):
            env["DATABASE_URL"] = self._start_server(servers.postgres(self.data_dir)).url
        if not env.get("REDIS_URL"):
            env["REDIS_URL"] = self._start_server(servers.redis(self.data_dir)).url
        self._write_run_env()

    def _take_data_dir(self) -> None:
        lock = (self.data_dir / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"Kassa already runs on {self.data_dir}: stop it, or give another DATA_DIR.") from None
        self._lock = lock

    def _start_server(self, server: Server) -> Server:
        self._start(server.name, server.command, server.user)
        return server

    def _start(self, name: str, command: list[str], user: str | None = None) -> None:
        log = self.data_dir / "log" / f"{name}.log"
        process = Process(name, command, self.environment, log, user)
        process.start()
        self.processes[name] = process
        self._note()

    def start_processes(self) -> None:
        """Start the processes of the Procfile."""
        for name, command in procfile().items():
            self._start(name, ["/bin/sh", "-c", f"exec {command}"])

    def watch(self) -> None:
        """One look: start again what has died."""
        now = time.monotonic()
        for process in self.processes.values():
            if process.running is None or process.running.poll() is None:
                continue
            if not process.restart_at:
                self.say(f"{process.name} died ({describe(process.running.returncode)}) and is started again")
                process.restart_at = now + RESTART_SECONDS
            elif now >= process.restart_at:
                process.restart_at = 0.0
                process.start()
                self._note()

    def stop(self) -> None:
        """Stop everything: first the processes, last the servers under them."""
        for process in reversed(self.processes.values()):
            if process.running is not None:
                stop_group(process.running.pid, process.name)
                process.running.wait()
                process.running = None
        self._note()
        if self._lock:
            self._lock.close()

    def _note(self) -> None:
        alive = {process.name: process.running.pid for process in self.processes.values() if process.running}
        noted = [[name, pid, created(pid)] for name, pid in alive.items()]
        fresh = self.data_dir / "processes.json.new"
        fresh.write_text(json.dumps(noted))
        fresh.rename(self.data_dir / "processes.json")

    def _stop_leftovers(self) -> None:
        noted = self.data_dir / "processes.json"
        for name, pid, when in reversed(json.loads(noted.read_text()) if noted.exists() else []):
            now = created(pid)
            same = now is None or (when is not None and abs(now - when) < SAME_PROCESS_SECONDS)
            if same and group(pid):  # the leader may be dead, and members of its group alive
                self.say(f"stopping {name}, which an earlier run left behind")
                stop_group(pid, name)

    def _write_run_env(self) -> None:
        path = self.data_dir / "run.env"
        path.touch(mode=0o600)
        names = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "DATA_DIR", "PORT", "ADMIN_PORT", "FLOWER_PORT", "LANES")
        path.write_text(
            "".join(f"{name}={shlex.quote(self.environment[name])}\n" for name in names if name in self.environment)
        )


def procfile() -> dict[str, str]:
    """The commands of the Procfile by name."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def created(pid: int) -> float | None:
    """When the process was created, by which it is told from a later one with the same number."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def stop_group(pid: int, name: str) -> None:
    """End a process group: politely, and after STOP_SECONDS for good."""
    polite = signal.SIGINT if name == "postgres" else signal.SIGTERM  # PostgreSQL's "fast" shutdown
    members = group(pid)
    if not members:
        return
    with contextlib.suppress(ProcessLookupError):  # it ended by itself between the look and the signal
        if pid in members:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, polite)
            wait_while(lambda: pid in group(pid))
        if group(pid):
            os.killpg(pid, signal.SIGKILL)
            wait_while(lambda: bool(group(pid)))


def wait_while(condition: Callable[[], bool]) -> None:
    """Wait for STOP_SECONDS at the most."""
    deadline = time.monotonic() + STOP_SECONDS
    while condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def group(pid: int) -> list[int]:
    """The living members of a process group. A zombie is dead, even where nobody collects it."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def describe(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def port_or_fail(name: str, environment: Mapping[str, str], default: int) -> int:
    """The port that a variable names. Raises CannotStart where it is no port, or taken."""
    value = environment.get(name) or str(default)
    if not value.isdigit() or not 0 < int(value) < 65536:
        raise CannotStart(f"{name}={value} is not a port number.")
    if not servers.is_free(int(value)):
        raise CannotStart(f"port {value} on {LOOPBACK} is taken: stop what uses it, or choose another with {name}=...")
    return int(value)
