"""Rounds: load, faults at random instants, healing, and a check of everything that anybody was told."""

import contextlib
import json
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2.errors
import sqlalchemy as sa

from chaos.checker import Checker, Violation
from chaos.cluster import Cluster, running
from chaos.faults import FAMILIES, Fault, Scene, missing
from chaos.faults.database import CONVOY
from chaos.faults.fault import MOVES
from chaos.history import Event, entries_after, keep, rows_after
from chaos.load import Client, World, populate
from chaos.proxy import network
from core import db, lanes
from core.reconcile import violations

FAULTS_MAX = 7
FAMILIES_IN_TURN = 2
QUIET_EVERY = 4  # rounds one has no faults
# PostgreSQL's timeouts follow its clock: where that is set back while locks are waited for, they come as much later. So
# nobody keeps locks for long in the same round; docs/reliability.md says what that means.
WAITING = ("deadlock", "convoy", "freeze", "holders", "postgres")
ALLOWANCE_SECONDS = 10.0  # beyond the promise: for processes to start again, on a small machine, several times
STALL_ALLOWANCE_SECONDS = 5.0  # beyond the promise, for a lane to move
EPOCH_ROUNDS = 20  # then the database is emptied, so that each check stays quick
SNAPSHOT_SECONDS = 1.0
STILL_SECONDS = 0.3
POSTGRES_SECONDS_MAX = 90.0  # for PostgreSQL to come back, and all the rest
LOOK_SECONDS = 0.1
GAP_SECONDS = 1.0
GUARD = "batch_not_written"  # is logged where a check of the ledger or of the database refuses what a drain has decided
QUERY = re.compile(r"^\s*Process \d+: (.*)$", re.MULTILINE)
# Whoever locks accounts in order of their ids: drains, and of the harness the convoy.
IN_ORDER = re.compile("EXECUTE (lock_lane|lock_accounts|write_outcomes)|" + CONVOY.partition(" OR ")[0])

EMPTY = """
SET session_replication_role = replica;
TRUNCATE operations, queue, entries, batches, purchases;
UPDATE users SET next_seq = 0;
UPDATE progress SET done_seq = 0;
UPDATE accounts SET balance = 0, version = 0;
SET session_replication_role = DEFAULT
"""
# What is unfinished, and what may yet be accepted. Workers may be at empty lanes for long, where bells were doubled.
BUSY = """
SELECT (SELECT count(*) FROM queue)
     + (SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'kassa-api'
           AND (state = 'active' OR state LIKE 'idle in%%'))
"""


@dataclass(frozen=True)
class Options:
    """What the operator of the harness asked for."""

    seed: int
    rounds: int
    seconds: float  # for how long; 0: as many rounds as were asked for
    load_seconds: float
    clients: int
    users: int
    workers: int
    families: tuple[str, ...]
    data_dir: Path
    faults_max: int = FAULTS_MAX
    in_turn: bool = False  # FAMILIES_IN_TURN of each round, one after another, rather than what chance gives


@dataclass
class Totals:
    """What a run comes to."""

    rounds: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by outcome
    acknowledged: int = 0
    finished: Counter[str] = field(default_factory=Counter)  # operations by status
    faults: Counter[str] = field(default_factory=Counter)  # by family
    worst: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds to settle, by family
    stalls: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # the longest of a lane, by family
    snapshots: int = 0
    violations: list[str] = field(default_factory=list)


class Late(Exception):
    """Something accepted was not finished by the deadline of the promise."""


def run(options: Options, say: Callable[[str], None]) -> Totals:
    """Play the rounds until one fails, or the last. Returns what they came to."""
    totals, started = Totals(), time.monotonic()
    with network() as links, running(Cluster(options.data_dir, links, options.workers)) as cluster:
        say(f"starting a cluster in {options.data_dir} ...")
        world = populate(cluster, options.users)
        cluster.wait_until_ready(lambda: serves(world))
        families = available(cluster, options, say)
        checker = begin_epoch(cluster, world, 0)
        for number in range(1, options.rounds + 1):
            if number % EPOCH_ROUNDS == 0:
                checker = begin_epoch(cluster, world, number)
            played = Round(cluster, world, checker, options, families, number, totals)
            line, broken = played.play()
            say(line)
            totals.rounds = number
            if broken:
                report(played, broken, options, say, totals)
                break
            if options.seconds and time.monotonic() - started > options.seconds:
                break
    (options.data_dir / "results.json").write_text(json.dumps(summary(totals), indent=1))
    return totals


