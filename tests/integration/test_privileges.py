"""Owners of all kinds can migrate, and the API can then take on its role, or none."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from cli.migrate import migrate
from cli.stack import Stack
from core import db
from core.privileges import NO_ROLE
from tests.conftest import create_database

numbers = itertools.count(1)

Own = Callable[[str], str]


@pytest.fixture
def superuser(servers: Stack) -> Iterator[sa.Engine]:
    made = db.autocommit(db.engine(servers.environment["DATABASE_URL"], "tests", 1))
    yield made
    made.dispose()


@pytest.fixture
def own(servers: Stack, superuser: sa.Engine) -> Own:
    """Makes a database with an owner of its own, who has this attribute. Returns the owner's URL."""

    def create(attribute: str) -> str:
        name = f"test_owner_{next(numbers)}"
        url = sa.make_url(create_database(servers, name))
        with superuser.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'owner' {attribute}")
            connection.exec_driver_sql(f"ALTER DATABASE {name} OWNER TO {name}")
        return url.set(username=name, password="owner").render_as_string(hide_password=False)

    return create


def migrated(url: str, role: str) -> str:
    """Migrate as the owner. Returns whom the API is then."""
    owner, api = db.engine(url, "tests", 1), db.engine(url, "tests", 1, role=role)
    try:
        migrate(owner, 1, role)
        with api.connect() as connection:
            return connection.exec_driver_sql("SELECT current_user").scalar_one()
    finally:
        owner.dispose()
        api.dispose()


def test_an_owner_who_may_make_roles_makes_one_and_may_take_it_on(own: Own):
    role = f"kassa_api_{next(numbers)}"
    assert migrated(own("CREATEROLE"), role) == role


def test_an_owner_who_may_not_make_roles_is_given_one(own: Own, superuser: sa.Engine):
    url, role = own("NOCREATEROLE"), f"kassa_api_{next(numbers)}"
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied to create role"):
        migrated(url, role)
    with superuser.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT {role} TO {sa.make_url(url).username}")
    assert migrated(url, role) == role


def test_or_does_without(own: Own):
    url = own("NOCREATEROLE")
    assert migrated(url, NO_ROLE) == sa.make_url(url).username


def test_or_has_a_login_of_its_own_from_which_nothing_leads_back(own: Own, superuser: sa.Engine):
    url, role = own("CREATEROLE"), f"kassa_api_{next(numbers)}"
    migrated(url, role)
    with superuser.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}_login LOGIN PASSWORD 'api' IN ROLE {role}")
    own_url = sa.make_url(url).set(username=f"{role}_login", password="api")
    api = db.engine(own_url.render_as_string(hide_password=False), "tests", 1, role=NO_ROLE)
    try:
        db.require_ready(api, 1)
        with api.connect() as connection:
            connection.exec_driver_sql("SET ROLE NONE")
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                connection.exec_driver_sql("UPDATE accounts SET balance = 1")
    finally:
        api.dispose()
