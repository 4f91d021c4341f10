"""What Redis and the messages in it can do to Kassa."""

import signal
from collections.abc import Callable

from chaos.cluster import LANES, Cluster
from chaos.faults.fault import Fault, Scene, quietly
from core.broker import celery_app, lane_queue

QUEUES = [f"kassa:lane.{lane}" for lane in range(LANES)]
DOUBLED = 1_000
ASIDE = LANES  # a lane that nobody works on
FORGED: list[list[object]] = [[0], [99], [-1], ["0"], [None], [], [0, 0], [{"lane": 0}], [True]]
OTHER_VERSION: list[tuple[str, list[object]]] = [
    ("drain_v2", [0]),
    ("kassa.drain", [0]),
    ("drain", [{"v": 2, "lanes": [0, 1]}]),
]
GARBAGE = (b"\xff\xfe", b"{}", b'{"body": 1}', b"[" * 2_000)


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
        celery = celery_app(cluster.redis_url, [])
        for lane, queue in enumerate(QUEUES):
            celery.send_task("drain", [lane], queue=lane_queue(ASIDE), retry=False)
            bell = bells_of.lpop(f"kassa:lane.{ASIDE}")
            assert isinstance(bell, bytes)
            bells_of.lpush(queue, *[bell] * DOUBLED)
        celery.close()

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
