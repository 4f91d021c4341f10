"""The admin pages as an ASGI application: what is served, in which order it is checked, and on what.

gunicorn starts it: `gunicorn --config admin/gunicorn.conf.py 'admin.app:create_app()'`.
"""

import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa
import structlog
from sqladmin import Admin
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from admin.changes import NotChanged
from admin.guard import Guard
from admin.login import Login
from admin.views import PAGES
from core import db, settings, telemetry
from core.errors import NotReady, Refusal

CONNECTIONS_MAX = 5
TEMPLATES = Path(__file__).parent / "templates"
NOT_FOUND = "There is no such page."
TOO_LONG = "The database does not answer, or took too long. Try again; where you searched, search for less."
DEFECT = "A defect of ours, which was logged."

log = structlog.get_logger("kassa.admin")


def build(engine: sa.Engine, configuration: settings.Settings) -> Starlette:
    """The application on a given database. The library reads in read-only transactions; our own code writes."""
    app = Starlette(routes=[Route("/health/live", live)], middleware=[Middleware(Guard)])
    admin = Admin(
        app,
        session_maker=sessionmaker(engine.execution_options(postgresql_readonly=True), class_=Session),
        base_url="",
        title="Kassa",
        favicon_url="data:,",  # none, and browsers need not ask
        templates_dir=str(TEMPLATES),
        authentication_backend=Login(engine, configuration),
    )
    for page in PAGES:
        admin.add_view(page)
    admin.admin.state.engine = engine

    def error_page(status: int, message: str) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def answer(request: Request, error: Exception) -> Response:
            if status >= 500:  # gunicorn's asgi worker does not log what the application answered itself
                log.error("request_failed", path=request.url.path, exc_info=error)
            context = {"status_code": status, "message": message}
            return await admin.templates.TemplateResponse(request, "sqladmin/error.html", context, status)

        return answer

    admin.admin.exception_handlers |= {
        sa.exc.DataError: error_page(404, NOT_FOUND),  # an id in the address that is none
        sa.exc.OperationalError: error_page(503, TOO_LONG),
        sa.exc.TimeoutError: error_page(503, TOO_LONG),
        Exception: error_page(500, DEFECT),
    }
    return app


async def live(_request: Request) -> Response:
    """Alive: it answers. The database was there at the start, or this process would not run."""
    return PlainTextResponse("alive\n")


def is_no_refusal(record: logging.LogRecord) -> bool:
    """Keep a refusal, which the page shows to whoever asked, out of the log of errors; ours or the database's."""
    return not (record.exc_info and isinstance(record.exc_info[1], Refusal | NotChanged))


def create_app() -> Starlette:
    """The application of the admin process, from the environment; it does not start on an unsafe database."""
    try:
        configuration = settings.load()
        telemetry.configure(configuration.log_level)
        engine = db.engine(configuration.database_url, "admin", CONNECTIONS_MAX, scans=True)
        db.wait_for(engine)
        db.require_ready(engine, configuration.lanes)
    except (settings.SettingsError, NotReady, sa.exc.DBAPIError) as error:
        print(f"kassa admin: {error}", file=sys.stderr, flush=True)
        sys.exit(3)  # gunicorn's own "worker failed to boot": the master stops, too
    logging.getLogger("sqladmin.application").addFilter(is_no_refusal)
    return build(engine, configuration)
