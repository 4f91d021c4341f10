"""One's own profile; and all users, for administrators and auditors."""

from typing import Any
from uuid import UUID

import falcon
import msgspec

from api.auth import EVERYONE, allowed
from api.dependencies import Dependencies
from api.requests import read_json, read_query
from api.responses import send, send_tagged
from api.schemas import ProfileChange, UserChange, UsersQuery
from core import users
from core.identity import get_user

READERS = ("admin", "auditor")


class Users:
    """`/v1/users/me`, `/v1/users` and `/v1/users/{id}`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    @allowed(*EVERYONE)
    def on_get_me(self, request: falcon.Request, response: falcon.Response) -> None:
        """The caller's profile."""
        with self.dependencies.reader.connect() as connection:
            row = get_user(connection, request.context.caller.id)
        send_tagged(request, response, users.profile(row))

    @allowed(*EVERYONE)
    def on_patch_me(self, request: falcon.Request, response: falcon.Response) -> None:
        """Change the caller's profile; neither the role nor anything else that is not a field of it."""
        changes = named_fields(read_json(request, ProfileChange))
        with self.dependencies.engine.begin() as connection:
            row = users.change(connection, request.context.caller.id, changes)
        send(response, users.profile(row))

    @allowed(*READERS)
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """All users, a page at a time."""
        query: UsersQuery = read_query(request, UsersQuery)
        with self.dependencies.reader.connect() as connection:
            rows, next_cursor = users.page(connection, query.search, query.limit, query.cursor)
        send(response, {"items": [users.full_profile(row) for row in rows], "next_cursor": next_cursor})
        if next_cursor:
            following = dict(request.params) | {"cursor": next_cursor}
            response.append_link(f"/v1/users{falcon.to_query_str(following)}", "next")

    @allowed(*READERS)
    def on_get_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """One user."""
        with self.dependencies.reader.connect() as connection:
            row = get_user(connection, str(id))
        send_tagged(request, response, users.full_profile(row))

    @allowed("admin")
    def on_patch_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Change a user: the profile, the role, whether the user is disabled."""
        changes = named_fields(read_json(request, UserChange))
        with self.dependencies.engine.begin() as connection:
            row = users.change(connection, str(id), changes)
        send(response, users.full_profile(row))

    @allowed("admin")
    def on_delete_one(self, _request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Disable a user, whose sessions end at once; the ledger keeps what the user did."""
        with self.dependencies.engine.begin() as connection:
            users.change(connection, str(id), {"disabled": True})
        response.status = falcon.HTTP_204


def named_fields(change: ProfileChange) -> dict[str, Any]:
    """The fields that the body names."""
    fields = msgspec.structs.asdict(change)
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}
