"""Step 1 of the story: every route of Kassa's HTTP contract, on one screen.

gunicorn starts it: `gunicorn --config api/gunicorn.conf.py 'api.app:create_app()'`.
"""

import sys

import falcon
import sqlalchemy as sa

from api import errors
from api.accounts import Accounts
from api.auth import Auth
from api.dependencies import Dependencies
from api.health import Health
from api.middleware import RequestLog
from api.operations import Operations
from core import db, settings, telemetry
from core.errors import NotReady


def build(dependencies: Dependencies) -> falcon.App:
    """The WSGI application on given dependencies."""
    app = falcon.App(middleware=[RequestLog()])
    app.req_options.strip_url_path_trailing_slash = False
    app.req_options.keep_blank_qs_values = True
    app.req_options.auto_parse_qs_csv = False
    errors.install(app)

    auth = Auth(dependencies)
    app.add_route("/v1/auth/register", auth, suffix="register")
    app.add_route("/v1/auth/login", auth, suffix="login")
    app.add_route("/v1/auth/refresh", auth, suffix="refresh")
    app.add_route("/v1/auth/logout", auth, suffix="logout")

    accounts = Accounts(dependencies)
    app.add_route("/v1/accounts", accounts)
    app.add_route("/v1/accounts/{id:uuid}", accounts, suffix="one")
    app.add_route("/v1/balance", accounts, suffix="balance")

    operations = Operations(dependencies)
    app.add_route("/v1/operations", operations)
    app.add_route("/v1/operations/{id:uuid}", operations, suffix="one")

    health = Health(dependencies)
    app.add_route("/health/live", health, suffix="live")
    app.add_route("/health/ready", health, suffix="ready")
    app.add_route("/metrics", health, suffix="metrics")
    return app


def create_app() -> falcon.App:
    """The application of an API process, from the environment; it does not start on an unsafe database."""
    try:
        configuration = settings.load()
        telemetry.configure(configuration.log_level)
        dependencies = Dependencies.make(configuration)
        db.require_ready(dependencies.engine, configuration.lanes)
    except (settings.SettingsError, NotReady, sa.exc.DBAPIError) as error:
        print(f"kassa api: {error}", file=sys.stderr, flush=True)
        sys.exit(3)  # gunicorn's own "worker failed to boot": the master stops, too
    return build(dependencies)
