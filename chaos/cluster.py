"""What runs under the faults: a Kassa of its own, every process with links of its own to every other.

The harness is the parent of all of it, and starts again what dies, as systemd or Docker would.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import redis
import sqlalchemy as sa

from chaos.proxy import Link, Network
from cli import servers
from cli.migrate import migrate
from cli.servers import CannotStart
from cli.stack import ROOT, Process, group, procfile, stop_group
from core import db, settings

LANES = 4
WATCH_SECONDS = 0.05
RESTART_SECONDS = 0.2
READY_SECONDS = 60
TOKEN_SECONDS = 300 * 24 * 3600  # longer than any jump of a clock
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
DEADLOCK = re.compile(r"ERROR:  deadlock detected(.*?)HINT:", re.DOTALL)
LOG_DISK_MEBIBYTES = 160  # room for the write-ahead log where it has a disk of its own


@dataclass
class Cluster:
    """The processes by name: postgres, redis, api, worker1 ..., sweeper, beat."""

    data_dir: Path
    network: Network
    workers: int = 3
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)  # are not started again until they are up again
    log_disk: Path | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Bring everything up on empty data. Raises CannotStart."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._clear_away()
        shutil.rmtree((self.data_dir / "postgres").resolve(), ignore_errors=True)
        shutil.rmtree(self.data_dir / "log", ignore_errors=True)
        (self.data_dir / "log").mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "SECRET_KEY")
        } | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "DATA_DIR": str(self.data_dir),
            "SECRET_KEY": servers.kept_secret(self.data_dir / "secret.key"),
            "LANES": str(LANES),
            "LOG_LEVEL": "WARNING",
            "ACCESS_TOKEN_SECONDS": str(TOKEN_SECONDS),
            "REFRESH_TOKEN_SECONDS": str(TOKEN_SECONDS),
            "PORT": str(servers.free_port(0)),
        }
        self._start_servers()
        self.engine = db.engine(self.database_url, "chaos", 6, lock_timeout="20s", scans=True)
        db.wait_for(self.engine)
        migrate(self.engine, LANES)
        for name, command, needs in self._commands():
            environment = self.environment | {variable: self._through(name, target) for variable, target in needs}
            self._add(Process(name, ["/bin/sh", "-c", f"exec {command}"], environment, self.log(name)))
        self.links["client>api"] = self.network.link("client>api", int(self.environment["PORT"]))
        threading.Thread(target=self._watch, daemon=True).start()

    def _clear_away(self) -> None:
        """What a killed harness left behind in the same directory: processes, and the disk of the log."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("DATA_DIR") == str(self.data_dir):
                    process.kill()
        log = (self.data_dir / "postgres").resolve() / "pg_wal"
        if log.is_mount():
            subprocess.run(["umount", "--lazy", str(log)], capture_output=True)

    def _start_servers(self) -> None:
        postgres = servers.postgres(self.data_dir, 0)
        self.database_url = postgres.url
        self.cluster_directory = (self.data_dir / "postgres").resolve()
        command = [*postgres.command, "-c", "min_wal_size=32MB", "-c", "max_wal_size=64MB"]
        command += ["-c", "deadlock_timeout=100ms"]  # before those who drain give up waiting: else it is not counted
        command += ["-c", "log_error_verbosity=default"]  # who was in it
        environment = dict(self.environment)
        self.clock = self.cluster_directory.parent / "clock"
        if FAKETIME.exists():
            self.set_clock("+0")
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_RESET": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        self._give_log_a_disk(postgres.user)
        self._add(Process("postgres", command, environment, self.log("postgres"), postgres.user))
        broker = servers.redis(self.data_dir, 0)
        self.redis_url = broker.url
        self._add(Process("redis", broker.command, self.environment, self.log("redis")))
        self.redis = redis.Redis.from_url(broker.url, socket_timeout=2)

    def _commands(self) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        """Each process: its command, and what it reaches by which variable."""
        known = procfile()
        both = [("DATABASE_URL", self.database_url), ("REDIS_URL", self.redis_url)]
        yield "api", known["api"], both
        for number in range(1, self.workers + 1):
            poisoned = f"python -m chaos.poisoned {known['worker']}"
            yield f"worker{number}", f"{poisoned} --concurrency 1 --hostname worker{number}@%h", both
        yield "sweeper", known["sweeper"].replace("-m worker.sweeper", "-m chaos.poisoned worker.sweeper"), both
        yield "beat", known["beat"], both

    def _through(self, name: str, url: str) -> str:
        """The URL of a server by way of a link of the process's own."""
        port = urlsplit(url).port
        assert port is not None
        edge = f"{name}>{'redis' if url.startswith('redis') else 'postgres'}"
        self.links[edge] = self.network.link(edge, port)
        return url.replace(f":{port}/", f":{self.links[edge].port}/")

    def log(self, name: str) -> Path:
        """A process's log."""
        return self.data_dir / "log" / f"{name}.log"

    def logged(self, event: str) -> int:
        """How often the workers and the sweeper have logged an event."""
        names = [name for name in self.processes if name == "sweeper" or name.startswith("worker")]
        return sum(self.log(name).read_text(errors="replace").count(f'"{event}"') for name in names)

    def deadlocks(self) -> list[str]:
        """What PostgreSQL has logged of each that it ended: its statistics do not survive a crash."""
        return DEADLOCK.findall(self.log("postgres").read_text(errors="replace"))

    def _add(self, process: Process) -> None:
        process.start()
        self.processes[process.name] = process

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            with self._lock:
                for process in self.processes.values():
                    self._look_at(process)

    def _look_at(self, process: Process) -> None:
        if process.name in self.down or process.running is None or process.running.poll() is None:
            return
        now = time.monotonic()
        if not process.restart_at:
            process.restart_at = now + RESTART_SECONDS
        elif now >= process.restart_at:
            process.restart_at = 0.0
            process.start()

    def pid(self, name: str) -> int:
        """Of a process's leader."""
        running = self.processes[name].running
        assert running is not None
        return running.pid

    def family(self, name: str) -> list[int]:
        """A process and all its descendants, those of PostgreSQL that left its group, too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.pid(name))
            return [leader.pid, *(child.pid for child in leader.children(recursive=True))]
        return []

    def signal(self, pids: list[int], number: signal.Signals) -> None:
        """Send a signal to whoever of them is alive."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def set_clock(self, offset: str) -> None:
        """Set PostgreSQL's clock off by so much: '+0', '-2h', '+1d'."""
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(offset)
        fresh.chmod(0o644)
        fresh.rename(self.clock)

    def _give_log_a_disk(self, user: str | None) -> None:
        """Put the write-ahead log on a small file system of its own, which can be filled. Root only."""
        if os.geteuid() != 0:
            return
        log = self.cluster_directory / "pg_wal"
        aside = log.with_name("pg_wal.aside")
        owner = f"uid={user},gid={user},mode=0700,size={LOG_DISK_MEBIBYTES}m"
        shutil.move(log, aside)
        log.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "tmpfs", str(log)], capture_output=True).returncode:
            log.rmdir()
            shutil.move(aside, log)
            return
        subprocess.run(["cp", "-a", f"{aside}/.", str(log)], check=True)
        shutil.rmtree(aside)
        self.log_disk = log

    def wait_until_ready(self, answers: Callable[[], bool]) -> None:
        """Return when the API serves and every worker and the sweeper is connected. Raises CannotStart."""
        deadline = time.monotonic() + READY_SECONDS
        wanted = {"kassa-api", "kassa-sweeper", "kassa-worker"}
        while True:
            with contextlib.suppress(sa.exc.SQLAlchemyError), self.engine.connect() as connection:
                found = connection.exec_driver_sql("SELECT DISTINCT application_name FROM pg_stat_activity").scalars()
                if wanted - {"kassa-worker"} <= set(found) and answers():
                    return
            if time.monotonic() > deadline:
                raise CannotStart(f"the cluster did not come up: see {self.data_dir / 'log'}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything."""
        self._over.set()
        with self._lock:
            for process in reversed(self.processes.values()):
                self.signal(self.family(process.name), signal.SIGCONT)
                if process.running is not None:
                    if process.name != "postgres":
                        self.signal(group(process.running.pid), signal.SIGKILL)
                    stop_group(process.running.pid, process.name)
                    process.running.wait()
        if hasattr(self, "engine"):
            self.engine.dispose()
        if self.log_disk:
            subprocess.run(["umount", str(self.log_disk)], capture_output=True)


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """A started cluster that is stopped in the end."""
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def configuration(cluster: Cluster) -> settings.Settings:
    """The settings that the processes have."""
    direct = {"DATABASE_URL": cluster.database_url, "REDIS_URL": cluster.redis_url}
    return settings.load(cluster.environment | direct)
