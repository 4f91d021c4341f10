"""Passwords: hashed by argon2id, and compared as slowly for nobody as for somebody."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core.errors import Refusal

HASHES_AT_ONCE_MAX = 2  # each takes 19 MiB and some 30 ms of a core: a crowd logging in must not starve the others
HASHES_WAITING_MAX = 12  # who hash or wait for it; more would wait for longer than anybody cares to

hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's minimum for argon2id
NOBODYS_HASH = hasher.hash(secrets.token_hex())
waiting = threading.BoundedSemaphore(HASHES_WAITING_MAX)
hashing = threading.BoundedSemaphore(HASHES_AT_ONCE_MAX)


def hash_password(password: str) -> str:
    """The password's hash, to be stored. Call it while no database connection is held: it may wait for its turn.

    Raises Refusal busy.
    """
    with turn():
        return str(in_a_thread(hasher.hash, password))


def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed; where there is none, no, and not a millisecond sooner.

    Raises Refusal busy.
    """
    with turn():
        right = in_a_thread(verifies, password_hash or NOBODYS_HASH, password)
        return bool(right) and password_hash is not None


def verifies(password_hash: str, password: str) -> bool:
    """Whether the hash is one of the password."""
    try:
        return hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def in_a_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """What the work returns. Under gevent (the API) 30 ms of hashing must not keep all others waiting."""
    return gevent.get_hub().threadpool.apply(work, arguments)


@contextmanager
def turn() -> Iterator[None]:
    """Wait for a turn at hashing, and have it. Raises Refusal busy at once where too many are waiting already."""
    if not waiting.acquire(blocking=False):
        raise Refusal("busy", "Too many are logging in right now: try again in a second.", retry_after_seconds=1)
    try:
        with hashing:
            yield
    finally:
        waiting.release()
