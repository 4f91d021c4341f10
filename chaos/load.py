"""The clients: threads that hand in operations of every type, read, retry and take back, and note all of it."""

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import sqlalchemy as sa

from chaos.cluster import Cluster, configuration
from chaos.history import Event, Item, ToldBalance, ToldOperation
from chaos.poison import POISONS
from cli.servers import LOOPBACK
from core import accounts, identity, sessions
from core.ids import new_id

TIMEOUT_SECONDS = 6.0
RETRIES_MAX = 3
BACK_OFF_SECONDS = 0.1  # where nobody answers
BATCH_MAX = 60
AMOUNT_MAX = 500
SERVICES, PRICE = 5, 40
HOT_SHARE = 0.4  # of transfers go to the one hot account
GIVE_UP = {"unknown": 0.1, "refused": 0.5, "unlawful": 1.0}  # the share of clients that do not ask again
REFUSALS = {  # of lawful requests: what may stand in their way
    "submit": {"too_many_pending", "overloaded"},
    "batch": {"too_many_pending", "overloaded"},
    "cancel": {"already_finished"},
    "read": set(),
}


@dataclass(frozen=True)
class User:
    """A user of the load."""

    id: str
    account: str
    token: str


@dataclass
class World:
    """Who there is: users, the first of them hot; a service that acts for them; services on sale."""

    users: list[User]
    service: User
    services: list[str]
    port: int
    tags: Any = field(default_factory=count)
    epoch: str = ""


def populate(cluster: Cluster, users: int) -> World:
    """Make the users, with sessions, and what they can buy."""
    known = configuration(cluster)
    with cluster.engine.begin() as connection:

        def made(name: str) -> User:
            user_id = identity.insert_user(connection, known, name, None, None)
            account = accounts.open_account(connection, user_id).account_id
            token = str(sessions.open_session(connection, known, user_id)["access_token"])
            return User(user_id, account, token)

        everybody = [made(f"chaos-{number}") for number in range(users)]
        service = made("chaos-service")
        connection.execute(sa.text("UPDATE users SET role = 'service' WHERE id = :id"), {"id": service.id})
        on_sale = [new_id() for _ in range(SERVICES)]
        query = "INSERT INTO services (id, name, description, price, currency) VALUES (:id, :id, '', :price, 'RUB')"
        connection.execute(sa.text(query), [{"id": each, "price": PRICE} for each in on_sale])
    return World(everybody, service, on_sale, cluster.links["client>api"].port)


