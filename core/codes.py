"""E-mail codes: eight digits by which somebody shows that mail to an address arrives, and so logs in.

Asking stores a row and announces its id. The worker makes the code and mails it; only a hash is stored, made with
SECRET_KEY and the row's id, so that whoever reads the database or the broker cannot try a hundred million codes.

A code works once, for CODE_SECONDS, and WRONG_TRIES_MAX wrong tries spend it; only the newest of an address counts.
Whoever confirms an address is logged in as the user who has confirmed it before. An address that was given at
registration or in a profile is only a claim, and may be mistyped: it opens nobody's account. A right code confirms it
for the user who claims it only if that user asks, with an access token. From anybody else it drops the claim: the
address goes to a user of its own, and all else of the one who claimed it stays, who keeps the account and its money.
"""

import hashlib
import hmac
import re
import secrets
from typing import Any

import sqlalchemy as sa

from core import attempts, sessions
from core.attempts import CODES_FROM_ADDRESS, CODES_OF_EMAIL, MAILS_FOR_ADDRESS, MAILS_TO_EMAIL, Tries, network_of
from core.db import autocommit
from core.errors import Refusal
from core.identity import NEW_USERNAME, USERNAME_CHARACTERS_MAX, insert_user
from core.ids import new_id
from core.settings import Settings

CODE_DIGITS = 8
CODE_SECONDS = 10 * 60
WRONG_TRIES_MAX = 5
FORGOTTEN_AFTER_SECONDS = 5  # a worker that lives has made the code by then
USERNAMES_TRIED_MAX = 5


def ask(connection: sa.Connection, email: str, address: str) -> str | None:
    """Store a wish for a code, on a connection in autocommit. Returns its id, to be announced.

    address: the client's. Returns None, and the answer must not tell, where the mailbox has had enough mail.
    Raises Refusal too_many_tries where the client has asked for too many.
    """
    attempts.count(connection, [Tries(MAILS_FOR_ADDRESS, network_of(address))])
    try:
        attempts.count(connection, [Tries(MAILS_TO_EMAIL, email)])
    except Refusal:
        return None
    code_id = new_id()
    query = """
INSERT INTO email_codes (id, email, expires_at)
VALUES (:id, :email, clock_timestamp() + make_interval(secs => :seconds))"""
    connection.execute(sa.text(query), {"id": code_id, "email": email, "seconds": CODE_SECONDS})
    return code_id


def make(connection: sa.Connection, settings: Settings, code_id: str) -> tuple[str, str] | None:
    """Make the code that was asked for. Returns the address and the code; None where it is made, or too late."""
    code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
    query = """
UPDATE email_codes SET code_hash = :hash
 WHERE id = :id AND code_hash IS NULL AND spent_at IS NULL AND expires_at > clock_timestamp() RETURNING email"""
    email = connection.execute(sa.text(query), {"id": code_id, "hash": code_hash(settings, code_id, code)}).scalar()
    return (email, code) if email is not None else None


def unmake(connection: sa.Connection, code_id: str) -> None:
    """The mail could not be sent: let another code be made."""
    connection.execute(sa.text("UPDATE email_codes SET code_hash = NULL WHERE id = :id"), {"id": code_id})


def code_hash(settings: Settings, code_id: str, code: str) -> bytes:
    """What is stored of a code."""
    return hmac.digest(settings.secret_key.encode(), f"email-code/{code_id}/{code}".encode(), hashlib.sha256)


def forgotten(connection: sa.Connection) -> list[str]:
    """The codes that should have been made by now, and are still worth it."""
    query = """
SELECT id FROM email_codes
 WHERE code_hash IS NULL AND spent_at IS NULL AND expires_at > clock_timestamp()
   AND created_at < clock_timestamp() - make_interval(secs => :seconds) ORDER BY created_at"""
    return list(connection.execute(sa.text(query), {"seconds": FORGOTTEN_AFTER_SECONDS}).scalars())