def available(cluster: Cluster, options: Options, say: Callable[[str], None]) -> list[str]:
    """The families that were asked for and can be had."""
    absent = dict(missing(cluster))
    for name, why in absent.items():
        if name in options.families:
            say(f"left out: {name}, since {why}")
    return [name for name in options.families if name not in absent]


def emptied(connection: sa.Connection) -> bool:
    """Empty the tables. Returns False where that came into a deadlock with a look at a lane."""
    try:
        for statement in EMPTY.strip().split(";"):
            connection.exec_driver_sql(statement)
    except sa.exc.OperationalError as error:
        if isinstance(error.orig, psycopg2.errors.DeadlockDetected):
            return False
        raise
    return True


def begin_epoch(cluster: Cluster, world: World, number: int) -> Checker:
    """Forget all operations. Returns a checker that knows of none."""
    with db.autocommit(cluster.engine).connect() as connection:
        while not emptied(connection):
            pass
        [[last]] = connection.exec_driver_sql("SELECT coalesce(nextval('apply_no'), 0)")
    world.epoch = f"{number}."
    checker = Checker()
    checker.last_apply_no = last
    return checker


def serves(world: World) -> bool:
    """Whether an operation goes all the way."""
    probe = Client(world, 0)
    event = probe.ask("read", world.users[0], "GET", "/v1/balance")
    probe.hang_up()
    return event.outcome == "ok"


