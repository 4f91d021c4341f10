"""The forms: the few things that may be changed, and what they may be."""

import re
from typing import Any

from sqladmin.fields import BooleanField, SelectField
from wtforms import Field, Form, StringField, TextAreaField
from wtforms.validators import InputRequired, Length, ValidationError

from core.money import AMOUNT_MAX, CURRENCIES, DEFAULT_CURRENCY, is_currency

ROLES = ["user", "service", "auditor", "admin"]
PERSONS_NAME_CHARACTERS_MAX = 150
NAME_CHARACTERS_MAX = 100
DESCRIPTION_CHARACTERS_MAX = 2_000
DECIMAL = re.compile(r"([0-9]{1,16})(?:\.([0-9]{1,4}))?")


def or_empty(text: str | None) -> str:
    """What was not sent is empty."""
    return text or ""


TEXT: dict[str, Any] = {"filters": [or_empty], "render_kw": {"class": "form-control"}}


def storable(_form: Form, field: Field) -> None:
    """PostgreSQL stores no NUL."""
    if "\0" in (field.data or ""):
        raise ValidationError("NUL cannot be stored.")


def known_currency(_form: Form, field: Field) -> None:
    """One of ISO 4217."""
    if not is_currency(field.data or ""):
        raise ValidationError("Not a currency of ISO 4217, such as RUB.")


def minor_units(text: str, currency: str) -> int:
    """A decimal as minor units: "100.50" RUB is 10050. Raises ValueError where it is not exactly an amount."""
    match = DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError("Not an amount, such as 100.50.")
    digits, exponent = match[2] or "", CURRENCIES[currency]
    if len(digits) > exponent:
        raise ValueError(f"{currency} has {exponent} digits after the point.")
    amount = int(match[1] + digits.ljust(exponent, "0"))
    if not 0 < amount <= AMOUNT_MAX:
        raise ValueError("Zero, or more than one operation may move.")
    return amount


class UserForm(Form):
    """What an administrator changes in a user."""

    first_name = StringField("First name", [Length(max=PERSONS_NAME_CHARACTERS_MAX), storable], **TEXT)
    last_name = StringField("Last name", [Length(max=PERSONS_NAME_CHARACTERS_MAX), storable], **TEXT)
    role = SelectField("Role", choices=[(role, role) for role in ROLES], render_kw={"class": "form-select"})
    disabled = BooleanField("Disabled")


class AccountForm(Form):
    """An account to open for a user; its balance is zero, and money gets there by operations alone."""

    user = StringField("Username, or id of the user", [InputRequired(), Length(max=254), storable], **TEXT)
    currency = StringField("Currency", [InputRequired(), known_currency], default=DEFAULT_CURRENCY, **TEXT)
    name = StringField("Name", [Length(max=NAME_CHARACTERS_MAX), storable], **TEXT)


class ServiceForm(Form):
    """A service on sale; purchases made so far keep what they paid."""

    name = StringField("Name", [InputRequired(), Length(max=NAME_CHARACTERS_MAX), storable], **TEXT)
    description = TextAreaField("Description", [Length(max=DESCRIPTION_CHARACTERS_MAX), storable], **TEXT)
    price = StringField("Price, such as 100.50", [InputRequired()], **TEXT)
    currency = StringField("Currency", [InputRequired(), known_currency], default=DEFAULT_CURRENCY, **TEXT)
    active = BooleanField("Active", default=True)

    def validate_price(self, field: Any) -> None:
        """More than zero, in as many digits as the currency has."""
        if is_currency(self.currency.data or ""):
            try:
                minor_units(field.data, self.currency.data)
            except ValueError as error:
                raise ValidationError(str(error)) from None
