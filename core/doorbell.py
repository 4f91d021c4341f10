"""Step 4 of the story: after the commit, say "lane n may have work" on the lane's queue.

A bell is a hint. A thread rings it, so that no request waits for the broker, alive or not; errors are counted and
swallowed; and while a lane's bell is unanswered no second one is sent. The mark of an unanswered bell lives in Redis,
is removed by the drain before it looks, and expires, so that a bell that was lost is missed for a moment only.

The same thread announces chores, such as a mail to be sent. Those are hints, too: they name a row, and beat looks for
rows whose announcement was lost.
"""

import threading
import time

import redis
import structlog
from celery import Celery

from core.broker import DEFAULT_QUEUE, PUBLISH_TIMEOUT_SECONDS, celery_app, lane_queue
from core.metrics import BELLS

UNANSWERED_MILLISECONDS_MAX = 1_000
BELL_EXPIRES_SECONDS = 10  # bells that piled up while no worker ran are dropped unread
RINGS_APART_SECONDS = 0.004  # what is accepted meanwhile is announced together
COALESCED_APART_SECONDS = 0.016  # where all bells were rung already, the workers are busy: they come soon enough
CHORE_EXPIRES_SECONDS = 60  # by then beat announces it again
CHORES_MAX = 1_000  # waiting to be announced by this process; of more, beat reminds
PAUSE_AFTER_ERROR_SECONDS = 1.0  # do not keep a dead broker busy; the sweeper covers for it meanwhile

log = structlog.get_logger("kassa.doorbell")


def mark_key(lane: int) -> str:
    """Where Redis remembers that the lane's bell has not been answered yet."""
    return f"kassa:bell:{lane}"


def redis_client(redis_url: str, timeout_seconds: float = PUBLISH_TIMEOUT_SECONDS) -> redis.Redis:
    """A client that gives up soon and never tries twice."""
    return redis.Redis.from_url(
        redis_url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=None
    )


class Doorbell:
    """Rings lanes from a thread of its own, which the first ring of each process starts."""

    def __init__(self, redis_url: str, broker_url: str | None = None) -> None:
        self._celery: Celery = celery_app(broker_url or redis_url, [], socket_timeout=PUBLISH_TIMEOUT_SECONDS)
        self._redis = redis_client(redis_url)
        self._lanes: set[int] = set()
        self._chores: list[tuple[str, str]] = []
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self, lane: int) -> None:
        """Have the lane's bell rung soon; call it after the commit. Returns at once and raises nothing."""
        with self._lock:
            self._lanes.add(lane)
        self._wake_thread()

    def announce(self, task: str, row_id: str) -> None:
        """Have a chore's task sent soon; call it after the commit. Returns at once and raises nothing."""
        with self._lock:
            if len(self._chores) < CHORES_MAX:
                self._chores.append((task, row_id))
        self._wake_thread()

    def _wake_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_forever, name="doorbell", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run_forever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            time.sleep(RINGS_APART_SECONDS if self.run_once() else COALESCED_APART_SECONDS)

    def run_once(self) -> int:
        """Ring all lanes that asked for it and have no unanswered bell. Returns how much was sent."""
        with self._lock:
            lanes, self._lanes = self._lanes, set()
            chores, self._chores = self._chores, []
        try:
            rung = self._send(sorted(lanes)) if lanes else 0
            for task, row_id in chores:
                self._celery.send_task(task, [row_id], queue=DEFAULT_QUEUE, expires=CHORE_EXPIRES_SECONDS, retry=False)
            return rung + len(chores)
        except Exception as error:  # whatever the broker's failure: a bell is only a hint
            BELLS.labels("error").inc(len(lanes))
            log.warning("bell_not_rung", lanes=sorted(lanes), chores=len(chores), error=repr(error))
            time.sleep(PAUSE_AFTER_ERROR_SECONDS)
            return 0

    def _send(self, lanes: list[int]) -> int:
        # Under load nearly all bells of many lanes are unanswered, and one question says so.
        marks = self._redis.mget(map(mark_key, lanes)) if len(lanes) > 1 else [None]
        pipeline = self._redis.pipeline(transaction=False)
        quiet = [lane for lane, mark in zip(lanes, marks, strict=True) if mark is None]
        for lane in quiet:
            pipeline.set(mark_key(lane), "1", nx=True, px=UNANSWERED_MILLISECONDS_MAX)
        unmarked = [lane for lane, was_set in zip(quiet, pipeline.execute(), strict=True) if was_set]
        for lane in unmarked:
            self._celery.send_task("drain", [lane], queue=lane_queue(lane), expires=BELL_EXPIRES_SECONDS, retry=False)
        BELLS.labels("rung").inc(len(unmarked))
        BELLS.labels("coalesced").inc(len(lanes) - len(unmarked))
        return len(unmarked)


def answer(client: redis.Redis, lane: int) -> None:
    """Take the mark away: whatever is accepted from now on rings again. Call it before looking for work."""
    try:
        client.delete(mark_key(lane))
    except redis.RedisError as error:
        log.warning("bell_not_answered", lane=lane, error=repr(error))
