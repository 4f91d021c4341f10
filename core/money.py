"""Money is an integer of minor units; this module knows how many of them make a unit. Pure."""

from iso4217 import Currency

AMOUNT_MAX = 10**15  # one operation, minor units
BALANCE_MAX = 10**18  # one account, minor units; far inside a bigint, so that sums in SQL never overflow
WORLD_BALANCE_MIN = -9 * 10**18  # the bigint's own floor is -9.22e18
DEFAULT_CURRENCY = "RUB"

# Metals, bond units, test codes and "no currency" are in ISO 4217 too, and hold no money here.
CURRENCIES: dict[str, int] = {
    currency.code: currency.exponent for currency in Currency if currency.exponent is not None
}


def is_currency(code: str) -> bool:
    """Whether `code` is a currency of ISO 4217 that has minor units (or, like JPY, none of them)."""
    return code in CURRENCIES


def decimal_string(amount: int, currency: str) -> str:
    """Write minor units as a decimal: 10050 RUB is "100.50", 5 JPY is "5", 1 KWD is "0.001"."""
    exponent = CURRENCIES[currency]
    if exponent == 0:
        return str(amount)
    sign, digits = ("-" if amount < 0 else ""), str(abs(amount)).rjust(exponent + 1, "0")
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}"
