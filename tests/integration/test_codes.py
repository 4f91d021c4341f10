"""E-mail codes and their mail: made once, mailed once, known to nobody but the mailbox."""

import logging
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.servers import LOOPBACK, free_port
from core import codes, identity, users
from core.attempts import MAILS_PER_ADDRESS_MAX, MAILS_PER_EMAIL_MAX
from core.errors import Refusal
from core.settings import Settings
from tests.integration.conftest import Bank, aside, until
from tests.integration.test_identity import PASSWORD, PASSWORD_HASH, SETTINGS, caller_of, outcome
from tests.mailbox import Mailbox, code_in
from worker import mail

EMAIL, ADDRESS = "ada@example.com", "192.0.2.1"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as made:
        yield made


@pytest.fixture
def settings(mailbox: Mailbox, tmp_path: Path) -> Settings:
    """Settings with a mail server, and a data directory of the test's own."""
    return msgspec.structs.replace(SETTINGS, smtp_url=mailbox.url, data_dir=str(tmp_path))


def ask(bank: Bank, email: str = EMAIL, address: str = ADDRESS) -> str | None:
    with bank.autocommit.connect() as connection:
        return codes.ask(connection, email, address)


def ask_and_mail(bank: Bank, settings: Settings, email: str = EMAIL) -> None:
    """Ask for a code, and have it mailed."""
    code_id = ask(bank, email)
    assert code_id is not None
    assert mail.mail_code(bank.engine, settings, code_id)


def confirm(bank: Bank, code: str, email: str = EMAIL, caller_id: str | None = None) -> dict[str, Any]:
    return codes.confirm(bank.engine, SETTINGS, email, code, ADDRESS, caller_id)


def forgotten(bank: Bank) -> list[str]:
    with bank.autocommit.connect() as connection:
        return codes.forgotten(connection)


def test_a_code_is_mailed_once_and_stored_nowhere(bank: Bank, settings: Settings, mailbox: Mailbox):
    code_id = ask(bank)
    assert code_id is not None
    assert bank.value("SELECT code_hash IS NULL FROM email_codes")
    assert [mail.mail_code(bank.engine, settings, code_id) for _ in range(3)] == [True, False, False]
    [code] = mailbox.codes(EMAIL)
    stored = bank.rows("SELECT id, email, code_hash FROM email_codes")
    assert bytes(stored[0][2]) == codes.code_hash(SETTINGS, code_id, code)
    other_key = msgspec.structs.replace(SETTINGS, secret_key="o" * 32)
    assert codes.code_hash(other_key, code_id, code) != bytes(stored[0][2])
    assert code not in str(stored)
    [sent] = mailbox.mails(EMAIL)
    assert (sent["To"], sent["From"], sent["Auto-Submitted"]) == (EMAIL, "kassa@localhost", "auto-generated")
    assert sent["Date"]
    assert sent["Message-ID"]


def test_the_first_confirmation_makes_a_user_with_an_account_and_later_ones_find_it(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    ask_and_mail(bank, settings)
    first = caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1]))
    assert (first.username, first.role) == (EMAIL, "user")
    assert bank.rows("SELECT currency, balance, is_default FROM accounts WHERE kind = 'main'") == [("RUB", 0, True)]
    ask_and_mail(bank, settings, EMAIL.upper())
    again = caller_of(bank, confirm(bank, mailbox.codes(EMAIL.upper())[-1]))
    assert again.id == first.id


@pytest.mark.parametrize(
    ("email", "taken", "beginning"),
    [
        ("ada@example.com", True, "ada@example.com-"),
        ("o'hara@example.com", False, "user-"),
        (f"{'x' * 64}@{'y' * 60}.{'z' * 60}.com", False, "user-"),
        (f"{'x' * 64}@{'y' * 40}.{'z' * 40}.com", True, "user-"),
    ],
)
def test_a_username_that_does_not_do_is_replaced(
    bank: Bank, settings: Settings, mailbox: Mailbox, email: str, taken: bool, beginning: str
):
    if taken:
        bank.user(email)
    ask_and_mail(bank, settings, email)
    made = caller_of(bank, confirm(bank, mailbox.codes(email)[-1], email))
    assert made.username.startswith(beginning)
    assert len(made.username) <= 150


