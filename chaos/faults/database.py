"""What befalls PostgreSQL from outside and from within: its clock, its disk, poison, other people's locks, a backup."""

import contextlib
import subprocess
import threading
import time

import sqlalchemy as sa

from chaos.cluster import Cluster
from chaos.faults.fault import (
    MOVES,
    MOVES_AFTER_FREEZING,
    OTHERS_LET_GO,
    POISON_IS_FOUND,
    SERVES_AFTER_POSTGRES,
    Fault,
    Scene,
)
from chaos.poison import KILL, LOOP, RAISE
from cli.servers import postgres_binaries
from core.ids import new_id
from core.reconcile import violations

FILLER_CHUNK = b"\0" * 2**20
HELD_SECONDS = 0.15
CONVOY = "SELECT FROM accounts WHERE kind = 'world' OR id = ANY (%s::uuid[]) ORDER BY id FOR UPDATE"  # as drains do


def clock(scene: Scene) -> Fault:
    """PostgreSQL's clock two hours back, or a day ahead."""
    offset, seconds = scene.random.choice(["-2h", "+1d"]), scene.seconds()
    begin, end = (lambda: scene.cluster.set_clock(offset)), (lambda: scene.cluster.set_clock("+0"))
    return Fault("clock", f"PostgreSQL's clock {offset}", begin, end, seconds, MOVES_AFTER_FREEZING)


def disk(scene: Scene) -> Fault:
    """No room for the write-ahead log."""
    assert scene.cluster.log_disk is not None
    filler = scene.cluster.log_disk / "filler"

    def begin() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(FILLER_CHUNK):
                pass
        for _ in range(8):  # past the segments that were there already
            with contextlib.suppress(sa.exc.SQLAlchemyError), scene.cluster.engine.connect() as connection:
                connection.exec_driver_sql("SELECT pg_switch_wal(), txid_current()")

    end = lambda: filler.unlink(missing_ok=True)  # noqa: E731
    return Fault("disk", "the disk of the log is full", begin, end, scene.seconds(1.0), SERVES_AFTER_POSTGRES)


def poison(scene: Scene) -> Fault:
    """An operation whose decision raises, kills its process, or loops for ever."""
    name, amount = scene.random.choice([*[("raises", RAISE)] * 4, ("kills", KILL), ("kills", KILL), ("loops", LOOP)])
    user = scene.random.choice(scene.world.users)
    promise = MOVES if amount == RAISE else POISON_IS_FOUND
    return Fault("poison", f"an operation that {name}", lambda: scene.client.poison(user, amount), promise=promise)


def deadlock(scene: Scene) -> Fault:
    """Somebody who locks accounts in the other order."""
    over = threading.Event()

    def lock() -> None:
        ids = sorted((user.account for user in scene.world.users), reverse=True)
        while not over.is_set():
            with contextlib.suppress(sa.exc.SQLAlchemyError), scene.cluster.engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '1500ms'")  # time for a deadlock to be noticed
                for account in ids[::3]:
                    connection.exec_driver_sql("SELECT FROM accounts WHERE id = %s FOR UPDATE", (account,))
                    time.sleep(0.01)
            over.wait(0.05)

    seconds, thread = scene.seconds(1.5), threading.Thread(target=lock, daemon=True)

    def end() -> None:
        over.set()
        thread.join(OTHERS_LET_GO)

    return Fault("deadlock", "accounts locked in the other order", thread.start, end, seconds, OTHERS_LET_GO)


def convoy(scene: Scene) -> Fault:
    """Somebody who holds, again and again for a moment, the accounts that nearly every drain needs: all queue up there,
    with whatever they hold already.
    """
    over, held = threading.Event(), [user.account for user in scene.world.users[: scene.random.randint(1, 12)]]

    def hold() -> None:
        while not over.is_set():
            with contextlib.suppress(sa.exc.SQLAlchemyError), scene.cluster.engine.begin() as connection:
                connection.exec_driver_sql(CONVOY, (held,))
                time.sleep(HELD_SECONDS)
            over.wait(HELD_SECONDS / 2)

    thread = threading.Thread(target=hold, daemon=True)

    def end() -> None:
        over.set()
        thread.join(OTHERS_LET_GO)

    return Fault("convoy", "the busiest accounts held for moments", thread.start, end, scene.seconds(), OTHERS_LET_GO)


def backup(scene: Scene) -> Fault:
    """A backup in the middle, restored beside: it must hold what was acknowledged before, and reconcile."""
    thread = threading.Thread(target=lambda: back_up(scene), daemon=True)
    return Fault("backup", "backup, and restore beside", thread.start, thread.join)


def back_up(scene: Scene) -> None:
    """Dump, restore into another database, and look into it."""
    acknowledged = scene.acknowledged()
    name, url = f"restored_{new_id().replace('-', '')}", scene.cluster.database_url
    other = url.rpartition("/")[0] + f"/{name}"
    dumped = scene.cluster.data_dir / f"{name}.sql"  # a round may have two at a time
    binaries = postgres_binaries()
    with contextlib.ExitStack() as stack:
        stack.callback(dumped.unlink, missing_ok=True)
        try:
            run(str(binaries / "pg_dump"), "--no-owner", f"--file={dumped}", url)
            with scene.cluster.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
            stack.callback(drop, scene.cluster, name)
            run(str(binaries / "psql"), "--quiet", "--set=ON_ERROR_STOP=1", f"--file={dumped}", other)
        except (subprocess.SubprocessError, sa.exc.SQLAlchemyError):
            return  # another fault was in the way: a backup that fails is none
        engine = sa.create_engine(other.replace("postgresql:", "postgresql+psycopg2:"), poolclass=sa.NullPool)
        with contextlib.suppress(sa.exc.OperationalError):
            with engine.connect() as connection:
                there = set(connection.exec_driver_sql("SELECT id::text FROM operations").scalars())
            if missing := acknowledged - there:
                scene.problems.append(f"the backup lacks {len(missing)} acknowledged operations: {sorted(missing)[:3]}")
            scene.problems.extend(f"the backup breaks {finding}" for finding in violations(engine))


def drop(cluster: Cluster, name: str) -> None:
    """Drop a database, if the server is there."""
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        autocommit = cluster.engine.execution_options(isolation_level="AUTOCOMMIT")
        with autocommit.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def run(*command: str) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run(command, check=True, capture_output=True, timeout=15)
