"""Services on sale, and what they earned."""

from datetime import UTC, date, datetime
from uuid import UUID

import falcon
import msgspec

from api.auth import allowed
from api.dependencies import Dependencies
from api.requests import read_json, read_query
from api.responses import send, send_csv, wants_csv
from api.schemas import NewService, RevenueQuery, ServiceChange, ServicesQuery
from core import services
from core.errors import Refusal

REVENUE_COLUMNS = ("service_id", "service", "currency", "purchases", "revenue", "revenue_decimal")


class Services:
    """`/v1/services` and `/v1/services/{id}`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """What is on sale, for everyone."""
        query: ServicesQuery = read_query(request, ServicesQuery)
        with self.dependencies.reader.connect() as connection:
            rows, following = services.page(
                connection,
                active=query.active,
                currency=query.currency,
                limit=query.limit,
                after=str(query.cursor) if query.cursor else None,
            )
        send(response, {"items": [services.document(row) for row in rows], "next_cursor": following})

    def on_get_one(self, _request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """One service, for everyone."""
        with self.dependencies.reader.connect() as connection:
            send(response, services.document(services.get(connection, str(id))))

    @allowed("admin")
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Put a service on sale."""
        asked: NewService = read_json(request, NewService)
        with self.dependencies.reader.connect() as connection:
            row = services.create(connection, msgspec.structs.asdict(asked))
        send(response, services.document(row), falcon.HTTP_201)
        response.set_header("Location", f"/v1/services/{row.id}")

    @allowed("admin")
    def on_patch_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Change what is said of a service; operations that were accepted keep their price."""
        asked: ServiceChange = read_json(request, ServiceChange)
        fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
        with self.dependencies.reader.connect() as connection:
            send(response, services.document(services.change(connection, str(id), fields)))

    @allowed("admin")
    def on_delete_one(self, _request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Take a service off sale; it stays readable, since purchases refer to it."""
        with self.dependencies.reader.connect() as connection:
            services.change(connection, str(id), {"active": False})
        response.status = falcon.HTTP_204

    @allowed("auditor", "admin")
    def on_get_revenue(self, request: falcon.Request, response: falcon.Response) -> None:
        """Revenue by service of a month, as JSON or CSV."""
        query: RevenueQuery = read_query(request, RevenueQuery)
        first = month_of(query.month) if query.month else datetime.now(UTC).date().replace(day=1)
        until = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        with self.dependencies.reader.connect() as connection:
            items = services.revenue(connection, first, until)
        month = first.isoformat()[: len("2026-11")]
        if wants_csv(request):
            rows = ([item[name] for name in REVENUE_COLUMNS] for item in items)
            send_csv(response, f"revenue-{month}.csv", REVENUE_COLUMNS, [rows])
        else:
            send(response, {"month": month, "items": items})


def month_of(text: str) -> date:
    """The first day of a month such as 2026-11. Raises Refusal validation_failed."""
    try:
        first = date.fromisoformat(f"{text}-01")
        first.replace(year=first.year + 1)
    except ValueError:
        detail = "A month is written like 2026-11."
        error = {"parameter": "month", "code": "wrong_format", "detail": detail}
        raise Refusal("validation_failed", detail, errors=[error]) from None
    return first
