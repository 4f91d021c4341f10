"""Passwords: hashed by argon2id, and compared as slowly for nobody as for somebody."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core.errors import Refusal

HASHES_AT_ONCE_MAX = 2  # each takes 19 MiB and some 30 ms of a core: a crowd logging in must not starve the others
HASHES_WAITING_MAX = 12  # threads that hash or wait for it, of the 64 of a process: the others stay free to answer

hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's minimum for argon2id
NOBODYS_HASH = hasher.hash(secrets.token_hex())
waiting = threading.BoundedSemaphore(HASHES_WAITING_MAX)
hashing = threading.BoundedSemaphore(HASHES_AT_ONCE_MAX)


def hash_password(password: str) -> str:
    """The password's hash, to be stored. Call it while no database connection is held: it may wait for its turn.

    Raises Refusal busy.
    """
    with turn():
        return hasher.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed; where there is none, no, and not a millisecond sooner.

    Raises Refusal busy.
    """
    with turn():
        try:
            return hasher.verify(password_hash or NOBODYS_HASH, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False


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