def confirm(
    engine: sa.Engine, settings: Settings, email: str, code: str, address: str, caller_id: str | None = None
) -> dict[str, Any]:
    """Open a session for whoever has confirmed the address, made now if there is none. Returns its tokens.

    address: the client's. caller_id: the user whose access token came along, who may confirm an own claim.
    Raises Refusal: too_many_tries; invalid_code, whatever is wrong with the code.
    """
    tries = [Tries(CODES_OF_EMAIL, email), Tries(CODES_FROM_ADDRESS, network_of(address))]
    with autocommit(engine).connect() as connection:
        attempts.require_left(connection, tries)
    with engine.begin() as connection:
        right = spend(connection, settings, email, code)
        user_id = find_or_make_user(connection, settings, email, caller_id) if right else None
        if user_id is not None:
            attempts.forget(connection, tries[0])
            return sessions.open_session(connection, settings, user_id)
    with autocommit(engine).connect() as connection:
        attempts.count(connection, tries)
    raise Refusal("invalid_code", "The code is wrong, used or expired: ask for another.")


def spend(connection: sa.Connection, settings: Settings, email: str, code: str) -> bool:
    """Whether the code is the right one. Its row is locked: of two right tries the second finds it spent. Commit!"""
    query = """
SELECT id, code_hash, spent_at IS NULL AND expires_at > clock_timestamp() AND code_hash IS NOT NULL AS live
  FROM email_codes WHERE lower(email) = lower(:email) ORDER BY created_at DESC, id DESC LIMIT 1 FOR UPDATE"""
    row = connection.execute(sa.text(query), {"email": email}).one_or_none()
    if row is None or not row.live:
        return False
    right = hmac.compare_digest(bytes(row.code_hash), code_hash(settings, row.id, code))
    update = """
UPDATE email_codes SET wrong_tries = wrong_tries + :wrong,
       spent_at = CASE WHEN :wrong = 0 OR wrong_tries + :wrong >= :most THEN clock_timestamp() END WHERE id = :id"""
    connection.execute(sa.text(update), {"id": row.id, "wrong": 0 if right else 1, "most": WRONG_TRIES_MAX})
    return right


def find_or_make_user(connection: sa.Connection, settings: Settings, email: str, caller_id: str | None) -> str | None:
    """The id of the user whose address it is from now on; None where that user is disabled.

    That is the one who has confirmed it, or else the caller whose claim it is, or else a new user.
    """
    for username in usernames_for(email):
        query = "SELECT * FROM users WHERE lower(email) = lower(:email) FOR NO KEY UPDATE"
        row = connection.execute(sa.text(query), {"email": email}).one_or_none()
        if row is not None and row.email_confirmed_at is not None:
            return row.id if row.disabled_at is None else None
        if row is not None and row.id == caller_id and row.disabled_at is None:
            confirm_address(connection, row.id)
            return row.id
        try:
            with connection.begin_nested():
                if row is not None:
                    connection.execute(sa.text("UPDATE users SET email = NULL WHERE id = :id"), {"id": row.id})
                user_id = insert_user(connection, settings, username, email, None)
                confirm_address(connection, user_id)
                return user_id
        except Refusal:  # the name is taken, or the address was, just now: look again
            continue
    raise RuntimeError("no username is free")


def confirm_address(connection: sa.Connection, user_id: str) -> None:
    """Note that mail to the user's address arrives at the user."""
    connection.execute(
        sa.text("UPDATE users SET email_confirmed_at = clock_timestamp() WHERE id = :id"), {"id": user_id}
    )


def usernames_for(email: str) -> list[str]:
    """Names to try for a new user: the address, the address with something random, and something random."""
    names = [email, *(f"{email}-{secrets.token_hex(3)}" for _ in range(USERNAMES_TRIED_MAX))]
    fitting = [name for name in names if len(name) <= USERNAME_CHARACTERS_MAX and re.search(NEW_USERNAME, name)]
    return [*fitting, *(f"user-{secrets.token_hex(8)}" for _ in range(USERNAMES_TRIED_MAX))]


def forget_old(connection: sa.Connection) -> int:
    """Delete the codes that expired a day ago or more. Returns how many."""
    query = "DELETE FROM email_codes WHERE expires_at < clock_timestamp() - interval '1 day'"
    return connection.execute(sa.text(query)).rowcount
