"""A mail server on loopback, which keeps what it takes and refuses what it is told to."""

import re
import threading
from email.message import Message
from email.parser import BytesParser
from typing import Any

from aiosmtpd.controller import Controller

from cli.servers import LOOPBACK, free_port

CODE = re.compile(r"\b\d{8}\b")


class Mailbox:
    """The server, and all mail that it took."""

    def __init__(self) -> None:
        self.refusals: dict[str, str] = {}  # SMTP's reply by recipient
        self._mails: dict[str, list[Message]] = {}
        self._lock = threading.Lock()
        self._controller = Controller(self, hostname=LOOPBACK, port=free_port(0))

    @property
    def url(self) -> str:
        """For SMTP_URL."""
        return f"smtp://{LOOPBACK}:{self._controller.port}"

    def __enter__(self) -> "Mailbox":
        self._controller.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._controller.stop()

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: list[str]) -> str:
        """Refuse whom to refuse."""
        if refusal := self.refusals.get(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        """Keep the mail."""
        mail = BytesParser().parsebytes(envelope.original_content)
        with self._lock:
            for recipient in envelope.rcpt_tos:
                self._mails.setdefault(recipient, []).append(mail)
        return "250 OK"

    def mails(self, email: str) -> list[Message]:
        """All mail to an address, in order of arrival."""
        with self._lock:
            return list(self._mails.get(email, []))

    def codes(self, email: str) -> list[str]:
        """The codes that were mailed to an address, in order of arrival."""
        return [code_in(mail) for mail in self.mails(email)]


def code_in(mail: Message) -> str:
    """The code that a mail tells."""
    [code] = CODE.findall(mail.get_payload())
    return code
