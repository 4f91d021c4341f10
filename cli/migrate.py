"""Bring a database to this version's schema, create its lanes, and give it its first exchange rates."""

import argparse
import sys

import sqlalchemy as sa
from alembic import command

from core import db, lanes, privileges, rates, settings

CONNECT_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options: DATABASE_URL and LANES come from the environment."""


def main(_arguments: argparse.Namespace) -> int:
    """Migrate, waiting a while for a database that is just starting."""
    configuration = settings.load()
    engine = db.engine(configuration.database_url, "migrate", 1)
    db.wait_for(engine, CONNECT_SECONDS)
    migrate(engine, configuration.lanes, configuration.api_role)
    print("The database has this version's schema.")
    return 0


def migrate(engine: sa.Engine, lane_count: int, api_role: str = privileges.API_ROLE) -> None:
    """Run what is missing of the migrations in one transaction, and say what the API may do."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7238001)")  # two at once: one waits
        config = db.migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        lanes.ensure(connection, lane_count)
        rates.load_snapshot_if_empty(connection)
        privileges.grant(connection, api_role)
    sys.stdout.flush()
