"""Tries, counted in PostgreSQL, so that neither a flushed Redis nor a restart gives anybody more of them.

Windows are fixed: a window begins with the first try and ends after its time, and so does the refusal. A try is
counted in a statement of its own, which is committed whatever becomes of the request. Names are counted alike
whether anybody has them or not, and bounded in length, so that a guess learns nothing and fills no table.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa

from core.errors import Refusal

LOGIN_TRIES_PER_ACCOUNT_MAX = 10  # failed ones: a person who has forgotten a password needs no more
LOGIN_TRIES_PER_ADDRESS_MAX = 100  # failed ones: an office may share an address
CODE_TRIES_PER_EMAIL_MAX = 10  # wrong ones, over all codes of the address; each code takes five
CODE_TRIES_PER_ADDRESS_MAX = 100
TRIES_WINDOW_SECONDS = 15 * 60
MAILS_PER_EMAIL_MAX = 5  # nobody's mailbox is to be filled through us
MAILS_PER_ADDRESS_MAX = 30
MAILS_WINDOW_SECONDS = 3600

WHO_CHARACTERS_MAX = 254  # of an e-mail address, RFC 5321; usernames are shorter
IPV6_PREFIX_BITS = 64  # what one customer has: single addresses would be 2^64 windows


@dataclass(frozen=True)
class Limit:
    """How many tries of what there are in a window."""

    name: str
    tries_max: int
    window_seconds: int


LOGINS_OF_ACCOUNT = Limit("login/account", LOGIN_TRIES_PER_ACCOUNT_MAX, TRIES_WINDOW_SECONDS)
LOGINS_FROM_ADDRESS = Limit("login/address", LOGIN_TRIES_PER_ADDRESS_MAX, TRIES_WINDOW_SECONDS)
CODES_OF_EMAIL = Limit("code/email", CODE_TRIES_PER_EMAIL_MAX, TRIES_WINDOW_SECONDS)
CODES_FROM_ADDRESS = Limit("code/address", CODE_TRIES_PER_ADDRESS_MAX, TRIES_WINDOW_SECONDS)
MAILS_TO_EMAIL = Limit("mail/email", MAILS_PER_EMAIL_MAX, MAILS_WINDOW_SECONDS)
MAILS_FOR_ADDRESS = Limit("mail/address", MAILS_PER_ADDRESS_MAX, MAILS_WINDOW_SECONDS)


@dataclass(frozen=True)
class Tries:
    """Whose tries are counted against a limit: of a name in any capitals, or of a client's address."""

    limit: Limit
    who: str


# The database folds the name, as it does where it looks one up: what finds the same user counts as the same.
KEY = f"CAST(:name AS text) || '/' || left(lower(CAST(:who AS text)), {WHO_CHARACTERS_MAX})"
COUNT = sa.text(f"""
INSERT INTO attempts (key, count, window_ends_at)
VALUES ({KEY}, 1, statement_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (key) DO UPDATE SET
       count = CASE WHEN attempts.window_ends_at > statement_timestamp() THEN attempts.count + 1 ELSE 1 END,
       window_ends_at = CASE WHEN attempts.window_ends_at > statement_timestamp()
                             THEN attempts.window_ends_at ELSE excluded.window_ends_at END
RETURNING count AS tried, ceil(extract(epoch FROM window_ends_at - statement_timestamp())) AS seconds_left""")
LOOK = sa.text(f"""
SELECT count AS tried, ceil(extract(epoch FROM window_ends_at - statement_timestamp())) AS seconds_left
  FROM attempts WHERE key = {KEY} AND window_ends_at > statement_timestamp()""")
FORGET = sa.text(f"DELETE FROM attempts WHERE key = {KEY}")
FORGET_ENDED = sa.text("DELETE FROM attempts WHERE window_ends_at <= statement_timestamp()")


def require_left(connection: sa.Connection, tries: Sequence[Tries]) -> None:
    """Raise Refusal too_many_tries where one of the limits is used up."""
    for counted in tries:
        row = connection.execute(LOOK, {"name": counted.limit.name, "who": counted.who}).one_or_none()
        if row is not None and row.tried >= counted.limit.tries_max:
            raise too_many_tries(row.seconds_left)


def count(connection: sa.Connection, tries: Sequence[Tries]) -> None:
    """Count a try against every limit; the connection commits each statement, for the try was made whatever follows.

    Raises Refusal too_many_tries where the try was beyond a limit: among many at the same instant that is decided
    by their order here, so that no crowd gets more out of a window than its limit.
    """
    waits = [count_one(connection, counted) for counted in tries]
    if wait := max(waits, default=0):
        raise too_many_tries(wait)


def count_one(connection: sa.Connection, counted: Tries) -> int:
    """Count a try. Returns 0 within the limit, else the seconds until the window ends."""
    limit = counted.limit
    parameters = {"name": limit.name, "who": counted.who, "seconds": limit.window_seconds}
    row = connection.execute(COUNT, parameters).one()
    return 0 if row.tried <= limit.tries_max else max(1, int(row.seconds_left))


def too_many_tries(seconds_left: int | Decimal) -> Refusal:
    """The refusal until the window ends."""
    seconds = max(1, int(seconds_left))
    return Refusal("too_many_tries", f"Too many tries: try again in {seconds} seconds.", retry_after_seconds=seconds)


def forget(connection: sa.Connection, counted: Tries) -> None:
    """Begin anew: whoever was right at last has all tries again."""
    connection.execute(FORGET, {"name": counted.limit.name, "who": counted.who})


def forget_ended(connection: sa.Connection) -> int:
    """Delete the windows that have ended. Returns how many."""
    return connection.execute(FORGET_ENDED).rowcount


def network_of(address: str) -> str:
    """The part of a client's IP address that is counted; what is no address stands for itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX_BITS), strict=False))
