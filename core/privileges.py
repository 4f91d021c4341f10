"""What the API may do in the database: much less than its owner, who migrates and applies.

The API connects as everybody else does, and takes on the role API_ROLE. Under it no statement changes a balance, an
outcome or an entry, deletes an operation, or runs DDL. It is no wall against whoever can run any statement at all: the
login is still the owner's, and `SET ROLE NONE` goes back to it.
"""

import sqlalchemy as sa

API_ROLE = "kassa_api"
NO_ROLE = "none"  # the API stays whom DATABASE_URL names

MAKE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database's migration was first
END $$
"""
# Since PostgreSQL 16 whoever makes a role is a member that may not take it on, unless a superuser.
TAKE_ON = """
DO $$ BEGIN
    IF NOT pg_has_role(current_user, '{role}',
                       CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        GRANT {role} TO CURRENT_USER;
    END IF;
END $$
"""
GRANTS = """
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role};
GRANT USAGE ON SCHEMA public TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
GRANT SELECT ON SEQUENCE apply_no TO {role};
GRANT INSERT ON queue, batches, services, sessions, refresh_tokens, email_codes, attempts TO {role};
-- What a new row begins with (balances, outcomes, counters) is the table's own to say.
GRANT INSERT (id, username, email, email_confirmed_at, password_hash, lane) ON users TO {role};
GRANT INSERT (user_id) ON progress TO {role};
GRANT INSERT (id, user_id, kind, name, currency, is_default, lane) ON accounts TO {role};
GRANT INSERT (id, user_id, requested_by, seq, lane, type, account_id, counterparty_id, amount, currency, comment,
              metadata, idempotency_key, request_hash, request_id, service_id, price, price_currency, rate, rate_date,
              created_at, batch_id, batch_index) ON operations TO {role};
GRANT UPDATE ON services, sessions, refresh_tokens, email_codes, attempts TO {role};
GRANT UPDATE (username, email, email_confirmed_at, role, disabled_at, password_hash, first_name, last_name, bio,
              next_seq, turn) ON users TO {role};
GRANT UPDATE ON load TO {role};
GRANT UPDATE (cancel_requested) ON operations TO {role};
GRANT UPDATE (id) ON lanes TO {role};  -- to lock them; no user's lane can lose its id
GRANT DELETE ON attempts TO {role}
"""


def grant(connection: sa.Connection, role: str = API_ROLE) -> None:
    """Make the role where it is missing, and give it exactly this. NO_ROLE makes none.

    role: an identifier, as core/settings.py lets through. Raises ProgrammingError where one may not.
    """
    if role == NO_ROLE:
        return
    for statement in (MAKE, TAKE_ON, *GRANTS.split(";\n")):
        connection.exec_driver_sql(statement.format(role=role))