def test_a_disabled_user_gets_nothing_for_a_right_code(bank: Bank, settings: Settings, mailbox: Mailbox):
    ask_and_mail(bank, settings)
    confirm(bank, mailbox.codes(EMAIL)[-1])
    bank.execute("UPDATE users SET disabled_at = clock_timestamp()")
    ask_and_mail(bank, settings)
    assert outcome(lambda: confirm(bank, mailbox.codes(EMAIL)[-1])) == "invalid_code"


def test_of_right_tries_at_once_one_gets_in_and_of_wrong_ones_each_is_counted(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    for right, outcomes in ((False, ["invalid_code"] * 4), (True, ["fine"] + ["invalid_code"] * 3)):
        ask_and_mail(bank, settings)
        tried = mailbox.codes(EMAIL)[-1] if right else "wrong"
        with bank.held("SELECT id FROM email_codes FOR UPDATE"):
            tries = [aside(lambda tried=tried: outcome(lambda: confirm(bank, tried))) for _ in range(4)]
            until(lambda: len(bank.waiting_for_lock("kassa-tests")) == 4)
        assert sorted(found.result(10) for found in tries) == outcomes
    assert bank.rows("SELECT wrong_tries, spent_at IS NULL FROM email_codes ORDER BY created_at") == [
        (4, True),
        (0, False),
    ]


def test_a_right_code_gives_all_tries_back_to_the_address(bank: Bank, settings: Settings, mailbox: Mailbox):
    ask_and_mail(bank, settings)
    assert outcome(lambda: confirm(bank, "wrong")) == "invalid_code"
    confirm(bank, mailbox.codes(EMAIL)[-1])
    counted = bank.rows("SELECT key, count FROM attempts WHERE key LIKE 'code/%'")
    assert counted == [(f"code/address/{ADDRESS}", 1)]


def test_beyond_five_mails_an_hour_a_mailbox_is_left_alone_in_silence(bank: Bank):
    asked = [ask(bank, EMAIL, f"192.0.2.{number}") for number in range(MAILS_PER_EMAIL_MAX + 2)]
    assert [code_id is not None for code_id in asked] == [True] * MAILS_PER_EMAIL_MAX + [False] * 2
    assert bank.value("SELECT count(*) FROM email_codes") == MAILS_PER_EMAIL_MAX
    assert ask(bank, "other@example.com") is not None


def test_beyond_thirty_mails_an_hour_a_client_is_refused(bank: Bank):
    for number in range(MAILS_PER_ADDRESS_MAX):
        assert ask(bank, f"user-{number}@example.com") is not None
    with pytest.raises(Refusal, match="too_many_tries"):
        ask(bank, "one-more@example.com")
    assert ask(bank, "one-more@example.com", "192.0.2.2") is not None


def test_codes_whose_announcement_was_lost_are_found_and_the_others_are_not(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    lost, fresh, late, made = (ask(bank, f"{name}@example.com") for name in ("lost", "fresh", "late", "made"))
    assert made is not None
    mail.mail_code(bank.engine, settings, made)
    bank.execute("UPDATE email_codes SET created_at = created_at - interval '6 seconds' WHERE id <> :id", id=fresh)
    bank.execute("UPDATE email_codes SET expires_at = clock_timestamp() WHERE id = :id", id=late)
    assert forgotten(bank) == [lost]
    assert late is not None
    assert mail.mail_code(bank.engine, settings, late) is False
    assert mailbox.mails("late@example.com") == []


@pytest.mark.parametrize(
    ("email", "reply", "again"),
    [
        (EMAIL, "451 greylisted, come back later", True),
        (EMAIL, "550 no such mailbox", False),
        ("a,b@example.com", "", False),
        ("(note)ada@example.com", "", False),
        ("<ada>@example.com", "", False),
        ("\u212aatie@example.com", "", False),
        ("ada@example..com", "", False),
    ],
)
def test_what_cannot_be_sent_is_tried_again_if_there_is_hope(
    bank: Bank, settings: Settings, mailbox: Mailbox, email: str, reply: str, again: bool
):
    mailbox.refusals[email] = reply
    code_id = ask(bank, email)
    assert code_id is not None
    assert mail.mail_code(bank.engine, settings, code_id) is False
    bank.execute("UPDATE email_codes SET created_at = created_at - interval '6 seconds'")
    assert forgotten(bank) == ([code_id] if again else [])
    mailbox.refusals.clear()
    if again:
        assert mail.mail_code(bank.engine, settings, code_id)
        confirm(bank, mailbox.codes(email)[-1], email)
    assert mailbox.mails("ada@example.com") == mailbox.mails(email), "no mail went astray"


def test_without_a_server_the_mail_waits_for_one(bank: Bank, settings: Settings, mailbox: Mailbox):
    code_id = ask(bank)
    assert code_id is not None
    nowhere = msgspec.structs.replace(settings, smtp_url=f"smtp://{LOOPBACK}:{free_port(0)}")
    assert mail.mail_code(bank.engine, nowhere, code_id) is False
    assert mail.mail_code(bank.engine, settings, code_id) is True
    assert len(mailbox.mails(EMAIL)) == 1


def test_without_smtp_url_mail_goes_to_a_file_that_only_its_owner_reads(
    bank: Bank, settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.DEBUG)
    ask_and_mail(bank, msgspec.structs.replace(settings, smtp_url=None))
    [path] = (Path(settings.data_dir) / "mail").iterdir()
    assert path.suffix == ".eml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    code = code_in(message_from_bytes(path.read_bytes()))
    said = caplog.text + capfd.readouterr().out
    assert str(path) in said
    assert code not in said
    assert caller_of(bank, confirm(bank, code)).username == EMAIL


def test_old_codes_are_forgotten(bank: Bank):
    old, live = ask(bank), ask(bank)
    bank.execute("UPDATE email_codes SET expires_at = expires_at - interval '25 hours' WHERE id = :id", id=old)
    with bank.autocommit.connect() as connection:
        assert codes.forget_old(connection) == 1
    assert bank.value("SELECT id FROM email_codes") == live


def claimant(bank: Bank, email: str = EMAIL, role: str = "user") -> tuple[str, dict[str, Any]]:
    """Somebody who has given an address and not confirmed it. Returns the id and a session's tokens."""
    with bank.engine.begin() as connection:
        made = identity.insert_user(connection, SETTINGS, "mallory", email, PASSWORD_HASH)
    bank.execute("UPDATE users SET role = :role WHERE id = :id", role=role, id=made)
    return made, identity.log_in(bank.engine, SETTINGS, "mallory", PASSWORD, ADDRESS)


def user_row(bank: Bank, user_id: str) -> dict[str, Any]:
    """Everything that is stored of a user."""
    [(row,)] = bank.rows("SELECT to_jsonb(u) FROM users u WHERE id = :id", id=user_id)
    return row


@pytest.mark.parametrize("role", ["user", "admin"])
def test_a_claim_is_dropped_when_the_owner_confirms_the_address_and_nothing_else_changes_hands(
    bank: Bank, settings: Settings, mailbox: Mailbox, role: str
):
    mallory, tokens = claimant(bank, role=role)
    before = user_row(bank, mallory)
    ask_and_mail(bank, settings, EMAIL.upper())
    owner = caller_of(bank, confirm(bank, mailbox.codes(EMAIL.upper())[-1], EMAIL.upper()))
    assert owner.id != mallory
    assert owner.role == "user"
    assert bank.value("SELECT email_confirmed_at IS NOT NULL FROM users WHERE id = :id", id=owner.id)
    assert bank.value("SELECT count(*) FROM accounts WHERE user_id = :id", id=owner.id) == 1
    assert user_row(bank, mallory) == before | {"email": None}
    assert caller_of(bank, tokens).role == role
    assert outcome(lambda: identity.log_in(bank.engine, SETTINGS, "mallory", PASSWORD, ADDRESS)) == "fine"
    ask_and_mail(bank, settings)
    assert caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1])).id == owner.id, "what is confirmed stays so"


