"""Fill a demo through the public API: users, services on sale, and some history. Run it as often as you like.

Users are named demo-alice, demo-bob ... and share one password, which is printed; never run it on a system that is
reachable by others. Services need an administrator: name one with --admin, whose password is asked for (or read from
standard input with --password-stdin); without one no services are put on sale.
"""

import argparse
import getpass
import itertools
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import httpx

from cli.servers import CannotStart

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")
SERVICES = (
    {"name": "Massage, one hour", "price": 250000},
    {"name": "Yoga, a month", "price": 480000, "description": "Mondays and Thursdays"},
    {"name": "Language course", "price": 9900, "currency": "USD"},
)
TIMEOUT_SECONDS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, and as whom."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT') or '8000'}", help="of the API")
    parser.add_argument("--admin", metavar="USERNAME", help="an administrator: see ./kassa create-admin")
    parser.add_argument("--password-stdin", action="store_true", help="read the administrator's password from there")


def main(arguments: argparse.Namespace) -> int:
    """Seed, saying what is done."""
    password = demo_password()
    with httpx.Client(base_url=arguments.url, timeout=TIMEOUT_SECONDS) as client:
        try:
            services = offer(client, arguments) if arguments.admin else call(client, "GET", "/v1/services")["items"]
            users = {name: enter(client, f"demo-{name}", password) for name in NAMES}
            for number, (name, headers) in enumerate(users.items(), 1):
                history(client, headers, name, number, services)
            for name, headers in users.items():
                print(f"demo-{name}: {call(client, 'GET', '/v1/balance', headers=headers)['balance_decimal']} RUB")
        except httpx.TransportError as error:
            raise CannotStart(f"{arguments.url} does not answer: {error!r}. Start Kassa with: make run") from None
    print(f"{len(users)} users with the password {password!r}, {len(services)} services on sale.")
    return 0


def demo_password() -> str:
    """The demo's password, made once and kept, so that seeding again finds the same users."""
    path = Path(os.environ.get("DATA_DIR") or ".data") / "seed.password"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(9))
    return path.read_text()


def call(client: httpx.Client, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
    """One request. Raises CannotStart where it is refused."""
    response = client.request(method, path, json=body, headers=headers)
    if not response.is_success:
        raise CannotStart(f"{method} {path}: {response.status_code} {response.json().get('detail', response.text)}")
    return response.json()


def enter(client: httpx.Client, username: str, password: str) -> dict[str, str]:
    """Register the user, unless that was done before, and log in. Returns the headers that name the user."""
    client.post("/v1/auth/register", json={"username": username, "password": password})
    token = call(client, "POST", "/v1/auth/login", {"username": username, "password": password})["access_token"]
    return {"Authorization": f"Bearer {token}"}


def offer(client: httpx.Client, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Put the services on sale that are not there yet. Returns all that are."""
    password = sys.stdin.readline().rstrip("\n") if arguments.password_stdin else getpass.getpass("Password: ")
    login = {"username": arguments.admin, "password": password}
    headers = {"Authorization": f"Bearer {call(client, 'POST', '/v1/auth/login', login)['access_token']}"}
    there = {service["name"] for service in call(client, "GET", "/v1/services?limit=100")["items"]}
    for service in SERVICES:
        if service["name"] not in there:
            call(client, "POST", "/v1/services", service, headers)
    found: list[dict[str, Any]] = call(client, "GET", "/v1/services?limit=100")["items"]
    return found


def history(
    client: httpx.Client, headers: dict[str, str], name: str, number: int, services: list[dict[str, Any]]
) -> None:
    """A salary, some spending, a transfer to the next one, a purchase: the same at every run, and stored once."""
    following = NAMES[number % len(NAMES)]
    operations: list[dict[str, Any]] = [
        {"type": "deposit", "amount": 1_000_000 * number, "comment": "salary"},
        {"type": "withdrawal", "amount": 150_000, "comment": "cash"},
        {"type": "transfer", "amount": 70_000 + number, "to_username": f"demo-{following}", "comment": "thank you"},
        {"type": "withdrawal", "amount": 10**9, "comment": "more than there is"},
    ]
    operations += [
        {"type": "purchase", "service_id": service["id"]} for service in itertools.islice(services, number % 3)
    ]
    for operation in operations:
        key = f"seed-{operation['type']}-{operation.get('service_id', operation.get('amount'))}"
        extra = headers | {"Prefer": "wait=10", "Idempotency-Key": key}
        call(client, "POST", "/v1/operations", operation, extra)
