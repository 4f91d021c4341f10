"""Every page: what it shows, what can be searched, and what - little - can be changed."""

from collections.abc import Callable
from typing import Any, ClassVar, get_args

import anyio.to_thread
import sqlalchemy as sa
from sqladmin import ModelView
from sqladmin.filters import BooleanFilter, StaticValuesFilter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from wtforms import Form

from admin import changes, formats, forms, search
from admin.models import Account, Entry, Operation, Rate, Service, User
from core import tables
from core.money import decimal_string
from core.operations import Status, Type

balance = formats.money("balance")

ROWS_COUNTED_MAX = 10_000  # nobody turns more pages, and counting millions would take longer than anyone waits
SHOWN = (tables.users, tables.accounts, tables.operations, tables.entries, tables.services, tables.rates)
Labels = dict[Any, str]
LABELS: Labels = {column.key: column.key.replace("_", " ") for table in SHOWN for column in table.columns}
Formatters = dict[Any, Callable[..., Any]]
ACCOUNT_KINDS = ("main", "hold", "world", "revenue")


def choice(column: str, values: tuple[str, ...]) -> StaticValuesFilter:
    """A filter by one of a few values."""
    return StaticValuesFilter(column, [(value, value) for value in values])


class StatusFilter(StaticValuesFilter):
    """By status. No index of operations knows it, so what is pending is looked for where it stands: in the queue."""

    def __init__(self) -> None:
        super().__init__("status", [(value, value) for value in get_args(Status)])

    async def get_filtered_query(self, query: sa.Select, value: Any, model: Any) -> sa.Select:
        """The query for the operations that are chosen."""
        if value == "pending":
            return query.where(model.id.in_(sa.select(tables.queue.c.operation_id)))
        return await super().get_filtered_query(query, value, model)