def test_a_claim_is_confirmed_by_a_code_that_the_claimant_sends(bank: Bank, settings: Settings, mailbox: Mailbox):
    alice, tokens = claimant(bank, role="admin")
    before = user_row(bank, alice)
    ask_and_mail(bank, settings)
    assert outcome(lambda: confirm(bank, "wrong", caller_id=alice)) == "invalid_code"
    assert user_row(bank, alice) == before
    confirmed = confirm(bank, mailbox.codes(EMAIL)[-1], caller_id=alice)
    after = user_row(bank, alice)
    assert after.pop("email_confirmed_at") is not None
    assert after == {name: value for name, value in before.items() if name != "email_confirmed_at"}
    assert caller_of(bank, confirmed).id == alice
    assert caller_of(bank, confirmed).session_id != caller_of(bank, tokens).session_id
    assert outcome(lambda: identity.log_in(bank.engine, SETTINGS, "mallory", PASSWORD, ADDRESS)) == "fine"
    ask_and_mail(bank, settings)
    assert caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1])).id == alice, "it logs in from now on"
    assert bank.value("SELECT count(*) FROM users") == 1


def test_anothers_token_confirms_nothing_for_the_claimant_and_nothing_for_the_other(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    mallory, _ = claimant(bank)
    other = bank.user("other")
    ask_and_mail(bank, settings)
    owner = caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1], caller_id=other.id))
    assert owner.id not in (mallory, other.id)
    assert bank.rows("SELECT id FROM users WHERE email IS NOT NULL") == [(owner.id,)]


