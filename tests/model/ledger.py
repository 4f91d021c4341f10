"""The whole of Kassa in dicts, as slow and as plain as can be: what the real one is compared with after every step."""

from dataclasses import dataclass, field
from typing import Any

from core.ids import own_account_id
from core.operations import Command


@dataclass
class Ledger:
    """users, accounts, services and operations by id; keys: (user, idempotency key) to (command, operation id)."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)  # the turn of the last operation applied there
    keys: dict[tuple[str, str], tuple[Command, str]] = field(default_factory=dict)
    bought: set[tuple[str, str]] = field(default_factory=set)
    applied: list[str] = field(default_factory=list)  # finished operations in order

    def open(self, user: str, currency: str, account: str) -> None:
        """An account, and Kassa's own two of its lane and currency."""
        first = not any(one["user"] == user for one in self.accounts.values())
        self.accounts[account] = new_account("main", user, currency, first)
        for kind in ("world", "revenue"):
            own = own_account_id(kind, self.users[user]["lane"], currency)
            self.accounts.setdefault(own, new_account(kind, None, currency, False))

    def source(self, command: Command) -> str | None:
        """The account that a command is about, or None."""
        for account, facts in self.accounts.items():
            wanted = account == command.account_id if command.account_id else facts["default"]
            if wanted and facts["user"] == command.user_id:
                return account
        return None

    def receiver(self, command: Command, source: str) -> str | None:
        """The account that a transfer goes to: the user's in the same currency, else the default one."""
        if command.to_account_id:
            known = self.accounts.get(command.to_account_id)
            return command.to_account_id if known and known["kind"] == "main" else None
        user = self.user_named(command)
        theirs = [account for account, facts in self.accounts.items() if user and facts["user"] == user]
        currency = self.accounts[source]["currency"]
        theirs.sort(key=lambda id: (self.accounts[id]["currency"] != currency, not self.accounts[id]["default"], id))
        return theirs[0] if theirs else None

    def user_named(self, command: Command) -> str | None:
        """The user that a transfer names, or None."""
        by_name = {facts["name"].lower(): user for user, facts in self.users.items()}
        named = command.to_user_id or by_name.get((command.to_username or "").lower())
        return named if named in self.users else None

    def refusal(self, command: Command) -> str | None:
        """The code with which a command is refused, or None; a used key is not looked at."""
        source = self.source(command)
        if self.users[command.user_id]["disabled"]:
            return "user_disabled"
        if source is None:
            return "account_not_found"
        if command.type == "purchase":
            return self.price(command.service_id, source)[0]
        if command.type == "transfer":
            to_self = command.to_account_id == source or self.user_named(command) == command.user_id
            return "self_transfer" if to_self else None if self.receiver(command, source) else "receiver_not_found"
        return None

    def price(self, service: str | None, account: str) -> tuple[str | None, int]:
        """Why a service has no price for an account, or None; and the price. The only rate is 1 USD = 100 RUB."""
        if service not in self.services:
            return "service_not_found", 0
        price = self.services[service]["price"]
        pair = (self.services[service]["currency"], self.accounts[account]["currency"])
        amounts = {("RUB", "USD"): round(price / 100), ("USD", "RUB"): price * 100}  # halves to even, like `round`
        if pair[0] != pair[1] and pair not in amounts:
            return "rates_unavailable", 0
        amount = price if pair[0] == pair[1] else amounts[pair]
        return (None, amount) if amount else ("price_out_of_range", 0)

    def accept(self, command: Command, operation: str) -> None:
        """Put an acceptable command at the end of its user's order, and in its lane's fair place."""
        user, source = self.users[command.user_id], self.source(command)
        assert source is not None
        user["next_seq"] += 1
        user["turn"] = max(user["turn"] + 1, self.lanes[user["lane"]])
        amount = self.price(command.service_id, source)[1] if command.service_id else command.amount
        receiver = self.receiver(command, source) if command.type == "transfer" else None
        self.operations[operation] = {
            "user": command.user_id,
            "seq": user["next_seq"],
            "lane": user["lane"],
            "turn": user["turn"],
            "type": command.type,
            "account": source,
            "receiver": receiver,
            "amount": amount,
            "currency": self.accounts[source]["currency"],
            "service": command.service_id,
            "cancel": False,
            "status": "pending",
            "code": None,
            "available": None,
            "version": None,
            "receiver_version": None,
        }

    def pending(self, lane: int) -> list[str]:
        """What a lane has to do, in order."""
        waiting = {id: one for id, one in self.operations.items() if one["lane"] == lane and one["status"] == "pending"}
        return sorted(waiting, key=lambda id: (waiting[id]["turn"], id))

    def finish(self, operation: str) -> None:
        """Decide the next operation of a lane, and move what it moves."""
        one = self.operations[operation]
        world = own_account_id("revenue" if one["service"] else "world", one["lane"], one["currency"])
        pays, gets = one["account"], one["receiver"] or world
        if one["type"] == "deposit":
            pays, gets = gets, pays
        payer, receiver = self.accounts[pays], self.accounts[gets]
        if one["cancel"]:
            one["status"] = "canceled"
        elif payer["closed"] or receiver["closed"]:
            one.update(status="rejected", code="account_closed")
        elif one["service"] and not self.services[one["service"]]["active"]:
            one.update(status="rejected", code="service_unavailable")
        elif (one["user"], one["service"]) in self.bought:
            one.update(status="rejected", code="already_purchased")
        elif payer["currency"] != receiver["currency"]:
            one.update(status="rejected", code="currency_mismatch")
        elif payer["kind"] != "world" and payer["balance"] < one["amount"]:
            one.update(status="rejected", code="insufficient_funds", available=payer["balance"])
        else:
            self.move(one, payer, receiver)
        user = self.users[one["user"]]
        user["done_seq"] += 1
        self.lanes[one["lane"]], one["turn"] = max(self.lanes[one["lane"]], one["turn"]), None
        self.applied.append(operation)

    def move(self, one: dict[str, Any], payer: dict[str, Any], receiver: dict[str, Any]) -> None:
        """Money goes from one account to the other."""
        payer.update(balance=payer["balance"] - one["amount"], version=payer["version"] + 1)
        receiver.update(balance=receiver["balance"] + one["amount"], version=receiver["version"] + 1)
        counterparty = self.accounts[one["receiver"]]["version"] if one["receiver"] else None
        one.update(status="applied", version=self.accounts[one["account"]]["version"], receiver_version=counterparty)
        if one["service"]:
            self.bought.add((one["user"], one["service"]))


def new_account(kind: str, user: str | None, currency: str, default: bool) -> dict[str, Any]:
    """An account with nothing in it."""
    facts = {"kind": kind, "user": user, "currency": currency, "default": default}
    return facts | {"balance": 0, "version": 0, "closed": False}