class Client:
    """One client: a connection, and what it noted."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.events: list[Event] = []
        self.known: list[tuple[User, str, dict[str, Any]]] = []  # operations handed in: who, id, headers and body
        self.connection: http.client.HTTPConnection | None = None

    def run(self, until: threading.Event) -> None:
        """Do one thing after another until told to stop."""
        while not until.is_set():
            act = self.random.choices(
                (self.submit, self.batch, self.cancel, self.read_balance, self.read_operation, self.read_history),
                (40, 7, 6, 25, 16, 6),
            )[0]
            act()
            until.wait(self.random.expovariate(1 / 0.01))
        self.hang_up()

    def any_user(self) -> User:
        """The hot one rather often."""
        users = self.world.users
        return users[0] if self.random.random() < 0.15 else self.random.choice(users)

    def item(self, user: User, *, in_batch: bool = False) -> tuple[Item, dict[str, Any]]:
        """Something to ask for, and its JSON."""
        kinds = ("deposit", "withdrawal", "transfer") if in_batch else ("deposit", "withdrawal", "transfer", "purchase")
        kind = self.random.choices(kinds, (35, 20, 38, 7)[: len(kinds)])[0]
        tag = f"{self.world.epoch}{next(self.world.tags)}"
        body: dict[str, Any] = {"type": kind, "comment": tag}
        if kind == "purchase":
            body["service_id"] = self.random.choice(self.world.services)
            return Item(tag, user.id, kind, None, service=body["service_id"]), body
        amount = body["amount"] = self.random.randint(1, AMOUNT_MAX)
        receiver = None
        if kind == "transfer":
            hot, *others = (each for each in self.world.users if each is not user)
            chosen = hot if self.random.random() < HOT_SHARE else self.random.choice(others)
            receiver = body["to_account_id"] = chosen.account
        return Item(tag, user.id, kind, amount, receiver), body

    def submit(self) -> None:
        """One operation; with a key, what is unknown is asked again, and sometimes what is known, too."""
        user = self.any_user()
        item, body = self.item(user)
        headers = {"Prefer": "wait=2"} if self.random.random() < 0.3 else {}
        if self.random.random() < 0.8:
            headers["Idempotency-Key"] = item.tag
        for _ in range(RETRIES_MAX if "Idempotency-Key" in headers else 1):
            event = self.ask("submit", user, "POST", "/v1/operations", body, headers, [item])
            if event.outcome == "ok" and self.random.random() > 0.05:
                break
            if event.outcome != "ok" and self.random.random() < GIVE_UP[event.outcome]:
                break
        for told in event.operations:
            self.known = [*self.known[-50:], (user, told.id, {"headers": headers, "body": body})]

    def poison(self, user: User, amount: int) -> None:
        """One operation that the poisoned rules choke on."""
        assert amount in POISONS
        tag = f"{self.world.epoch}{next(self.world.tags)}"
        body = {"type": "deposit", "amount": amount, "comment": tag}
        self.ask("submit", user, "POST", "/v1/operations", body, {}, [Item(tag, user.id, "deposit", amount)])

    def batch(self) -> None:
        """Many at once, by the service for many, or by a user."""
        size = self.random.randint(2, BATCH_MAX)
        if self.random.random() < 0.6:
            asking, theirs = self.world.service, [self.any_user() for _ in range(size)]
        else:
            asking = self.any_user()
            theirs = [asking] * size
        pairs = [self.item(user, in_batch=True) for user in theirs]
        named = [body | {"user_id": user.id} for user, (_, body) in zip(theirs, pairs, strict=True)]
        headers = {"Idempotency-Key": pairs[0][0].tag}
        for _ in range(RETRIES_MAX):
            items = [item for item, _ in pairs]
            event = self.ask("batch", asking, "POST", "/v1/operations/batch", {"operations": named}, headers, items)
            if event.outcome != "unknown":
                break

    def cancel(self) -> None:
        """Take something back, perhaps in time."""
        user = self.any_user()
        item, body = self.item(user)
        event = self.ask("submit", user, "POST", "/v1/operations", body, {}, [item])
        for told in event.operations:
            self.ask("cancel", user, "DELETE", f"/v1/operations/{told.id}", canceled=told.id)

    def read_balance(self) -> None:
        """A balance, as its owner."""
        user = self.any_user()
        self.ask("read", user, "GET", "/v1/balance" if self.random.random() < 0.5 else f"/v1/accounts/{user.account}")

    def read_operation(self) -> None:
        """What became of an operation; sometimes by waiting."""
        if self.known:
            user, operation_id, _ = self.random.choice(self.known)
            wait = "?wait=2" if self.random.random() < 0.3 else ""
            self.ask("read", user, "GET", f"/v1/operations/{operation_id}{wait}")

    def read_history(self) -> None:
        """A page of what a user has done and received."""
        self.ask("read", self.any_user(), "GET", "/v1/operations?limit=20")

    def ask(
        self,
        kind: Any,
        user: User,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        items: list[Item] | None = None,
        canceled: str | None = None,
    ) -> Event:
        """One request, noted with its answer."""
        event = Event(kind, time.monotonic(), items=items or [], canceled=canceled)
        self.events.append(event)
        try:
            status, document = self.exchange(user, method, path, body, headers or {})
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.hang_up()
            event.detail = repr(error)
            time.sleep(BACK_OFF_SECONDS)
        else:
            judge(event, status, document)
        event.completed = time.monotonic()
        return event

    def exchange(self, user: User, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        """Status and document. A connection error is raised, whenever it happens."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(LOOPBACK, self.world.port, timeout=TIMEOUT_SECONDS)
        sent = {"Authorization": f"Bearer {user.token}", **headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
        self.connection.request(method, path, json.dumps(body) if body is not None else None, sent)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.will_close:
            self.hang_up()
        return answer.status, json.loads(text)

    def hang_up(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def judge(event: Event, status: int, document: Any) -> None:
    """Tell what an answer means, and note what it says."""
    event.detail = str(status)
    if status in (200, 202):
        event.outcome = "ok"
        note(event, document)
        return
    code, accepted = document.get("code"), document.get("accepted")
    event.detail = f"{status} {code}"
    if status == 503 and code in ("database_unavailable", "busy", "overloaded", "not_ready") and accepted is False:
        event.outcome = "refused"
    elif status == 503 and code == "outcome_unknown" and accepted is None:
        event.outcome = "unknown"
    elif accepted is False and code in REFUSALS[event.kind]:
        event.outcome = "refused"
        if operation := document.get("operation"):
            event.operations.append(told_operation(operation))
    else:
        event.outcome = "unlawful"
        event.detail += f" {document}"


def note(event: Event, document: Any) -> None:
    """What the answer tells: an account, an operation, a page of them, or a batch."""
    if "batch_id" in document:
        for result in document["items"]:
            if "id" in result:
                tag = event.items[result["index"]].tag
                event.operations.append(ToldOperation(result["id"], result["status"], tag))
            else:
                event.outcome = "unlawful"
                event.detail = f"an item was refused: {result}"
    elif "items" in document:
        event.operations += [told_operation(each) for each in document["items"]]
    elif "balance" in document:
        event.balances.append(ToldBalance(document["id"], document["version"], document["balance"]))
    else:
        event.operations.append(told_operation(document))


def told_operation(document: Any) -> ToldOperation:
    """An operation as a client sees it."""
    return ToldOperation(
        document["id"],
        document["status"],
        document["comment"],
        document["seq"],
        document["account_id"],
        document["account_version"],
        document["balance_after"],
    )