def test_a_disabled_claimant_loses_the_address_even_with_a_token_that_was_good_just_now(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    mallory, _ = claimant(bank)
    bank.execute("UPDATE users SET disabled_at = clock_timestamp()")
    ask_and_mail(bank, settings)
    assert caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1], caller_id=mallory)).id != mallory
    assert user_row(bank, mallory)["email"] is None


def test_a_claimant_whose_username_is_the_address_keeps_the_name(bank: Bank, settings: Settings, mailbox: Mailbox):
    with bank.engine.begin() as connection:
        mallory = identity.insert_user(connection, SETTINGS, EMAIL, EMAIL, None)
    ask_and_mail(bank, settings)
    owner = caller_of(bank, confirm(bank, mailbox.codes(EMAIL)[-1]))
    assert owner.username.startswith(f"{EMAIL}-")
    assert (user_row(bank, mallory)["username"], user_row(bank, mallory)["email"]) == (EMAIL, None)


@pytest.mark.parametrize("by_claimant", [True, False])
def test_of_right_tries_at_once_for_a_claimed_address_one_gets_in(
    bank: Bank, settings: Settings, mailbox: Mailbox, by_claimant: bool
):
    mallory, _ = claimant(bank)
    caller_id = mallory if by_claimant else None
    ask_and_mail(bank, settings)
    code = mailbox.codes(EMAIL)[-1]
    with bank.held("SELECT id FROM email_codes FOR UPDATE"):
        tries = [aside(lambda: outcome(lambda: confirm(bank, code, caller_id=caller_id))) for _ in range(4)]
        until(lambda: len(bank.waiting_for_lock("kassa-tests")) == 4)
    assert sorted(found.result(10) for found in tries) == ["fine"] + ["invalid_code"] * 3
    assert bank.value("SELECT count(*) FROM users") == (1 if by_claimant else 2)
    assert bank.value("SELECT count(*) FROM users WHERE email_confirmed_at IS NOT NULL") == 1


def test_a_claim_that_is_made_meanwhile_waits_and_finds_the_address_taken(
    bank: Bank, settings: Settings, mailbox: Mailbox
):
    mallory, _ = claimant(bank)
    bob = bank.user("bob")
    ask_and_mail(bank, settings)
    code = mailbox.codes(EMAIL)[-1]

    def claim() -> str:
        def change() -> None:
            with bank.engine.begin() as connection:
                users.change(connection, bob.id, {"email": EMAIL})

        return outcome(change)

    with bank.held("SELECT id FROM users WHERE id = :id FOR UPDATE", id=mallory):
        confirming = aside(lambda: confirm(bank, code))
        until(lambda: len(bank.waiting_for_lock("kassa-tests")) == 1)
        claiming = aside(claim)
    assert claiming.result(10) == "email_taken"
    assert caller_of(bank, confirming.result(10)).id not in (mallory, bob.id)
