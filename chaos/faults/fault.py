"""What a fault is, and what it acts on."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import kombu.exceptions
import redis

from chaos.cluster import Cluster
from chaos.load import Client, World

SHORTEST, LONGEST = 0.2, 2.0
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


def quietly(act: Callable[[], object]) -> Callable[[], None]:
    """The same where Redis may be away because of another fault."""

    def attempt() -> None:
        with contextlib.suppress(redis.RedisError, kombu.exceptions.KombuError, OSError):
            act()

    return attempt
