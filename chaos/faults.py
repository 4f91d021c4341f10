"""What goes wrong: families of faults, each made from a random source, begun at an instant, and ended again."""

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa

from chaos.cluster import LANES, Cluster
from chaos.load import Client, World
from chaos.poison import KILL, LOOP, RAISE
from chaos.proxy import Mode
from cli.servers import postgres_binaries
from core.broker import celery_app, lane_queue
from core.ids import new_id
from core.reconcile import violations

QUEUES = [f"kassa:lane.{lane}" for lane in range(LANES)]
DOUBLED = 1_000
COMMIT_BYTES = 40  # the message, and the whole of its answer
ACCEPT_BYTES = 3_000
FORGED: list[list[object]] = [[0], [99], [-1], ["0"], [None], [], [0, 0], [{"lane": 0}], [True]]
OTHER_VERSION: list[tuple[str, list[object]]] = [
    ("drain_v2", [0]),
    ("kassa.drain", [0]),
    ("drain", [{"v": 2, "lanes": [0, 1]}]),
]
GARBAGE = (b"\xff\xfe", b"{}", b'{"body": 1}', b"[" * 2_000)
FILLER_CHUNK = b"\0" * 2**20
SHORTEST, LONGEST = 0.2, 2.0
LOCK_IN_HAND_SHARE = 0.35  # of the freezings
FROZEN_WITH_LOCK_SECONDS = 12.5
TRIES_TO_CATCH_A_LOCK = 100
FROZEN_LONGEST = 5.5  # beyond the 4 s after which a frozen worker loses its locks

# Seconds after the end of a fault by which everything accepted must be finished: the promises of the README.
OTHERS_LET_GO = 10.0  # no promise: who locks our accounts makes us wait
MOVES, MOVES_AFTER_FREEZING, SERVES_AFTER_POSTGRES, POISON_IS_FOUND = 2.0, 6.0, 3.0, 40.0


@dataclass
class Fault:
    """One thing that goes wrong for `seconds`."""

    family: str
    what: str
    begin: Callable[[], object]
    end: Callable[[], object] = lambda: None
    seconds: float = 0.0
    promise: float = MOVES


@dataclass
class Scene:
    """What faults act on, and what they found wrong by themselves."""

    cluster: Cluster
    world: World
    client: Client
    random: random.Random
    acknowledged: Callable[[], set[str]]  # ids of operations, so far
    problems: list[str] = field(default_factory=list)

    def seconds(self, longest: float = LONGEST) -> float:
        """How long a fault lasts."""
        return self.random.uniform(SHORTEST, longest)


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
    if scene.random.random() < LOCK_IN_HAND_SHARE:
        return freeze_with_lock(scene)
    what, pids = victims(scene)
    frozen: list[int] = []

    def begin() -> None:
        frozen.extend(pids())
        scene.cluster.signal(frozen, signal.SIGSTOP)

    seconds = scene.seconds(FROZEN_LONGEST)
    thaw = lambda: scene.cluster.signal(frozen, signal.SIGCONT)  # noqa: E731
    return Fault("freeze", f"freeze {what} for {seconds:.1f} s", begin, thaw, seconds, MOVES_AFTER_FREEZING)


def freeze_with_lock(scene: Scene) -> Fault:
    """All workers frozen while one of them is in a transaction, for longer than it may keep its locks."""
    cluster = scene.cluster
    frozen: list[int] = []
    query = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kassa-worker' AND state = 'idle in transaction'"""

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
    return Fault("freeze", what, begin, thaw, FROZEN_WITH_LOCK_SECONDS, MOVES_AFTER_FREEZING)


def backend(scene: Scene) -> Fault:
    """A backend of PostgreSQL killed or frozen, or the whole server, or its postmaster alone."""
    cluster, act = scene.cluster, scene.random.choice(["kill a backend", "freeze a backend", "freeze all", "kill all"])
    frozen: list[int] = []

    def pids() -> list[int]:
        if act.endswith("all"):
            return cluster.family("postgres")
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


def broker(scene: Scene) -> Fault:
    """Redis down, restarted empty, restored from an old snapshot, flushed, frozen or full."""
    cluster, seconds = scene.cluster, scene.seconds()
    snapshot: dict[bytes, bytes] = {}

    def number(which: signal.Signals) -> None:
        cluster.signal([cluster.pid("redis")], which)

    def go_down() -> None:
        cluster.down.add("redis")
        number(signal.SIGKILL)

    def remember() -> None:
        for key in cluster.redis.scan_iter():
            if value := cluster.redis.dump(key):
                snapshot[key] = value

    def restore() -> None:
        for key, value in snapshot.items():
            cluster.redis.restore(key, 0, value, replace=True)

    nothing = lambda: None  # noqa: E731
    acts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "down": (go_down, lambda: cluster.down.discard("redis")),
        "restarted": (lambda: number(signal.SIGKILL), nothing),
        "restored": (remember, restore),
        "flushed": (cluster.redis.flushall, nothing),
        "frozen": (lambda: number(signal.SIGSTOP), lambda: number(signal.SIGCONT)),
        "full": (lambda: cluster.redis.config_set("maxmemory", "1"), lambda: cluster.redis.config_set("maxmemory", 0)),
    }
    act = scene.random.choice(sorted(acts))
    begin, end = acts[act]
    return Fault("redis", f"Redis {act}", quietly(begin), quietly(end), seconds)


