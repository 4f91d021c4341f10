"""Make an administrator, or promote a user to one. A user who is there keeps the password unless another is given.

The password is asked for twice on a terminal, or read from standard input with --password-stdin.
"""

import argparse
import getpass
import sys

import msgspec
import sqlalchemy as sa

from api.schemas import NewUsername, Password
from core import db, identity, passwords, settings
from core.errors import NotReady


class Unusable(Exception):
    """What was given does not do; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The username, and where the password comes from."""
    parser.add_argument("username", metavar="USERNAME")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")


def main(arguments: argparse.Namespace) -> int:
    """Make or promote, and say which."""
    configuration = settings.load()
    engine = db.engine(configuration.database_url, "create-admin", 1)
    try:
        db.require_ready(engine, configuration.lanes)
        print(create(engine, configuration, arguments.username, arguments.password_stdin))
    except (NotReady, Unusable) as error:
        print(f"kassa create-admin: {error}", file=sys.stderr)
        return 1
    return 0


def create(engine: sa.Engine, configuration: settings.Settings, username: str, from_stdin: bool) -> str:
    """Make or promote. Returns what was done. Raises Unusable."""
    username = checked(username, NewUsername, "the username")
    query = "SELECT id FROM users WHERE lower(username) = lower(:username)"
    with engine.connect() as connection:
        user_id = connection.execute(sa.text(query), {"username": username}).scalar()
    password = read_password(from_stdin) if from_stdin or user_id is None else None
    password_hash = passwords.hash_password(password) if password is not None else None
    with engine.begin() as connection:
        done = f"{username} is an administrator now" if user_id else f"The administrator {username} was made"
        user_id = user_id or identity.insert_user(connection, configuration, username, None, password_hash)
        promote = "UPDATE users SET role = 'admin', disabled_at = NULL WHERE id = :id"
        connection.execute(sa.text(promote), {"id": user_id})
        if password_hash is not None:
            identity.set_password(connection, user_id, password_hash)
    return f"{done}{', with the new password.' if password_hash else '; the password is unchanged.'}"


def read_password(from_stdin: bool) -> str:
    """The password. Raises Unusable where it does not do, or nobody can be asked."""
    if from_stdin:
        return checked(sys.stdin.readline().rstrip("\r\n"), Password, "the password")
    if not sys.stdin.isatty():
        raise Unusable("this is no terminal to ask for a password on: give it with --password-stdin.")
    password = checked(getpass.getpass("Password: "), Password, "the password")
    if getpass.getpass("The same again: ") != password:
        raise Unusable("the two passwords differ.")
    return password


def checked(value: str, schema: object, what: str) -> str:
    """The value, if clients could register with it. Raises Unusable."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise Unusable(f"{what} does not do: {error}.") from None
