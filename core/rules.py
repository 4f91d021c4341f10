"""The business, whole: which accounts an operation touches, and what becomes of it. Pure: no clock, session or log."""

from collections.abc import Callable, Mapping

from core.ids import own_account_id
from core.money import BALANCE_MAX, WORLD_BALANCE_MIN, decimal_string
from core.operations import Account, Applied, Canceled, Operation, Outcome, Posting, Rejected, Shelf

Accounts = Mapping[str, Account]
EMPTY_SHELF = Shelf()


def decide(operation: Operation, accounts: Accounts, shelf: Shelf = EMPTY_SHELF) -> Outcome:
    """Decide an operation on the accounts, and the shelf, as its predecessors left them.

    Reasons to say no, in order of precedence: canceled, account_closed, service_unavailable, already_purchased,
    currency_mismatch, insufficient_funds, balance_limit. A KeyError means that an account of `accounts_touched` is
    missing.
    """
    if operation.cancel_requested:
        return Canceled()
    postings = POSTINGS[operation.type](operation)
    return (
        refuse_closed(postings, accounts)
        or refuse_off_the_shelf(operation, shelf)
        or refuse_other_currency(operation, postings, accounts)
        or refuse_overdraft(postings, accounts)
        or refuse_beyond_limits(postings, accounts)
        or Applied(postings)
    )


def accounts_touched(operation: Operation) -> tuple[str, ...]:
    """The ids of all accounts that the operation may read or change."""
    return tuple(posting.account_id for posting in POSTINGS[operation.type](operation))


def deposit(operation: Operation) -> tuple[Posting, ...]:
    """Money comes in from the world."""
    return Posting(world(operation), -operation.amount), Posting(operation.account_id, operation.amount)


def withdrawal(operation: Operation) -> tuple[Posting, ...]:
    """Money goes out to the world."""
    return Posting(operation.account_id, -operation.amount), Posting(world(operation), operation.amount)


def transfer(operation: Operation) -> tuple[Posting, ...]:
    """Money goes from one user's account to another account; its owner need not agree."""
    assert operation.counterparty_id is not None
    return (
        Posting(operation.account_id, -operation.amount),
        Posting(operation.counterparty_id, operation.amount),
    )


def purchase(operation: Operation) -> tuple[Posting, ...]:
    """Money goes from a user's account to what Kassa has earned on this lane."""
    revenue = own_account_id("revenue", operation.lane, operation.currency)
    return Posting(operation.account_id, -operation.amount), Posting(revenue, operation.amount)


POSTINGS: Mapping[str, Callable[[Operation], tuple[Posting, ...]]] = {
    "deposit": deposit,
    "withdrawal": withdrawal,
    "transfer": transfer,
    "purchase": purchase,
}


def world(operation: Operation) -> str:
    """The account of the money outside, one for each lane and currency."""
    return own_account_id("world", operation.lane, operation.currency)


def refuse_closed(postings: tuple[Posting, ...], accounts: Accounts) -> Rejected | None:
    """A closed account neither pays nor is paid."""
    for posting in postings:
        if accounts[posting.account_id].closed:
            return Rejected(
                "account_closed", "The account is closed", "One of the accounts of this operation is closed."
            )
    return None


def refuse_off_the_shelf(operation: Operation, shelf: Shelf) -> Rejected | None:
    """A service is bought while it is on sale, and once."""
    if operation.service_id in shelf.inactive:
        return Rejected("service_unavailable", "The service is not on sale", "The service was taken off sale.")
    if operation.service_id and (operation.user_id, operation.service_id) in shelf.bought:
        return Rejected("already_purchased", "Bought before", "The user has this service already.")
    return None


def refuse_other_currency(operation: Operation, postings: tuple[Posting, ...], accounts: Accounts) -> Rejected | None:
    """Money moves within one currency only."""
    for posting in postings:
        currency = accounts[posting.account_id].currency
        if currency != operation.currency:
            return Rejected(
                "currency_mismatch",
                "The accounts have different currencies",
                f"The operation is in {operation.currency}, the other account holds {currency}.",
                {"currency": operation.currency, "account_currency": currency},
            )
    return None


def refuse_overdraft(postings: tuple[Posting, ...], accounts: Accounts) -> Rejected | None:
    """Nobody spends more than there is; the world alone may owe, down to what a bigint can hold."""
    for posting in postings:
        account = accounts[posting.account_id]
        if posting.amount < 0 and not account.is_world and account.balance + posting.amount < 0:
            needed, available = -posting.amount, account.balance
            return Rejected(
                "insufficient_funds",
                "Not enough money",
                f"{decimal_string(needed, account.currency)} {account.currency} is needed, "
                f"{decimal_string(available, account.currency)} {account.currency} is available.",
                {"available": available, "shortfall": needed - available, "currency": account.currency},
            )
    return None


def refuse_beyond_limits(postings: tuple[Posting, ...], accounts: Accounts) -> Rejected | None:
    """No balance leaves the range in which every sum is exact."""
    for posting in postings:
        account = accounts[posting.account_id]
        after = account.balance + posting.amount
        if after > BALANCE_MAX or after < WORLD_BALANCE_MIN:
            return Rejected(
                "balance_limit",
                "The balance would be too large",
                "No account can hold more than "
                f"{decimal_string(BALANCE_MAX, account.currency)} {account.currency}, nor the world owe more than "
                f"{decimal_string(-WORLD_BALANCE_MIN, account.currency)}.",
                {"limit": BALANCE_MAX},
            )
    return None
