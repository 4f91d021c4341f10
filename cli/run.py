"""Run all of Kassa on this machine: PostgreSQL and Redis where none are given, and every process of the Procfile.

Respects PORT, ADMIN_PORT, FLOWER_PORT, DATA_DIR (./.data), DATABASE_URL, REDIS_URL, LANES and SECRET_KEY.
Ctrl-C stops it.
"""

import argparse
import http.client
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import kombu.exceptions
import redis
import sqlalchemy as sa
from celery import Celery

from cli import servers
from cli.migrate import CONNECT_SECONDS, migrate
from cli.servers import LOOPBACK, CannotStart
from cli.stack import ROOT, Stack, port_or_fail
from core import db, settings
from core.broker import celery_app

READY_SECONDS = 60
WATCH_SECONDS = 0.2
PORTS = {"PORT": 8000, "ADMIN_PORT": 8001, "FLOWER_PORT": 5555}
STARTS_MAX = 3  # a process that has died this often before all were ready will not become ready


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options: everything comes from the environment."""


def main(_arguments: argparse.Namespace) -> int:
    """Start, say where everything is, and watch until Ctrl-C."""
    environment = dict(os.environ)
    stack = Stack(Path(environment.get("DATA_DIR") or ROOT / ".data"), environment, say=say)
    try:
        start(stack)
        say(welcome(environment))
        while True:
            stack.watch()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        say("stopping ...")
        return 0
    finally:
        hear_no_more()
        if stack.processes:
            stack.stop()
            say(f"stopped; the data stays in {stack.data_dir}")


def say(line: str) -> None:
    """Tell the operator."""
    print(line, flush=True)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM is as good as Ctrl-C."""
    hear_no_more()
    raise KeyboardInterrupt


def hear_no_more() -> None:
    """Whoever is impatient, and asks twice, must not leave processes behind."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def start(stack: Stack) -> None:
    """Bring everything up, in order, and return when all of it is ready. Raises CannotStart."""
    environment = stack.environment
    stack.claim()
    for name, default in PORTS.items():
        environment[name] = str(port_or_fail(name, environment, default))
    if len({environment[name] for name in PORTS}) < len(PORTS):
        raise CannotStart(f"{', '.join(PORTS)} must be different ports: choose others.")
    stack.start_servers()
    configuration = settings.load(environment)
    engine = db.engine(configuration.database_url, "run", 1)
    stack.say("starting the database ...")
    try:
        db.wait_for(engine, CONNECT_SECONDS)
    except sa.exc.OperationalError as error:
        raise CannotStart(f"the database does not answer: {error.orig}") from None
    migrate(engine, configuration.lanes, configuration.api_role)
    stack.say("starting the processes ...")
    stack.start_processes()
    for name, is_ready in checks(environment, engine).items():
        wait_until_ready(stack, name, is_ready)
    engine.dispose()


def checks(environment: dict[str, str], engine: sa.Engine) -> dict[str, Callable[[], bool]]:
    """How to see that a process does its work."""
    celery = celery_app(environment.get("BROKER_URL") or environment["REDIS_URL"], [])
    return {
        "api": lambda: answers(f"http://{LOOPBACK}:{environment['PORT']}/health/ready"),
        "admin": lambda: answers(f"http://{LOOPBACK}:{environment['ADMIN_PORT']}/health/live"),
        "worker": lambda: is_answered(celery),
        "sweeper": lambda: is_connected(engine, "kassa-sweeper"),
        "beat": lambda: any(Path(environment["DATA_DIR"]).glob("beat.schedule*")),
        "flower": lambda: answers(f"http://{LOOPBACK}:{environment['FLOWER_PORT']}/healthcheck"),
    }


def wait_until_ready(stack: Stack, name: str, is_ready: Callable[[], bool]) -> None:
    """Return when the process is ready. Raises CannotStart, with the process's last words, if it does not come up."""
    deadline, process = time.monotonic() + READY_SECONDS, stack.processes[name]
    while True:
        stack.watch()
        alive = process.running is not None and process.running.poll() is None
        if alive and is_ready():
            stack.say(f"{name} is ready")
            return
        if process.starts >= STARTS_MAX or time.monotonic() > deadline:
            raise CannotStart(f"{name} did not become ready; its log {process.log} ends:\n{process.last_words()}")
        time.sleep(0.1)


def is_answered(celery: Celery) -> bool:
    """Whether a worker answers. What is in Celery's pool may lead to a broker that was here before."""
    try:
        return bool(celery.control.ping(timeout=0.5))
    except (OSError, kombu.exceptions.KombuError, redis.RedisError):
        return False


def answers(url: str) -> bool:
    """Whether the address answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # the latter of whoever else is there
        return False


def is_connected(engine: sa.Engine, application: str) -> bool:
    """Whether a process of that name is connected to the database."""
    query = sa.text("SELECT 1 FROM pg_stat_activity WHERE application_name = :name")
    with engine.connect() as connection:
        return connection.execute(query, {"name": application}).first() is not None


def welcome(environment: dict[str, str]) -> str:
    """Where everything is, and a first thing to try."""
    api = f"http://{LOOPBACK}:{environment['PORT']}"
    psql = shutil.which("psql") or servers.postgres_binaries() / "psql"
    data_dir = environment["DATA_DIR"]
    mail = "by SMTP_URL" if environment.get("SMTP_URL") else f"{data_dir}/mail      (set SMTP_URL to have it sent)"
    return f"""
Kassa runs. Ctrl-C stops it; data, logs and secrets are in {data_dir}

  API      {api}      ({api}/health/ready)
  Admin    http://{LOOPBACK}:{environment["ADMIN_PORT"]}      (make an administrator: ./kassa create-admin NAME)
  Flower   http://{LOOPBACK}:{environment["FLOWER_PORT"]}
  psql     . {data_dir}/run.env && {psql} "$DATABASE_URL"
  logs     tail -f {data_dir}/log/*.log
  mail     {mail}

Try:

  curl -s {api}/v1/auth/register -H 'Content-Type: application/json' \\
       -d '{{"username": "alice", "password": "correct horse"}}'
"""
