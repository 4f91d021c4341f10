"""How values are written on the pages: money with its currency's decimals, moments in UTC."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from sqladmin.formatters import BASE_FORMATTERS
from starlette.requests import Request

from core.money import decimal_string


def moment(value: datetime) -> str:
    """A moment; the session's time zone is UTC (core.db.SESSION)."""
    return value.strftime("%Y-%m-%d %H:%M:%S UTC")


def as_json(value: dict[str, Any]) -> str:
    """A stored document."""
    return json.dumps(value, ensure_ascii=False)


BY_TYPE = BASE_FORMATTERS | {datetime: moment, dict: as_json}


def money(column: str, currency: str = "currency") -> Callable[..., str]:
    """Minor units in `column`, written in the currency that the dotted path names."""

    def write(row: Any, _name: str = "") -> str:
        amount, code = getattr(row, column), row
        for part in currency.split("."):
            code = getattr(code, part)
        return "" if amount is None else f"{decimal_string(amount, code)} {code}"

    return write


def search_link(text: str, page: str, of: Callable[[Any], str]) -> Callable[[Any, str, Request], Markup]:
    """A link to another page, searched for what `of` takes from the row."""

    def write(row: Any, _name: str, request: Request) -> Markup:
        address = f"{request.url_for('admin:list', identity=page)}?{urlencode({'search': of(row)})}"
        return Markup('<a href="{}">{}</a>').format(address, text)

    return write
