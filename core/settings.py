"""Settings, read once from the environment: strict, frozen, and failing with the variable's name."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from core.privileges import API_ROLE

LANES_MAX = 1024
SECRET_KEY_LETTERS_MIN = 10  # a random one of hexadecimal digits has more
EXAMPLES = ("changeme", "change-me", "change_me", "secret", "password", "example", "insecure", "12345678")
SECRET_KEY_BYTES_MIN = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash.

DatabaseUrl = Annotated[str, msgspec.Meta(pattern=r"^postgres(ql)?(\+psycopg2)?://")]
RedisUrl = Annotated[str, msgspec.Meta(pattern=r"^(redis|rediss|unix)://")]
BrokerUrl = Annotated[str, msgspec.Meta(pattern=r"^(redis|rediss|unix|amqps?)://")]
Operations = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=366 * 24 * 3600)]


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it and says what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """Every setting with its default; the environment variable is the name in capitals."""

    database_url: DatabaseUrl
    redis_url: RedisUrl
    broker_url: BrokerUrl | None = None  # Celery's broker, where it is not the Redis of redis_url
    secret_key: str
    lanes: Annotated[int, msgspec.Meta(ge=1, le=LANES_MAX)] = 16
    self_deposit: bool = True
    access_token_seconds: Seconds = 15 * 60
    refresh_token_seconds: Seconds = 30 * 24 * 3600
    api_role: Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_]*$")] = API_ROLE
    user_pending_max: Operations = 50_000  # of one user's, unfinished; further ones are 429
    pending_max: Operations = 200_000  # of all users', unfinished; further ones are 503
    pending_seconds_max: Seconds = 120  # that the oldest of them may wait before further ones are 503
    smtp_url: Annotated[str, msgspec.Meta(pattern=r"^smtps?://")] | None = None  # without it mail goes to DATA_DIR/mail
    mail_from: str = "kassa@localhost"
    rates_url: Annotated[str, msgspec.Meta(pattern=r"^https?://")] = "https://www.cbr.ru/scripts/XML_daily.asp"
    behind_proxy: bool = False  # whether X-Real-IP is set by a proxy of ours, and can be believed
    data_dir: str = ".data"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def broker(self) -> str:
        """Where Celery's messages go: Redis, unless another broker is named."""
        return self.broker_url or self.redis_url


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this process.

    Raises SettingsError where a variable is missing, malformed or unsafe.
    """
    names = [field.encode_name for field in msgspec.structs.fields(Settings)]
    given = {name: environment[name] for name in names if environment.get(name)}
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"environment: {error}. See .env.example for every variable.") from None
    if weakness := weakness_of(settings.secret_key):
        raise SettingsError(
            f"environment: SECRET_KEY {weakness}. "
            "Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    return settings


def weakness_of(secret_key: str) -> str | None:
    """Why a secret is none, or None: too short, too plain, or one that stands in documents."""
    if len(secret_key.encode()) < SECRET_KEY_BYTES_MIN:
        return f"is shorter than {SECRET_KEY_BYTES_MIN} bytes"
    if len(set(secret_key)) < SECRET_KEY_LETTERS_MIN:
        return f"has fewer than {SECRET_KEY_LETTERS_MIN} different characters"
    if any(word in secret_key.lower() for word in EXAMPLES):
        return "looks like an example"
    return None