class Round:
    """One round. Its faults follow from the seed and its number."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        checker: Checker,
        options: Options,
        families: list[str],
        number: int,
        totals: Totals,
    ) -> None:
        self.cluster, self.world, self.checker = cluster, world, checker
        self.options, self.number, self.totals = options, number, totals
        self.random = random.Random(f"{options.seed}/{number}")
        self.clients = [Client(world, self.random.randrange(2**32)) for _ in range(options.clients)]
        self.extra = Client(world, self.random.randrange(2**32))  # acts for the faults, and probes in the end
        self.scene = Scene(cluster, world, self.extra, self.random, self.acknowledged)
        self.faults = self._plan(families)
        self.snapshots = 0
        self.stall = 0.0  # the longest that an operation stood at the head of a lane, while the database answered

    def _plan(self, families: list[str]) -> list[tuple[float, Fault]]:
        """Faults and the instants at which they begin."""
        chosen = self._choose(families)
        late = self.options.load_seconds * 0.8
        planned = [(self.random.uniform(0.1, late), FAMILIES[name](self.scene)) for name in chosen]
        return sorted(planned, key=lambda each: each[0])

    def _choose(self, families: list[str]) -> list[str]:
        if self.options.in_turn:
            first = (self.number - 1) * FAMILIES_IN_TURN
            return [families[place % len(families)] for place in range(first, first + FAMILIES_IN_TURN)]
        if not families or self.number % QUIET_EVERY == 0:
            return []
        own = families[(self.number - self.number // QUIET_EVERY) % len(families)]  # so that none is left out for long
        others = self.random.randint(2, self.options.faults_max - 1)
        chosen = [own, *(self.random.choice(families) for _ in range(others))]
        apart = ("clock",) if own in WAITING else WAITING
        return [name for name in chosen if name not in apart] if "clock" in chosen else chosen

    @property
    def events(self) -> list[Event]:
        """All that was noted."""
        return [event for client in (*self.clients, self.extra) for event in client.events]

    def acknowledged(self) -> set[str]:
        """Ids of the operations that clients were told of so far."""
        told = [told for event in self.events for told in list(event.operations)]
        return {each.id for each in told} - {""}

    def play(self) -> tuple[str, list[Violation]]:
        """Returns a line that tells of it, and the violations."""
        over, watched = threading.Event(), threading.Event()
        threads = [threading.Thread(target=client.run, args=(over,), daemon=True) for client in self.clients]
        watchers = [
            threading.Thread(target=act, args=(watched,), daemon=True) for act in (self._watch, self._watch_lanes)
        ]
        deadlocks = len(self.cluster.deadlocks())
        guarded = self.cluster.logged(GUARD)
        for thread in (*threads, *watchers):
            thread.start()
        self._act()
        over.set()
        for thread in threads:
            thread.join()
        watched.set()
        for thread in watchers:
            thread.join()
        self._judge_pace(self.cluster.deadlocks()[deadlocks:])
        line, broken = self._settle_and_check()
        if struck := self.cluster.logged(GUARD) - guarded:
            broken.append(Violation("guarded", f"{struck} batches would have broken the ledger, had no guard refused"))
        return line, broken

    def _act(self) -> None:
        """Let each fault happen at its instant, in a thread of its own: it may be held up by another."""
        started = time.monotonic()
        acting = [threading.Thread(target=self._happen, args=(started, *each), daemon=True) for each in self.faults]
        for thread in acting:
            thread.start()
        time.sleep(self.options.load_seconds)
        for thread in acting:
            thread.join()
        self.cluster.network.heal()

    def _happen(self, started: float, instant: float, fault: Fault) -> None:
        time.sleep(max(0.0, started + instant - time.monotonic()))
        try:
            fault.begin()
            time.sleep(fault.seconds)
        finally:
            fault.end()

    def _watch(self, over: threading.Event) -> None:
        """Reconcile the ledger in snapshots during the faults."""
        while not over.wait(SNAPSHOT_SECONDS):
            with contextlib.suppress(sa.exc.DBAPIError, sa.exc.TimeoutError):
                for finding in violations(self.cluster.engine):
                    self.scene.problems.append(f"in a snapshot during the faults: {finding}")
                self.snapshots += 1

    def _watch_lanes(self, over: threading.Event) -> None:
        """Note how long an operation stands at the head of its lane."""
        since: dict[str, float] = {}
        last = time.monotonic()
        while not over.wait(LOOK_SECONDS):
            with contextlib.suppress(sa.exc.DBAPIError, sa.exc.TimeoutError):
                with db.autocommit(self.cluster.engine).connect() as connection:
                    heads = set(lanes.heads(connection).values())
                now = time.monotonic()
                if now - last > GAP_SECONDS:  # the database was away, and nothing could move
                    since = {}
                last, since = now, {head: since.get(head, now) for head in heads}
                self.stall = max([self.stall, *(now - first for first in since.values())])

    def _judge_pace(self, deadlocks: list[str]) -> None:
        """No lane stood still for longer than promised, and nobody made others wait in a circle."""
        families = {fault.family for _, fault in self.faults}
        promise = max((fault.promise for _, fault in self.faults), default=MOVES) + STALL_ALLOWANCE_SECONDS
        if self.stall > promise:
            self.scene.problems.append(f"a lane stood still for {self.stall:.1f} s, and {promise:.0f} s are promised")
        if unlawful := [each for each in deadlocks if all(map(IN_ORDER.match, QUERY.findall(each)))]:
            self.scene.problems.append(f"{len(unlawful)} deadlocks of those who lock in order: {unlawful[0]}")
        if deadlocks and "deadlock" not in families:
            self.scene.problems.append(f"{len(deadlocks)} deadlocks, where nobody made one: {deadlocks[0]}")

    def _settle_and_check(self) -> tuple[str, list[Violation]]:
        promise = max((fault.promise for _, fault in self.faults), default=MOVES)
        broken: list[Violation] = []
        try:
            took = self._settle(promise + ALLOWANCE_SECONDS)
        except Late as error:
            took = promise + ALLOWANCE_SECONDS
            broken.append(Violation("late", str(error)))
        else:
            broken += self._check()
        broken += [Violation("found by a fault", problem) for problem in self.scene.problems]
        return self._line(took), broken

    def _settle(self, seconds: float) -> float:
        """Wait until everything is finished and Kassa serves again, so long from when PostgreSQL is back.

        Returns the seconds it took. Raises Late.
        """
        started = back = time.monotonic()
        still_since = None
        served = False
        while still_since is None or time.monotonic() - still_since < STILL_SECONDS:
            now = time.monotonic()
            if now - back > seconds + STILL_SECONDS or now - started > POSTGRES_SECONDS_MAX:
                raise Late(f"after {now - started:.0f} s, {now - back:.0f} s of PostgreSQL: {self._why()}")
            served = served or self._serves_again()
            busy = self._busy()
            if busy is None:  # the promises are about Kassa: PostgreSQL may recover for as long as it needs
                back = time.monotonic()
            still_since = (still_since or time.monotonic()) if served and busy == 0 else None
            time.sleep(0.02)
        return still_since - started

    def _serves_again(self) -> bool:
        before = len(self.extra.events)
        self.extra.submit()
        self.extra.hang_up()
        return any(event.outcome == "ok" for event in self.extra.events[before:])

    def _busy(self) -> int | None:
        """How much is unfinished or under way; None where the database does not answer."""
        with contextlib.suppress(sa.exc.SQLAlchemyError), db.autocommit(self.cluster.engine).connect() as connection:
            return int(connection.exec_driver_sql(BUSY).scalar_one())
        return None

    def _why(self) -> str:
        """What is not finished, or who is still at it."""
        with contextlib.suppress(sa.exc.SQLAlchemyError), db.autocommit(self.cluster.engine).connect() as connection:
            pending = connection.exec_driver_sql(
                "SELECT lane, count(*), min(turn), max(turn) FROM queue GROUP BY lane"
            ).all()
            active = connection.exec_driver_sql(
                "SELECT application_name, state, wait_event, left(query, 60) FROM pg_stat_activity"
                " WHERE application_name LIKE 'kassa-%%' AND state <> 'idle'"
            ).all()
            return f"pending (lane, count, turns) {pending}; backends {active}; last {self.extra.events[-1].detail}"
        return f"the database does not answer; last {self.extra.events[-1].detail}"

    def _check(self) -> list[Violation]:
        """The history against the database, and the ledger against itself."""
        with self.cluster.engine.connect() as connection:
            # What PostgreSQL knows of the tables is older than the round: a loop over entries would be of operations².
            connection.exec_driver_sql("SET LOCAL enable_nestloop = off")
            rows = rows_after(connection, self.checker.last_apply_no)
            entries = entries_after(connection, self.checker.last_apply_no)
        broken = self.checker.check(self.events, rows, entries)
        broken += [Violation(finding.truth, str(finding.samples)) for finding in violations(self.cluster.engine)]
        self.totals.finished.update(row.status for row in rows)
        return broken

    def _line(self, took: float) -> str:
        """Tell of the round, and add it to the totals."""
        events = self.events
        outcomes = Counter(event.outcome for event in events)
        acknowledged = len({told.id for event in events if event.items for told in event.operations})
        self.totals.requests.update(outcomes)
        self.totals.acknowledged += acknowledged
        self.totals.snapshots += self.snapshots
        self.totals.faults.update(fault.family for _, fault in self.faults)
        for name in {fault.family for _, fault in self.faults} or {"none"}:
            self.totals.worst[name] = max(took, self.totals.worst[name])
            self.totals.stalls[name] = max(self.stall, self.totals.stalls[name])
        what = "; ".join(fault.what for _, fault in self.faults) or "no faults"
        return (
            f"round {self.number:4}  {acknowledged:5,} acknowledged, {outcomes['unknown']:3} unknown, "
            f"{outcomes['refused']:3} refused, settled in {took:4.1f} s, lanes stood {self.stall:4.1f} s  [{what}]"
        )


def report(
    played: Round, broken: list[Violation], options: Options, say: Callable[[str], None], totals: Totals
) -> None:
    """Tell of a failure, and keep what is needed to understand it."""
    path = options.data_dir / "history.jsonl"
    keep(sorted(played.events, key=lambda event: event.invoked), path)
    totals.violations = [str(each) for each in broken]
    rules = Counter(each.rule for each in broken)
    say(f"FAILED: seed {options.seed}, round {played.number}: {dict(rules)}")
    shown: set[str] = set()
    for each in broken:
        if each.rule not in shown:
            shown.add(each.rule)
            say(f"  {each}"[:1000])
    say(f"  history of the round: {path}; logs: {options.data_dir / 'log'}")


def summary(totals: Totals) -> dict[str, Any]:
    """As JSON."""
    return {
        "rounds": totals.rounds,
        "faults": sum(totals.faults.values()),
        "faults_by_family": dict(totals.faults),
        "acknowledged_operations": totals.acknowledged,
        "requests_by_outcome": dict(totals.requests),
        "operations_by_status": dict(totals.finished),
        "snapshots_during_faults": totals.snapshots,
        "worst_seconds_to_settle_by_family": {name: round(each, 2) for name, each in totals.worst.items()},
        "longest_stall_of_a_lane_by_family": {name: round(each, 2) for name, each in totals.stalls.items()},
        "violations": totals.violations,
    }