def bells(scene: Scene) -> Fault:
    """Bells lost, doubled a thousand times, forged, of another version, garbage."""
    cluster, bells_of = scene.cluster, scene.cluster.redis

    def double() -> None:
        for lane, queue in enumerate(QUEUES):
            waiting = bells_of.lrange(queue, 0, 0)
            if waiting:
                bells_of.lpush(queue, *(waiting * DOUBLED))
            else:
                send(cluster, [("drain", [lane])] * (DOUBLED // 20))

    def litter() -> None:
        for queue in QUEUES:
            bells_of.lpush(queue, *GARBAGE)

    acts: dict[str, Callable[[], object]] = {
        "lost": lambda: bells_of.delete(*QUEUES),
        "doubled": double,
        "forged": lambda: send(cluster, [("drain", each) for each in FORGED]),
        "of another version": lambda: send(cluster, OTHER_VERSION),
        "garbage": litter,
    }
    act = scene.random.choice(sorted(acts))
    return Fault("bells", f"bells {act}", quietly(acts[act]))


def send(cluster: Cluster, tasks: list[tuple[str, list[object]]]) -> None:
    """Put tasks on the lanes' queues."""
    celery = celery_app(cluster.redis_url, [])
    for number, (name, arguments) in enumerate(tasks):
        celery.send_task(name, arguments, queue=lane_queue(number % LANES), retry=False)
    celery.close()


def crowd(scene: Scene) -> Fault:
    """Every worker at one lane."""
    lane = scene.random.randrange(LANES)
    ring = lambda: send(scene.cluster, [("drain", [lane])] * 40)  # noqa: E731
    return Fault("crowd", f"every worker at lane {lane}", quietly(ring))


def link(scene: Scene) -> Fault:
    """Any link refused, hung, half-open either way, slow, or reset after some bytes."""
    name = scene.random.choice(sorted(scene.cluster.links))
    chosen, seconds = scene.cluster.links[name], scene.seconds()
    mode = scene.random.choice(
        [
            *(Mode("refuse"), Mode("hang"), Mode("swallow_up"), Mode("swallow_down")),
            Mode("delay", seconds=scene.random.uniform(0.01, 0.3)),
            Mode("reset_after", length=scene.random.randrange(5_000)),
        ]
    )
    begin, end = (lambda: chosen.set(mode)), (lambda: chosen.set(Mode()))
    return Fault("links", f"{name} {mode.kind} for {seconds:.1f} s", begin, end, seconds, MOVES_AFTER_FREEZING)


def commit(scene: Scene) -> Fault:
    """Connections cut some bytes after the beginning of a COMMIT, or of an acceptance: before, within or after it."""
    edges = [name for name in scene.cluster.links if name.endswith(">postgres")]
    edge = "api>postgres" if scene.random.random() < 0.5 else scene.random.choice(edges)
    pattern, most = (b"EXECUTE accept", ACCEPT_BYTES) if edge.startswith("api") else (b"COMMIT", COMMIT_BYTES)
    if scene.random.random() < 0.5:
        mode, where = Mode("cut_at", length=scene.random.randrange(most), pattern=pattern), "into"
    else:
        mode, where = (
            Mode("cut_answer", length=scene.random.randrange(COMMIT_BYTES), pattern=pattern),
            "of the answer to",
        )
    seconds, chosen = scene.seconds(0.5), scene.cluster.links[edge]
    what = f"{edge} cut {mode.length} bytes {where} {pattern.decode()}"
    return Fault("commit", what, lambda: chosen.set(mode), lambda: chosen.set(Mode()), seconds, MOVES_AFTER_FREEZING)


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


def rolling(scene: Scene) -> Fault:
    """Every process restarted politely, one after another, under load."""

    def begin() -> None:
        for name in processes(scene):
            scene.cluster.signal([scene.cluster.pid(name)], signal.SIGTERM)
            time.sleep(0.2)

    return Fault("rolling", "a rolling restart", begin, promise=MOVES)


def backup(scene: Scene) -> Fault:
    """A backup in the middle, restored beside: it must hold what was acknowledged before, and reconcile."""
    thread = threading.Thread(target=lambda: back_up(scene), daemon=True)
    return Fault("backup", "backup, and restore beside", thread.start, thread.join)


def back_up(scene: Scene) -> None:
    """Dump, restore into another database, and look into it."""
    acknowledged = scene.acknowledged()
    name, url = f"restored_{new_id().replace('-', '')}", scene.cluster.database_url
    other = url.rpartition("/")[0] + f"/{name}"
    dumped = scene.cluster.data_dir / "backup.sql"
    binaries = postgres_binaries()
    with contextlib.ExitStack() as stack:
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


def quietly(act: Callable[[], object]) -> Callable[[], None]:
    """The same where Redis may be away because of another fault."""

    def attempt() -> None:
        with contextlib.suppress(redis.RedisError, OSError, Exception):
            act()

    return attempt


FAMILIES: dict[str, Callable[[Scene], Fault]] = {
    "kill": kill,
    "freeze": freeze,
    "postgres": backend,
    "redis": broker,
    "bells": bells,
    "crowd": crowd,
    "links": link,
    "commit": commit,
    "clock": clock,
    "disk": disk,
    "poison": poison,
    "deadlock": deadlock,
    "rolling": rolling,
    "backup": backup,
}


def missing(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Families that cannot be had here, and why."""
    from chaos.cluster import FAKETIME

    if not FAKETIME.exists():
        yield "clock", "libfaketime is missing (Debian: apt-get install faketime)"
    if cluster.log_disk is None:
        yield "disk", "a file system for the log can be mounted by root only"


def port_of(url: str) -> int:
    """The port of a URL."""
    port = urlsplit(url).port
    assert port is not None
    return port
