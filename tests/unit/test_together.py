"""Those who ask at the same time are served together, and nobody waits for another's trouble."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from core import together
from core.together import Seat, Together

SECONDS_MAX = 10


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is lost must not be made up for by patience."""
    monkeypatch.setattr(together, "PATIENCE_SECONDS", 10 * SECONDS_MAX)


class Server:
    """Doubles numbers, each group when it is let to; and remembers the groups."""

    def __init__(self, hanging: int | None = None) -> None:
        self.groups: list[list[int]] = []
        self.may_begin = threading.Event()
        self.hanging, self.released = hanging, threading.Event()

    def serve(self, group: Sequence[int]) -> list[int]:
        self.groups.append(list(group))
        assert self.may_begin.wait(SECONDS_MAX)
        if self.hanging in group:
            assert self.released.wait(SECONDS_MAX)
        if -1 in group:
            raise ValueError("a number is negative")
        return [2 * number for number in group]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ask_in_order(
    pool: ThreadPoolExecutor, asked: Together[int, int], server: Server, numbers: Sequence[int]
) -> list[Future[int]]:
    """The first leads, and is being served when the others come, one after another."""
    futures = []
    for place, number in enumerate(numbers):
        futures.append(pool.submit(asked.ask, number))
        until(lambda place=place: len(server.groups) == 1 and len(asked._seats) == place)
    return futures


def test_who_comes_meanwhile_is_served_together_in_the_next_turn():
    server = Server()
    asked = Together(server.serve, 3)
    with ThreadPoolExecutor(6) as pool:
        futures = ask_in_order(pool, asked, server, [1, 2, 3, 4, 5])
        server.may_begin.set()
        assert [future.result(SECONDS_MAX) for future in futures] == [2, 4, 6, 8, 10]
    assert server.groups == [[1], [2, 3, 4], [5]]
    assert asked.ask(6) == 12, "and nobody is left to lead"


def test_who_is_there_already_comes_in_before_the_first_group_is_served(monkeypatch: pytest.MonkeyPatch):
    server = Server()
    server.may_begin.set()
    asked = Together(server.serve, 9)
    with ThreadPoolExecutor(2) as pool:
        others: list[Future[int]] = []

        def others_run(_seconds: float) -> None:
            monkeypatch.undo()
            others.append(pool.submit(asked.ask, 2))
            until(lambda: len(asked._seats) == 2)

        monkeypatch.setattr(together.time, "sleep", others_run)
        assert asked.ask(1) == 2
        assert others[0].result(SECONDS_MAX) == 4
    assert server.groups == [[1, 2]]


def test_a_group_has_one_of_those_that_are_to_be_apart():
    server = Server()
    asked = Together(server.serve, 9, apart=lambda number: number % 10)
    with ThreadPoolExecutor(6) as pool:
        futures = ask_in_order(pool, asked, server, [1, 11, 21, 2])
        server.may_begin.set()
        assert [future.result(SECONDS_MAX) for future in futures] == [2, 22, 42, 4]
    assert server.groups == [[1], [11, 2], [21]]


def test_what_goes_wrong_is_told_to_the_group_and_to_nobody_else():
    server = Server()
    asked = Together(server.serve, 2)
    with ThreadPoolExecutor(6) as pool:
        first, second, wrong, last = ask_in_order(pool, asked, server, [1, 2, -1, 3])
        server.may_begin.set()
        assert (first.result(SECONDS_MAX), last.result(SECONDS_MAX)) == (2, 6)
        for future in (second, wrong):
            with pytest.raises(ValueError, match="negative"):
                future.result(SECONDS_MAX)


def test_beside_a_group_that_hangs_another_is_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "PATIENCE_SECONDS", 0.05)
    server = Server(hanging=1)
    server.may_begin.set()
    asked = Together(server.serve, 9)
    with ThreadPoolExecutor(6) as pool:
        [hanging] = ask_in_order(pool, asked, server, [1])
        assert pool.submit(asked.ask, 2).result(SECONDS_MAX) == 4
        assert not hanging.done()
        server.may_begin.clear()
        leads = pool.submit(asked.ask, 3)
        until(lambda: [3] in server.groups)
        server.released.set()
        assert hanging.result(SECONDS_MAX) == 2, "and it hands nothing on: another leads by now"
        waits = pool.submit(asked.ask, 4)
        until(lambda: len(asked._seats) == 1)
        monkeypatch.setattr(together, "PATIENCE_SECONDS", 10 * SECONDS_MAX)
        server.may_begin.set()
        assert [leads.result(SECONDS_MAX), waits.result(SECONDS_MAX)] == [6, 8]
    assert server.groups == [[1], [2], [3], [4]]


def test_where_everything_hangs_nobody_waits_long_for_a_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(together, "POOL_WAIT_SECONDS", 0.3)
    server = Server()
    asked = Together(server.serve, 1)
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(asked.ask, number) for number in range(4)]
        until(lambda: sum(future.done() for future in futures) == 4 - together.GROUPS_MAX)
        for future in futures:
            if future.done():
                with pytest.raises(sa.exc.TimeoutError, match="no turn"):
                    future.result()
        server.may_begin.set()
        assert sorted(future.result(SECONDS_MAX) for future in futures if future.exception() is None) == sorted(
            2 * number for [number] in server.groups
        )
    assert len(server.groups) == together.GROUPS_MAX
    assert asked.ask(9) == 18


class GivenUpWhenCalled(threading.Event):
    """Of one whose request is given up at the moment in which it is to lead."""

    def wait(self, _timeout: float | None = None) -> bool:
        super().wait(SECONDS_MAX)
        raise InterruptedError


class SecondIsGivenUp(Seat[int, int]):
    """A seat; and that of 2 is left as it is about to lead."""

    def __init__(self, asked: int) -> None:
        super().__init__(asked)
        if asked == 2:
            self.event = GivenUpWhenCalled()


def test_one_who_is_given_up_before_leading_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "Seat", SecondIsGivenUp)
    server = Server()
    asked = Together(server.serve, 9)
    with ThreadPoolExecutor(6) as pool:
        first, second, third = ask_in_order(pool, asked, server, [1, 2, 3])
        server.may_begin.set()
        assert (first.result(SECONDS_MAX), third.result(SECONDS_MAX)) == (2, 6)
        with pytest.raises(InterruptedError):
            second.result(SECONDS_MAX)
    assert server.groups == [[1], [3]]
