"""Play bank statements through the public API, and compare every balance on the way and at the end.

The file is CSV with the columns account, line, date, type (deposit or withdrawal), amount and balance_after (minor
units) and memo. Each account gets a user of its own; its lines go in one after another, many accounts at once. Each
line has an Idempotency-Key of its own, so the replay may be killed and started again without doubling a line: users
and password of a run are kept in a state file, and the same command goes on where it stopped. Exits 1 on any mismatch.
"""

import argparse
import csv
import json
import os
import secrets
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx

from cli.servers import CannotStart

PATIENCE_SECONDS = 90  # how long an API that does not answer is asked again
PAUSE_SECONDS_MAX = 1.0
WAIT_SECONDS = 10
SHOW_SECONDS = 1.0
COLUMNS = {"account", "line", "type", "amount", "balance_after", "memo"}


@dataclass(frozen=True)
class Line:
    """One line of a statement; amounts are minor units."""

    account: str
    number: int
    type: str
    amount: int
    balance_after: int
    memo: str


@dataclass
class Progress:
    """What has been done so far, by all threads together."""

    lines: int
    trouble: str = ""  # what the last unanswered request met with
    counts: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more."""
        with self.lock:
            self.counts[what] += 1

    def compare(self, what: str, expected: object, found: object) -> None:
        """Note a mismatch, if it is one."""
        if expected != found:
            with self.lock:
                self.mismatches.append(f"{what}: expected {expected}, found {found}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and where to play it."""
    parser.add_argument("file", type=Path, metavar="FILE.csv")
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}", help="of the API")
    parser.add_argument("--currency", default="CZK", help="of the accounts (default: %(default)s)")
    parser.add_argument("--accounts-at-once", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--state", type=Path, help="state file (default: DATA_DIR/replay/<hash of file and url>.json)")
    parser.add_argument("--fresh", action="store_true", help="forget the last run of this file: new users, from zero")


def main(arguments: argparse.Namespace) -> int:
    """Replay and compare."""
    statements = read(arguments.file)
    run = load_state(arguments)
    progress = Progress(sum(map(len, statements.values())))
    started = time.monotonic()
    limits = httpx.Limits(max_connections=arguments.accounts_at_once)
    with (
        httpx.Client(base_url=arguments.url, limits=limits, timeout=WAIT_SECONDS + 5) as client,
        ThreadPoolExecutor(arguments.accounts_at_once) as pool,
    ):
        futures = [
            pool.submit(play, Customer(client, run, account, arguments.currency, progress), lines, progress)
            for account, lines in statements.items()
        ]
        show_until_done(progress, futures, started)
    return conclude(progress, len(statements), time.monotonic() - started)


def read(path: Path) -> dict[str, list[Line]]:
    """The lines of each account, in order. Raises CannotStart where the file is not such a file."""
    statements: dict[str, list[Line]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := COLUMNS - set(rows.fieldnames or ()):
                raise CannotStart(f"{path} lacks the columns {', '.join(sorted(missing))}.")
            for row in rows:
                numbers = (int(row["line"]), row["type"], int(row["amount"]), int(row["balance_after"]))
                statements[row["account"]].append(Line(row["account"], *numbers, row["memo"]))
    except (OSError, ValueError) as error:
        raise CannotStart(f"{path} cannot be read: {error}") from None
    for lines in statements.values():
        lines.sort(key=lambda line: line.number)
    return statements


def load_state(arguments: argparse.Namespace) -> dict[str, str]:
    """The names and password of this run, the same ones when it is started again."""
    identity = sha256(arguments.file.read_bytes() + arguments.url.encode() + arguments.currency.encode()).hexdigest()
    default = Path(os.environ.get("DATA_DIR") or ".data") / "replay" / f"{identity[:16]}.json"
    path: Path = arguments.state or default
    if arguments.fresh or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        names = {"prefix": f"replay-{secrets.token_hex(4)}", "password": secrets.token_urlsafe(24)}
        fresh.write_text(json.dumps(names))
        fresh.rename(path)
    state: dict[str, str] = json.loads(path.read_text())
    return state


class Customer:
    """One account's user, talking to the API until it answers."""

    def __init__(
        self, client: httpx.Client, run: dict[str, str], account: str, currency: str, progress: Progress
    ) -> None:
        self.client = client
        self.credentials = {"username": f"{run['prefix']}-{account}", "password": run["password"]}
        self.currency = currency
        self.progress = progress
        self.headers: dict[str, str] = {}
        self.account_id = ""

    def begin(self) -> None:
        """Register (or find that this was done), log in, open the account (or find it)."""
        self.call("POST", "/v1/auth/register", self.credentials, lawful=(201, 409))  # 409: registered before
        self.log_in()
        self.account_id = self.call("POST", "/v1/accounts", {"currency": self.currency}).json()["id"]

    def log_in(self) -> None:
        """Get a token."""
        token = self.call("POST", "/v1/auth/login", self.credentials).json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def call(
        self, method: str, path: str, body: Any = None, key: str = "", lawful: tuple[int, ...] = ()
    ) -> httpx.Response:
        """One request, repeated for as long as the outcome is unknown. Raises CannotStart when patience ends."""
        deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.05
        while True:
            headers = self.headers | ({"Idempotency-Key": key} if key else {})
            try:
                response = self.client.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                trouble = repr(error)
            else:
                self.progress.trouble = ""
                if response.is_success or response.status_code in lawful:
                    return response
                trouble = f"{response.status_code} {response.text}"
                if response.status_code == 401 and self.headers:
                    self.log_in()
                elif response.status_code < 500 and response.status_code != 429:
                    raise CannotStart(f"{method} {path} was refused: {trouble}")
            self.progress.trouble = trouble
            if time.monotonic() > deadline:
                raise CannotStart(f"{method} {path} failed for {PATIENCE_SECONDS} s: {trouble}")
            time.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)


def play(customer: Customer, lines: list[Line], progress: Progress) -> None:
    """Hand in all lines of an account in order, then compare each outcome and the final balance."""
    customer.begin()
    operation_ids = []
    for line in lines:
        operation_ids.append(hand_in(customer, line))
        progress.count("accepted")
    for line, operation_id in zip(lines, operation_ids, strict=True):
        operation = outcome(customer, operation_id)
        what = f"account {line.account} line {line.number}"
        progress.compare(what, ("applied", line.balance_after), (operation["status"], operation["balance_after"]))
        progress.count("compared")
    account = customer.call("GET", f"/v1/accounts/{customer.account_id}").json()
    final = (lines[-1].balance_after, len(lines))
    progress.compare(f"account {lines[-1].account} at the end", final, (account["balance"], account["version"]))


def show_until_done(progress: Progress, futures: list[Future[None]], started: float) -> None:
    """Show progress until all accounts are played; the first error ends the replay."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=SHOW_SECONDS, return_when=FIRST_EXCEPTION)
        print(
            f"{time.monotonic() - started:6.1f} s  {progress.counts['accepted']:,} accepted, "
            f"{progress.counts['compared']:,} compared of {progress.lines:,}"
            + (f"; asking again after {progress.trouble}" if progress.trouble else ""),
            file=sys.stderr,
            flush=True,
        )
        for future in done:
            if error := future.exception():
                for other in pending:
                    other.cancel()
                raise error


def hand_in(customer: Customer, line: Line) -> str:
    """Have one line accepted. Returns the operation's id."""
    body = {"type": line.type, "amount": line.amount, "account_id": customer.account_id, "comment": line.memo or None}
    key = f"statement-{line.account}-{line.number}"
    operation_id: str = customer.call("POST", "/v1/operations", body, key).json()["id"]
    return operation_id


def outcome(customer: Customer, operation_id: str) -> dict[str, Any]:
    """The finished operation."""
    while True:
        operation: dict[str, Any] = customer.call("GET", f"/v1/operations/{operation_id}?wait={WAIT_SECONDS}").json()
        if operation["status"] != "pending":
            return operation


def conclude(progress: Progress, accounts: int, seconds: float) -> int:
    """Say how it went. Returns the exit code."""
    for mismatch in progress.mismatches[:20]:
        print(f"MISMATCH {mismatch}")
    print(
        f"{progress.counts['compared']:,} operations, {accounts:,} accounts, {seconds:.1f} s, "
        f"{progress.counts['compared'] / seconds:,.0f} operations/s, {len(progress.mismatches)} mismatches"
    )
    return 1 if progress.mismatches or progress.counts["compared"] != progress.lines else 0
