"""Settings are refused at the start, by name, rather than found wrong in the night."""

import dataclasses

import msgspec
import pytest

from core.settings import SECRET_KEY_BYTES_MIN, Settings, SettingsError, load

GIVEN = {
    "DATABASE_URL": "postgresql://kassa:hunter2@db/kassa",
    "REDIS_URL": "redis://:hunter2@broker/0",
    "SECRET_KEY": "abcdefghijklmnop" * (SECRET_KEY_BYTES_MIN // 16),
}
WRONG = {
    "DATABASE_URL": ["mysql://kassa:hunter2@db/kassa", "hunter2", "x\npostgresql://hunter2"],
    "REDIS_URL": ["http://:hunter2@broker", "hunter2:6379"],
    "BROKER_URL": ["http://:hunter2@broker", "hunter2:5672"],
    "SECRET_KEY": [
        "hunter2",
        "abcdefghijklmnop" * (SECRET_KEY_BYTES_MIN // 16 - 1) + "abcdefghijklmno",
        "k" * 64,
        "0123456789" * 6,
        "django-insecure-abcdefghijklmnopqrstuvwxyz",
        "please-CHANGEME-please-abcdefghijklmnop",
        "my-super-secret-key-that-nobody-guesses",
    ],
    "LANES": ["0", "-1", "1025", "4.5", "many", "4,5"],
    "SELF_DEPOSIT": ["maybe", "yes", "2", "no"],
    "ACCESS_TOKEN_SECONDS": ["0", "-1", "1.5", "15m", "99999999999"],
    "REFRESH_TOKEN_SECONDS": ["0", "-1", "1.5", "30d", "99999999999"],
    "API_ROLE": ["kassa api", "Kassa", "x;y", "-c"],
    "USER_PENDING_MAX": ["0", "-1", "1.5", "many"],
    "PENDING_MAX": ["0", "-1", "1.5", "many"],
    "PENDING_SECONDS_MAX": ["0", "-1", "1.5", "1m"],
    "SMTP_URL": ["http://hunter2", "mail.example.org:25"],
    "RATES_URL": ["ftp://hunter2", "example.org/rates"],
    "BEHIND_PROXY": ["maybe", "yes", "2"],
    "LOG_LEVEL": ["debug", "LOUD", "10"],
}


def test_every_variable_that_can_be_wrong_is_wrong_here():
    fields = msgspec.structs.fields(Settings)
    assert set(WRONG) == {field.encode_name for field in fields if field.type is not str} | {"SECRET_KEY"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name_and_not_shown(name: str, value: str):
    with pytest.raises(SettingsError, match=rf"\b{name}\b") as refused:
        load({**GIVEN, name: value})
    assert "hunter2" not in str(refused.value), "logs are no place for secrets"


@pytest.mark.parametrize("name", sorted(GIVEN))
@pytest.mark.parametrize("absence", ["missing", "empty"])
def test_what_has_no_default_must_be_given(name: str, absence: str):
    environment = {key: value for key, value in GIVEN.items() if key != name}
    if absence == "empty":
        environment[name] = ""
    with pytest.raises(SettingsError, match=rf"\b{name}\b"):
        load(environment)


def test_the_rest_has_defaults_and_an_empty_variable_means_the_default():
    settings = load(GIVEN)
    assert (settings.lanes, settings.self_deposit, settings.log_level) == (16, True, "INFO")
    assert (settings.access_token_seconds, settings.refresh_token_seconds) == (900, 2_592_000)
    assert load({**GIVEN, "LANES": "", "SELF_DEPOSIT": "", "LOG_LEVEL": ""}) == settings


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("LANES", "1", "lanes", 1),
        ("LANES", "1024", "lanes", 1024),
        ("SELF_DEPOSIT", "false", "self_deposit", False),
        ("SELF_DEPOSIT", "0", "self_deposit", False),
        ("SELF_DEPOSIT", "true", "self_deposit", True),
        ("ACCESS_TOKEN_SECONDS", "1", "access_token_seconds", 1),
        ("LOG_LEVEL", "DEBUG", "log_level", "DEBUG"),
        ("DATABASE_URL", "postgres://db/kassa", "database_url", "postgres://db/kassa"),
        ("BROKER_URL", "amqp://rabbit", "broker_url", "amqp://rabbit"),
    ],
)
def test_what_is_given_is_taken(name: str, value: str, field: str, expected: object):
    assert getattr(load({**GIVEN, name: value}), field) == expected


def test_the_secret_is_measured_in_bytes_and_the_refusal_says_how_to_make_one():
    letters = "".join(chr(ord("\u0430") + place) for place in range(SECRET_KEY_BYTES_MIN // 2))
    assert load({**GIVEN, "SECRET_KEY": letters}).secret_key
    with pytest.raises(SettingsError, match=r"secrets\.token_urlsafe"):
        load({**GIVEN, "SECRET_KEY": "k" * (SECRET_KEY_BYTES_MIN - 1)})


def test_settings_are_frozen_and_other_variables_are_nobodys_business():
    settings = load({**GIVEN, "PATH": "/bin", "LANE": "many"})
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        settings.lanes = 2
