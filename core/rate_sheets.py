"""The Central Bank of Russia's daily document: fetched with everything bounded, parsed strictly, or not used at all.

    <ValCurs Date="15.03.2022"><Valute><CharCode>JPY</CharCode><Nominal>100</Nominal><Value>99,4486</Value></Valute>...

It says how many rubles `Nominal` units of a currency are; a sheet here says it for one. The Bank encodes it in
windows-1251, which the XML declaration names.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, localcontext
from xml.etree.ElementTree import Element, ParseError

import httpx
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from core.money import DEFAULT_CURRENCY, is_currency

DOCUMENT_BYTES_MAX = 1024 * 1024  # the real one has some 10 kB
FETCH_SECONDS_MAX = 20.0  # in all: one of few workers waits for it
RATE_DIGITS = 24  # significant ones: more than the largest balance has in the cheapest currency, some 10^21 units
QUOTED_CHARACTERS_MAX = 40  # of a wrong document, in a message

DATE = re.compile(r"(?P<day>[0-9]{2})\.(?P<month>[0-9]{2})\.(?P<year>[0-9]{4})")
CODE = re.compile(r"[A-Z]{3}")
NOMINAL = re.compile(r"[1-9][0-9]{0,8}")
VALUE = re.compile(r"[0-9]{1,12}(,[0-9]{1,10})?")


class RatesError(Exception):
    """No rates could be had; the message is one line that says why. What was stored before stays."""


@dataclass(frozen=True)
class RateSheet:
    """What one unit of each currency was worth on a day, in rubles; `skipped` codes are no currencies of ours."""

    date: date
    rubles: Mapping[str, Decimal]
    skipped: tuple[str, ...] = ()


def parse(document: bytes) -> RateSheet:
    """The document as a sheet; entries whose code is no currency of ours, such as XDR, are skipped.

    Raises RatesError for a document that is not as described in any other way: half a sheet is none.
    """
    root = root_of(document)
    if root.tag != "ValCurs":
        raise RatesError(f"not the Central Bank's daily document: its root is {quoted(root.tag)}, not 'ValCurs'")
    rubles: dict[str, Decimal] = {}
    skipped: list[str] = []
    for valute in root.findall("Valute"):
        currency = text_of(valute, "CharCode", CODE)
        if currency == DEFAULT_CURRENCY or currency in rubles:
            raise RatesError(f"the document has a rate for {currency} that it cannot have, or has it twice")
        if is_currency(currency):
            rubles[currency] = rubles_for_one(valute, currency)
        else:
            skipped.append(currency)
    if not rubles:
        raise RatesError("the document has no rate of any currency")
    return RateSheet(date_of(root), rubles, tuple(skipped))


def root_of(document: bytes) -> Element:
    """The document's root. Entities, and whatever else needs a DTD, are refused: the Bank uses none."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise RatesError(f"the document has more than {DOCUMENT_BYTES_MAX} bytes")
    try:
        return fromstring(document, forbid_dtd=True)
    except ParseError as error:
        raise RatesError(f"not an XML document: {error}") from None
    except DefusedXmlException:
        raise RatesError("the document declares a type or entities, which the Central Bank's does not") from None
    except (ValueError, LookupError) as error:
        raise RatesError(f"the document's encoding cannot be read: {error}") from None


def date_of(root: Element) -> date:
    """The day for which the rates are."""
    written = root.get("Date") or ""
    found = DATE.fullmatch(written)
    try:
        if found:
            return date(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:  # the 30th of February
        pass
    raise RatesError(f"the document's date is {quoted(written)}, not a day such as '15.03.2022'")


def rubles_for_one(valute: Element, currency: str) -> Decimal:
    """Rubles for one unit: exact, since the Bank's nominals are powers of ten."""
    nominal = text_of(valute, "Nominal", NOMINAL)
    value = Decimal(text_of(valute, "Value", VALUE).replace(",", "."))
    if not value:
        raise RatesError(f"the document says that {currency} is worth nothing")
    with localcontext(prec=RATE_DIGITS):
        return value / int(nominal)


def text_of(valute: Element, name: str, form: re.Pattern[str]) -> str:
    """The text of the only child with that name, which must have that form."""
    texts = [(child.text or "").strip() for child in valute.findall(name)]
    if len(texts) != 1 or not form.fullmatch(texts[0]):
        found = ", ".join(quoted(text) for text in texts[:2]) or "absent"
        raise RatesError(f"a {name} of the document is {found}, which is no {name} of the Bank's")
    return texts[0]


def quoted(text: str) -> str:
    """Somebody else's text, for a line of ours."""
    return ascii(text[:QUOTED_CHARACTERS_MAX])


def fetch(url: str, timeout: float = FETCH_SECONDS_MAX) -> bytes:
    """Whatever is at the URL, at most DOCUMENT_BYTES_MAX, within `timeout` seconds in all.

    Raises RatesError. It is asynchronous inside, since only a cancellation also ends a server that drips its headers.
    """
    try:
        return asyncio.run(download(url, timeout))
    except TimeoutError:
        raise RatesError(f"the rates did not arrive in full within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RatesError(f"the rates cannot be fetched: {type(error).__name__} {error}".rstrip()) from None


async def download(url: str, timeout: float) -> bytes:
    """The body of a plain 200: redirects are not followed, and what is compressed is not blown up."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "kassa"}
    async with (
        asyncio.timeout(timeout),  # of all that follows; httpx's own would start anew with each byte
        httpx.AsyncClient(timeout=None, headers=headers, follow_redirects=False) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise RatesError(f"the rates cannot be fetched: the server answered {response.status_code}")
        document = bytearray()
        async for chunk in response.aiter_raw():
            document += chunk
            if len(document) > DOCUMENT_BYTES_MAX:
                raise RatesError(f"the rates cannot be fetched: there are more than {DOCUMENT_BYTES_MAX} bytes")
        return bytes(document)
