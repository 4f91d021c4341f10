"""Step 1 of the story: every route of Kassa's HTTP contract, on one screen.

gunicorn starts it: `gunicorn --config api/gunicorn.conf.py 'api.app:create_app()'`.
"""

import sys

import falcon
import sqlalchemy as sa

from api import docs, errors
from api.accounts import Accounts
from api.auth import Auth
from api.batches import Batches
from api.codes import Codes
from api.dependencies import Dependencies
from api.health import Health
from api.middleware import RequestLog
from api.openapi import App
from api.operations import Operations
from api.services import Services
from api.statements import Statements
from api.users import Users
from core import db, settings, telemetry
from core.errors import NotReady


def build(dependencies: Dependencies) -> falcon.App:
    """The WSGI application on given dependencies."""
    app = App(middleware=[RequestLog()])
    app.req_options.strip_url_path_trailing_slash = False
    app.req_options.keep_blank_qs_values = True
    app.req_options.auto_parse_qs_csv = False
    errors.install(app)

    auth = Auth(dependencies)
    app.add_route("/v1/auth/register", auth, suffix="register")
    app.add_route("/v1/auth/login", auth, suffix="login")
    app.add_route("/v1/auth/refresh", auth, suffix="refresh")
    app.add_route("/v1/auth/logout", auth, suffix="logout")
    app.add_route("/v1/auth/logout/everywhere", auth, suffix="logout_everywhere")
    app.add_route("/v1/auth/password", auth, suffix="password")
    codes = Codes(dependencies)
    app.add_route("/v1/auth/email", codes, suffix="email")
    app.add_route("/v1/auth/token", codes, suffix="token")

    users = Users(dependencies)
    app.add_route("/v1/users", users)
    app.add_route("/v1/users/me", users, suffix="me")
    app.add_route("/v1/users/{id:uuid}", users, suffix="one")

    accounts = Accounts(dependencies)
    app.add_route("/v1/accounts", accounts)
    app.add_route("/v1/accounts/{id:uuid}", accounts, suffix="one")
    app.add_route("/v1/accounts/{id:uuid}/statement", Statements(dependencies))
    app.add_route("/v1/balance", accounts, suffix="balance")

    operations = Operations(dependencies)
    app.add_route("/v1/operations", operations)
    app.add_route("/v1/operations/{id:uuid}", operations, suffix="one")
    batches = Batches(dependencies)
    app.add_route("/v1/operations/batch", batches)
    app.add_route("/v1/batches/{id:uuid}", batches, suffix="one")

    on_sale = Services(dependencies)
    app.add_route("/v1/services", on_sale)
    app.add_route("/v1/services/{id:uuid}", on_sale, suffix="one")
    app.add_route("/v1/reports/revenue", on_sale, suffix="revenue")

    health = Health(dependencies)
    app.add_route("/health/live", health, suffix="live")
    app.add_route("/health/ready", health, suffix="ready")
    app.add_route("/metrics", health, suffix="metrics")

    docs.install(app)
    return app


def create_app() -> falcon.App:
    """The application of an API process, from the environment; it does not start on an unsafe database."""
    try:
        configuration = settings.load()
        telemetry.configure(configuration.log_level)
        dependencies = Dependencies.make(configuration)
        db.wait_for(dependencies.engine)
        db.require_ready(dependencies.engine, configuration.lanes)
    except (settings.SettingsError, NotReady, sa.exc.DBAPIError) as error:
        print(f"kassa api: {error}", file=sys.stderr, flush=True)
        sys.exit(3)  # gunicorn's own "worker failed to boot": the master stops, too
    return build(dependencies)
