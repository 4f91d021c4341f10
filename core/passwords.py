"""Passwords: hashed by argon2id, and compared as slowly for nobody as for somebody."""

import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

HASHES_AT_ONCE_MAX = 2  # each takes 19 MiB and some 30 ms of a core: a crowd logging in must not starve the others

hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's minimum for argon2id
NOBODYS_HASH = hasher.hash(secrets.token_hex())
hashing = threading.BoundedSemaphore(HASHES_AT_ONCE_MAX)


def hash_password(password: str) -> str:
    """The password's hash, to be stored. Call it while no database connection is held: it may wait for its turn."""
    with hashing:
        return hasher.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed; where there is none, no, and not a millisecond sooner."""
    with hashing:
        try:
            return hasher.verify(password_hash or NOBODYS_HASH, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False
