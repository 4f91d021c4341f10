"""Serving at once what several requests ask for at the same time: one round trip, and one commit, for all of them.

Whoever comes first serves all that are waiting; who comes meanwhile waits for the next turn, and one of them takes it.
Where a group takes long, for its connection hangs perhaps, another leads beside it; and nobody waits long for a turn.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import sqlalchemy as sa

from core.db import POOL_WAIT_SECONDS

PATIENCE_SECONDS = 1.0
GROUPS_MAX = 2  # at once: one that hangs, and one that goes on

Asked = TypeVar("Asked")
Told = TypeVar("Told")


class Together(Generic[Asked, Told]):
    """Gathers what is asked for in a process into groups."""

    def __init__(
        self,
        serve: Callable[[Sequence[Asked]], Sequence[Told]],
        group_max: int,
        apart: Callable[[Asked], Hashable] = id,
    ) -> None:
        """serve: answers a group, each in its place; what it raises is raised to all of them.

        apart: of those for which it gives the same, a group has one.
        """
        self._answer, self._group_max, self._apart = serve, group_max, apart
        self._seats: list[Seat[Asked, Told]] = []  # in the order of coming; those of a group that is served have left
        self._leader: Seat[Asked, Told] | None = None
        self._led_since = 0.0
        self._groups = 0  # that are being served
        self._lock = threading.Lock()

    def ask(self, asked: Asked) -> Told:
        """The answer, got together with others'. Raises sqlalchemy's TimeoutError if its turn does not come in time."""
        seat: Seat[Asked, Told] = Seat(asked)
        with self._lock:
            self._seats.append(seat)
            if self._leader is None:
                self._lead(seat)
        try:
            while self._leader is not seat and not seat.event.wait(PATIENCE_SECONDS):
                self._lose_patience(seat)
            if self._leader is seat:
                self._serve()
        except BaseException:  # its request was given up: nobody may wait for it to lead
            self._leave(seat)
            raise
        if seat.error is not None:
            raise seat.error
        return seat.told[0]

    def _lead(self, seat: "Seat[Asked, Told]") -> None:
        """Under the lock: have it lead the next group."""
        self._leader, self._led_since = seat, time.monotonic()
        seat.event.set()

    def _lose_patience(self, seat: "Seat[Asked, Told]") -> None:
        with self._lock:
            if seat not in self._seats or self._leader in self._seats:  # it is being served, or will be at once
                return
            now = time.monotonic()
            if self._groups < GROUPS_MAX and now - self._led_since > PATIENCE_SECONDS:
                self._lead(seat)
            elif now - seat.since > POOL_WAIT_SECONDS:
                raise sa.exc.TimeoutError(f"no turn came within {POOL_WAIT_SECONDS} s")

    def _leave(self, seat: "Seat[Asked, Told]") -> None:
        with self._lock:
            if seat in self._seats:
                self._seats.remove(seat)
            if self._leader is seat:
                self._hand_on()

    def _serve(self) -> None:
        """Serve the next group, its leader among them, and hand on."""
        time.sleep(0)  # requests that are there already come in first: one after another they would be a group each
        with self._lock:
            leader, group = self._leader, self._next_group()
            self._groups += 1
        try:
            for seat, told in zip(group, self._answer([seat.asked for seat in group]), strict=True):
                seat.told.append(told)
        except BaseException as error:  # of a leader that was given up, too: nobody knows what it has done by then
            for seat in group:
                seat.error = error
        with self._lock:
            self._groups -= 1
            if self._leader is leader:
                self._hand_on()
        for seat in group:
            seat.event.set()

    def _next_group(self) -> list["Seat[Asked, Told]"]:
        """Under the lock: the leader, and those who have waited longest."""
        assert self._leader is not None
        group = {self._apart(self._leader.asked): self._leader}
        for seat in self._seats:
            if len(group) < self._group_max:
                group.setdefault(self._apart(seat.asked), seat)
        self._seats = [seat for seat in self._seats if seat not in group.values()]
        return list(group.values())

    def _hand_on(self) -> None:
        """Under the lock: let the first of those who wait lead."""
        self._leader = None
        if self._seats:
            self._lead(self._seats[0])


class Seat(Generic[Asked, Told]):
    """One request that waits for its group, and what came of it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.since = time.monotonic()
        self.event = threading.Event()  # its answer is there, or it leads
        self.told: list[Told] = []
        self.error: BaseException | None = None
