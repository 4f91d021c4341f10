"""The tables as the library wants them: classes on `core.tables`, with links where one looks from row to row.

Password hashes are not mapped at all: what is not read cannot be shown.
"""

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, column_property, relationship

from core import tables


class Base(DeclarativeBase):
    """The schema is `core.tables`; nothing is declared here."""

    metadata = tables.metadata

    if TYPE_CHECKING:  # the columns, which are declared there

        def __getattr__(self, name: str) -> Any: ...


def linked(target: Any, mine: sa.Column, theirs: sa.Column) -> Any:
    """A row of another table to look at: hot tables have no foreign keys to tell it, and nothing is changed by it."""
    return relationship(target, primaryjoin=mine == theirs, foreign_keys=[mine], viewonly=True, lazy="selectin")


class User(Base):
    """A user."""

    __table__ = tables.users
    __mapper_args__ = {"exclude_properties": ["password_hash"]}  # noqa: RUF012 - as the library wants it
    accounts = relationship("Account", viewonly=True, order_by=tables.accounts.c.id)
    done_seq = column_property(
        sa.select(tables.progress.c.done_seq).where(tables.progress.c.user_id == tables.users.c.id).scalar_subquery()
    )

    @property
    def disabled(self) -> bool:
        """As the form shows it."""
        return self.disabled_at is not None

    def __str__(self) -> str:
        return str(self.username)


class Account(Base):
    """An account, of a user or Kassa's own."""

    __table__ = tables.accounts
    user = linked(User, tables.accounts.c.user_id, tables.users.c.id)

    @property
    def title(self) -> str:
        """Which of its owner's accounts it is."""
        kind = f" {self.kind}" if self.kind != "main" else ""
        name = f" “{self.name}”" if self.name else ""
        return f"{self.currency}{kind}{name}"

    def __str__(self) -> str:
        if self.kind in ("world", "revenue"):
            return f"Kassa's {self.title}, lane {self.lane}"
        return f"{self.user}'s {self.title}"


class Service(Base):
    """A service on sale."""

    __table__ = tables.services

    def __str__(self) -> str:
        return str(self.name)


class Operation(Base):
    """An operation, pending or finished."""

    __table__ = tables.operations
    __mapper_args__ = {"exclude_properties": ["request_hash"]}  # noqa: RUF012 - as the library wants it
    metadata_ = tables.operations.c.metadata  # the plain name is the library's own
    user = linked(User, tables.operations.c.user_id, tables.users.c.id)
    account = linked(Account, tables.operations.c.account_id, tables.accounts.c.id)
    counterparty = linked(Account, tables.operations.c.counterparty_id, tables.accounts.c.id)
    service = linked(Service, tables.operations.c.service_id, tables.services.c.id)

    def __str__(self) -> str:
        return str(self.id)


class Entry(Base):
    """A line of an account."""

    __table__ = tables.entries
    account = linked(Account, tables.entries.c.account_id, tables.accounts.c.id)
    operation = linked(Operation, tables.entries.c.operation_id, tables.operations.c.id)

    def __str__(self) -> str:
        return f"{self.account_id} {self.account_version}"


class Rate(Base):
    """A currency's rate of a day."""

    __table__ = tables.rates
