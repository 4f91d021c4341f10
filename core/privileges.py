"""What the API may do in the database: much less than its owner, who migrates and applies.

The API connects as everybody else does, and takes on the role API_ROLE. Under it nothing can change a balance, an
outcome or an entry, delete an operation, or run DDL, whatever a request may talk the API into.
"""

import sqlalchemy as sa

API_ROLE = "kassa_api"

MAKE = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{API_ROLE}') THEN
        CREATE ROLE {API_ROLE} NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, '{API_ROLE}', 'MEMBER') THEN
        GRANT {API_ROLE} TO CURRENT_USER;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database's migration was first
END $$
"""
GRANTS = f"""
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {API_ROLE};
GRANT USAGE ON SCHEMA public TO {API_ROLE};
GRANT SELECT ON ALL TABLES IN SCHEMA public TO {API_ROLE};
GRANT SELECT ON SEQUENCE apply_no TO {API_ROLE};
GRANT INSERT ON users, accounts, operations, batches, services, sessions, refresh_tokens, email_codes, attempts
   TO {API_ROLE};
GRANT UPDATE ON services, sessions, refresh_tokens, email_codes, attempts TO {API_ROLE};
GRANT UPDATE (username, email, email_confirmed_at, role, disabled_at, password_hash, first_name, last_name, bio,
              next_seq, turn) ON users TO {API_ROLE};
GRANT UPDATE (cancel_requested) ON operations TO {API_ROLE};
GRANT UPDATE (id) ON lanes TO {API_ROLE};  -- to lock them; nothing refers to another id
GRANT DELETE ON attempts TO {API_ROLE}
"""


def grant(connection: sa.Connection) -> None:
    """Make the role where it is missing, and give it exactly this. Raises ProgrammingError where one may not."""
    connection.exec_driver_sql(MAKE)
    for statement in GRANTS.split(";\n"):
        connection.exec_driver_sql(statement)
