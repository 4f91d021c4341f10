"""Mail: by SMTP where SMTP_URL names a server, else into files of DATA_DIR/mail. Only mails hold codes."""

import os
import smtplib
import ssl
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
import structlog

from core import codes
from core.codes import CODE_SECONDS
from core.db import autocommit
from core.ids import new_id
from core.settings import Settings

SMTP_TIMEOUT_SECONDS = 5  # for each step; meanwhile one worker process drains no lane
SEND_SECONDS_MAX = 20  # for all steps together
PERMANENT_FAILURE = 500  # SMTP replies from here on will be the same next time

TEXT = """\
{code} is your code for Kassa. It works once, for {minutes} minutes.

If you did not ask for it, somebody has typed your address by mistake: you need not do anything.
"""

log = structlog.get_logger("kassa.mail")


def mail_code(engine: sa.Engine, settings: Settings, code_id: str) -> bool:
    """Make a code and mail it. Returns whether it was mailed.

    The code's hash is committed first, so that of two announcements one mails. Where sending fails the hash is taken
    back, and a later announcement makes another code; where this process dies in between, the client asks again.
    """
    with autocommit(engine).connect() as connection:
        made = codes.make(connection, settings, code_id)
    if made is None:
        return False
    email, code = made
    try:
        send(settings, message(settings, email, code))
    except Exception as error:  # no server, a refusal, a full disk, the time limit: all the same to who waits for it
        said = repr(error).replace(code, "*" * len(code))  # a server may quote what it refuses
        log.warning("mail_not_sent", id=code_id, error=said, permanent=is_permanent(error))
        if not is_permanent(error):
            with autocommit(engine).connect() as connection:
                codes.unmake(connection, code_id)
        return False
    return True


def message(settings: Settings, email: str, code: str) -> EmailMessage:
    """The mail with a code. Raises ValueError or MessageError where no mail can be sent to exactly this address.

    Only ASCII: the database may fold an address with other letters into somebody else's.
    """
    to = Address(addr_spec=email)
    if to.addr_spec != email or not email.isascii():
        raise ValueError("not an address that mail is sent to")
    made = EmailMessage()
    made["From"] = settings.mail_from
    made["To"] = to
    made["Subject"] = "Your code for Kassa"
    made["Date"] = format_datetime(datetime.now(UTC))
    made["Message-ID"] = make_msgid(domain=settings.mail_from.rpartition("@")[2])
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office notes, please
    made.set_content(TEXT.format(code=code, minutes=CODE_SECONDS // 60))
    return made


def send(settings: Settings, mail: EmailMessage) -> None:
    """Send a mail, or write it to a file. Raises OSError (of which SMTPException is one)."""
    if settings.smtp_url is None:
        log.info("mail_written", path=str(write(Path(settings.data_dir) / "mail", mail)))
    else:
        with connect(settings.smtp_url) as client:
            client.send_message(mail)
        log.info("mail_sent", message_id=str(mail["Message-ID"]))


def connect(smtp_url: str) -> smtplib.SMTP:
    """A session with the server of `smtp://user:password@host:port` (with TLS where it offers it) or `smtps://`."""
    parts = urlsplit(smtp_url)
    host, context = parts.hostname or "localhost", ssl.create_default_context()
    if parts.scheme == "smtps":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            host, parts.port or smtplib.SMTP_SSL_PORT, timeout=SMTP_TIMEOUT_SECONDS, context=context
        )
    else:
        client = smtplib.SMTP(host, parts.port or smtplib.SMTP_PORT, timeout=SMTP_TIMEOUT_SECONDS)
    try:
        client.ehlo_or_helo_if_needed()
        if parts.scheme == "smtp" and client.has_extn("starttls"):
            client.starttls(context=context)
        if parts.username:
            client.login(unquote(parts.username), unquote(parts.password or ""))
    except BaseException:
        client.close()
        raise
    return client


def write(directory: Path, mail: EmailMessage) -> Path:
    """Write a mail to a file that only its owner reads. Returns its path; a file there is a whole mail."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{new_id()}.eml"
    unfinished = path.with_suffix(".part")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(mail.as_bytes())
    unfinished.rename(path)
    return path.resolve()


def is_permanent(error: Exception) -> bool:
    """Whether another try would fail alike: the address is none, or the server will not have it."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= PERMANENT_FAILURE for code, _ in error.recipients.values())
    return isinstance(error, ValueError | MessageError)
