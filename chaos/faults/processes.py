"""Processes killed, frozen and restarted: Kassa's own, and PostgreSQL's."""

import contextlib
import signal
import time
from collections.abc import Callable

import sqlalchemy as sa

from chaos.faults.fault import (
    FROZEN_LONGEST,
    LONGEST,
    MOVES,
    MOVES_AFTER_FREEZING,
    SERVES_AFTER_POSTGRES,
    Fault,
    Scene,
)

FROZEN_WITH_LOCK_SECONDS = 12.5
TRIES_TO_CATCH_A_LOCK = 100
POSTGRES_ACTS = ["kill a backend", "freeze a backend", "kill the postmaster", "freeze all", "kill all"]


def processes(scene: Scene) -> list[str]:
    """Those of Kassa itself."""
    return [name for name in scene.cluster.processes if name not in ("postgres", "redis")]


def victims(scene: Scene) -> tuple[str, Callable[[], list[int]]]:
    """Some process, one of its children, or all of Kassa; looked up at the moment of the fault."""
    cluster, name = scene.cluster, scene.random.choice([*processes(scene), "all"])
    if name == "all":
        return "every process of Kassa", lambda: [pid for each in processes(scene) for pid in cluster.family(each)]
    if scene.random.random() < 0.4 and (name == "api" or name.startswith("worker")):
        return f"a child of {name}", lambda: cluster.family(name)[1:2]
    return name, lambda: cluster.family(name)


def kill(scene: Scene) -> Fault:
    """Kill -9: it is started again at once."""
    what, pids = victims(scene)
    return Fault("kill", f"kill {what}", lambda: scene.cluster.signal(pids(), signal.SIGKILL))


def freeze(scene: Scene) -> Fault:
    """SIGSTOP, and SIGCONT later."""
    what, pids = victims(scene)
    frozen: list[int] = []

    def begin() -> None:
        frozen.extend(pids())
        scene.cluster.signal(frozen, signal.SIGSTOP)

    seconds = scene.seconds(FROZEN_LONGEST)
    thaw = lambda: scene.cluster.signal(frozen, signal.SIGCONT)  # noqa: E731
    return Fault("freeze", f"freeze {what} for {seconds:.1f} s", begin, thaw, seconds, MOVES_AFTER_FREEZING)


def holders(scene: Scene) -> Fault:
    """All workers frozen while one of them is in a transaction, for longer than it may keep its locks."""
    cluster = scene.cluster
    frozen: list[int] = []
    query = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name = 'kassa-worker' AND state = 'idle in transaction' AND backend_xid IS NOT NULL
"""  # who has no number in its transaction has locked nothing: a look that has found nothing, say

    def in_hand() -> bool:
        with contextlib.suppress(sa.exc.SQLAlchemyError), cluster.engine.connect() as connection:
            return bool(connection.exec_driver_sql(query).scalar_one())
        return False

    def begin() -> None:
        for _ in range(TRIES_TO_CATCH_A_LOCK):
            frozen[:] = [pid for name in processes(scene) if name.startswith("worker") for pid in cluster.family(name)]
            cluster.signal(frozen, signal.SIGSTOP)
            if in_hand():
                return
            cluster.signal(frozen, signal.SIGCONT)
            time.sleep(scene.random.uniform(0.001, 0.02))

    thaw = lambda: cluster.signal(frozen, signal.SIGCONT)  # noqa: E731
    what = "freeze all workers with locks in hand"
    return Fault("holders", what, begin, thaw, FROZEN_WITH_LOCK_SECONDS, MOVES_AFTER_FREEZING)


def backend(scene: Scene) -> Fault:
    """A backend of PostgreSQL killed or frozen, or the whole server, or its postmaster alone."""
    cluster, act = scene.cluster, scene.random.choice(POSTGRES_ACTS)
    frozen: list[int] = []

    def pids() -> list[int]:
        if act.endswith("all"):
            return cluster.family("postgres")
        if act.endswith("the postmaster"):
            return cluster.family("postgres")[:1]
        with contextlib.suppress(sa.exc.SQLAlchemyError), cluster.engine.connect() as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name IN ('kassa-api', 'kassa-worker')"
            found = list(connection.exec_driver_sql(query).scalars())
            return [scene.random.choice(found)] if found else []
        return []

    def begin() -> None:
        frozen.extend(pids())
        cluster.signal(frozen, signal.SIGKILL if act.startswith("kill") else signal.SIGSTOP)

    seconds = scene.seconds(FROZEN_LONGEST if act == "freeze a backend" else LONGEST)
    thaw = lambda: cluster.signal(frozen, signal.SIGCONT)  # noqa: E731
    promise = MOVES_AFTER_FREEZING if act.startswith("freeze") else SERVES_AFTER_POSTGRES
    return Fault("postgres", f"{act} of PostgreSQL", begin, thaw, seconds, promise)


def rolling(scene: Scene) -> Fault:
    """Every process restarted politely, one after another, under load."""

    def begin() -> None:
        for name in processes(scene):
            scene.cluster.signal([scene.cluster.pid(name)], signal.SIGTERM)
            time.sleep(0.2)

    return Fault("rolling", "a rolling restart", begin, promise=MOVES)
