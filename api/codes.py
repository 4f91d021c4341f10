"""Logging in by a code that is mailed."""

import falcon

from api.auth import caller_if_any, client_address, send_secret
from api.dependencies import Dependencies
from api.requests import read_json
from api.responses import send
from api.schemas import CodeCredentials, CodeWish
from core import codes

ON_ITS_WAY = "If mail can be sent there, a code is on its way. It works once, for 10 minutes."


class Codes:
    """`/v1/auth/email` and `/v1/auth/token`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    def on_post_email(self, request: falcon.Request, response: falcon.Response) -> None:
        """Have a code mailed. The answer is the same whether anybody has the address or not."""
        asked: CodeWish = read_json(request, CodeWish)
        with self.dependencies.reader.connect() as connection:
            code_id = codes.ask(connection, asked.email, client_address(self.dependencies.settings, request))
        if code_id is not None:
            self.dependencies.doorbell.announce("mail_code", code_id)
        send(response, {"detail": ON_ITS_WAY}, falcon.HTTP_202)

    def on_post_token(self, request: falcon.Request, response: falcon.Response) -> None:
        """Exchange a code for a session's tokens, and make the user on the first confirmation.

        An address that a user gave at registration or in the profile is confirmed for that user if the user's own
        access token comes along. Otherwise it is taken from the profile, and goes to a new user.
        """
        asked: CodeCredentials = read_json(request, CodeCredentials)
        address = client_address(self.dependencies.settings, request)
        caller = caller_if_any(self.dependencies, request)
        tokens = codes.confirm(
            self.dependencies.engine,
            self.dependencies.settings,
            asked.email,
            asked.confirmation_code,
            address,
            caller.id if caller else None,
        )
        send_secret(response, tokens)