class Page(ModelView):
    """Read-only, unless a page says otherwise; newest first."""

    can_create = False
    can_edit = False
    can_delete = False
    can_export = False
    page_size = 25
    column_labels: ClassVar[Labels] = LABELS
    show_compact_lists = False
    search_auto_submit = False  # each search is a query
    column_type_formatters = formats.BY_TYPE
    column_type_formatters_detail = formats.BY_TYPE
    explanation: ClassVar[str]  # on the first page

    @staticmethod
    def find(term: str) -> sa.ColumnElement[bool]:
        """Which rows a term finds."""
        return sa.false()

    def search_query(self, stmt: sa.Select, term: str) -> sa.Select:
        """What admin/search.py finds."""
        return stmt.where(self.find(term))

    async def count(self, request: Request, stmt: sa.Select | None = None) -> int:
        """How many rows are found, or ROWS_COUNTED_MAX if more."""
        found: Any = sa.select(self.model) if stmt is None else stmt.get_final_froms()[0]
        some = getattr(found, "element", found).order_by(None).limit(ROWS_COUNTED_MAX).subquery()
        return await super().count(request, sa.select(sa.func.count()).select_from(some))

    def form_details_query(self, request: Request) -> sa.Select:
        """The row that the address names; an address that names none is not found."""
        try:
            return super().form_details_query(request)
        except ValueError:
            raise HTTPException(404) from None

    async def change(self, request: Request, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have admin/changes.py change something in the name of whoever asks, in a thread, where it may wait."""
        by, engine = request.state.administrator, request.app.state.engine
        return await anyio.to_thread.run_sync(changes.attempt, function, engine, by, *arguments)


class Users(Page, model=User):
    """Users: their names, role, and whether they may log in can be changed, by another administrator."""

    name, name_plural, icon = "User", "Users", "fa-solid fa-user"
    explanation = "Who there is. Change a role, disable and enable."
    find = staticmethod(search.find_users)
    can_edit = True
    form: ClassVar[type[Form]] = forms.UserForm
    form_columns = ("first_name", "last_name", "role", "disabled")
    column_searchable_list = ("username", "email")
    column_default_sort = ("id", True)
    column_sortable_list = ("username", "id")
    column_list = ("username", "email", "role", "first_name", "last_name", "disabled_at", "created_at", "id")
    column_filters = (choice("role", tuple(forms.ROLES)),)
    column_details_list = (
        *("id", "username", "email", "role", "first_name", "last_name", "accounts", "operations"),
        *("created_at", "disabled_at", "next_seq", "done_seq", "lane", "bio"),
    )
    column_labels: ClassVar[Labels] = LABELS | {
        "next_seq": "operations accepted",
        "done_seq": "operations finished, without a gap",
    }
    column_formatters_detail: ClassVar[Formatters] = {
        "accounts": lambda user, _name: [f"{account.title}: {balance(account)}" for account in user.accounts],
        "operations": formats.search_link("this user's operations", "operation", lambda user: user.id),
    }

    async def check_can_edit(self, request: Request, model: Any) -> bool:
        """Nobody changes their own role or locks themselves out: there is always an administrator left."""
        return model is None or model.id != request.state.administrator.id

    async def update_model(self, request: Request, pk: str, data: dict) -> Any:
        """Change what the form holds."""
        await self.change(request, changes.change_user, pk, data)
        return User(id=pk)


class Accounts(Page, model=Account):
    """Accounts: one can be opened for a user; balances change by operations alone."""

    name, name_plural, icon = "Account", "Accounts", "fa-solid fa-wallet"
    explanation = "Where money is. Open an account for a user; balances change by operations alone."
    find = staticmethod(search.find_accounts)
    can_create = True
    form: ClassVar[type[Form]] = forms.AccountForm
    column_searchable_list = ("id", "user", "name", "currency")
    column_default_sort = ("created_at", True)  # Kassa's own have computed ids, which say nothing about when
    column_list = ("user", "kind", "name", "currency", "balance", "version", "created_at", "id")
    column_filters = (choice("kind", ACCOUNT_KINDS),)
    column_details_list = (
        *("id", "user", "kind", "name", "currency", "balance", "version", "is_default", "lane", "main_account_id"),
        *("created_at", "closed_at", "entries", "operations"),
    )
    column_labels: ClassVar[Labels] = LABELS | {"version": "entries so far"}
    column_formatters: ClassVar[Formatters] = {"balance": balance}
    column_formatters_detail: ClassVar[Formatters] = {
        "balance": balance,
        "entries": formats.search_link("this account's entries", "entry", lambda account: account.id),
        "operations": formats.search_link("operations from and to it", "operation", lambda account: account.id),
    }

    async def insert_model(self, request: Request, data: dict) -> Any:
        """Open an account, empty as every new one."""
        return Account(id=await self.change(request, changes.open_account_for, data))


class Operations(Page, model=Operation):
    """Operations, as they were accepted and as they ended."""

    name, name_plural, icon = "Operation", "Operations", "fa-solid fa-right-left"
    explanation = "What was asked for, and how it ended. Kept for ever, changed by nobody."
    find = staticmethod(search.find_operations)
    column_searchable_list = ("id", "account", "user", "idempotency_key")
    column_default_sort = ("id", True)
    column_sortable_list = ("id",)
    column_list = ("created_at", "user", "type", "amount", "status", "counterparty", "comment", "id")
    column_filters = (choice("type", get_args(Type)), StatusFilter())
    column_details_list = (
        *("id", "user", "seq", "type", "status", "amount", "account", "counterparty", "comment", "metadata_"),
        *("created_at", "finished_at", "rejection", "service", "price", "rate", "rate_date"),
        *("ref_operation_id", "requested_by", "idempotency_key", "request_id", "cancel_requested"),
        *("lane", "apply_no", "account_version", "counterparty_version", "entries"),
    )
    column_labels: ClassVar[Labels] = LABELS | {"metadata_": "metadata"}
    column_formatters: ClassVar[Formatters] = {"amount": formats.money("amount")}
    column_formatters_detail: ClassVar[Formatters] = {
        "amount": formats.money("amount"),
        "price": formats.money("price", "price_currency"),
        "entries": formats.search_link("its entries", "entry", lambda operation: operation.id),
    }


class Entries(Page, model=Entry):
    """The lines of the accounts."""

    name, name_plural, icon = "Entry", "Entries", "fa-solid fa-list-ol"
    explanation = "The lines of an account, or of an operation: search for its id. Only ever added to."
    find = staticmethod(search.find_entries)
    column_searchable_list = ("account_id", "operation_id")
    column_default_sort: ClassVar[list[tuple[str, bool]]] = [("account_id", True), ("account_version", True)]
    column_list = ("created_at", "account", "account_version", "amount", "balance_after", "operation")
    column_details_list = (*column_list, "account_id", "operation_id", "id")
    column_labels: ClassVar[Labels] = LABELS | {"account_version": "line"}
    column_formatters: ClassVar[Formatters] = {
        "amount": formats.money("amount", "account.currency"),
        "balance_after": formats.money("balance_after", "account.currency"),
    }
    column_formatters_detail = column_formatters


class Services(Page, model=Service):
    """Services on sale, to create and change."""

    name, name_plural, icon = "Service", "Services", "fa-solid fa-bag-shopping"
    explanation = "What users may buy. Create, change the price, take off sale."
    find = staticmethod(search.find_services)
    can_create = True
    can_edit = True
    form: ClassVar[type[Form]] = forms.ServiceForm
    form_columns = ("name", "description", "price", "currency", "active")
    column_searchable_list = ("name", "currency")
    column_default_sort = ("id", True)
    column_sortable_list = ("name", "id")
    column_list = ("name", "price", "active", "created_at", "id")
    column_details_list = ("id", "name", "description", "price", "currency", "active", "created_at")
    column_filters = (BooleanFilter("active"),)
    column_formatters: ClassVar[Formatters] = {"price": formats.money("price")}
    column_formatters_detail = column_formatters

    async def get_form_data_for_edit(self, obj: Any) -> dict[str, Any]:
        """The price as the form takes it."""
        return await super().get_form_data_for_edit(obj) | {"price": decimal_string(obj.price, obj.currency)}

    async def insert_model(self, request: Request, data: dict) -> Any:
        """Put it on sale."""
        return Service(id=await self.change(request, changes.create_service, data))

    async def update_model(self, request: Request, pk: str, data: dict) -> Any:
        """Change what the form holds; purchases made so far keep what they paid."""
        await self.change(request, changes.change_service, pk, data)
        return Service(id=pk)


class Rates(Page, model=Rate):
    """The rates in force, and those before."""

    name, name_plural, icon = "Rate", "Rates", "fa-solid fa-chart-line"
    explanation = "Rubles for one unit of a currency, as published for a day."
    find = staticmethod(search.find_rates)
    can_view_details = False  # the list shows all there is
    column_searchable_list = ("currency",)
    column_default_sort: ClassVar[list[tuple[str, bool]]] = [("rate_date", True), ("currency", False)]
    column_sortable_list = ("currency", "rate_date")
    column_list = ("rate_date", "currency", "rubles", "source", "loaded_at")


PAGES = (Users, Accounts, Operations, Entries, Services, Rates)
