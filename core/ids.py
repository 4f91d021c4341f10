"""Identifiers, as strings: UUIDv7 for all that is stored, and computed ones for Kassa's own accounts."""

import uuid
from functools import cache

from uuid_utils import uuid7

NAMESPACE = uuid.UUID("6b617373-6100-5000-8000-000000000000")


def new_id() -> str:
    """A new UUIDv7 (RFC 9562): time-ordered, so that indexes grow at one end."""
    return str(uuid7())


@cache
def own_account_id(kind: str, lane: int, currency: str) -> str:
    """The id of Kassa's `world` or `revenue` account of a lane: computed, so that no look-up is needed."""
    return str(uuid.uuid5(NAMESPACE, f"{kind}/{lane}/{currency}"))
