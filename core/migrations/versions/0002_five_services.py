"""Services on sale and purchases, rates, e-mail codes, counted attempts."""

from alembic import op

revision = "0002"
down_revision = "0001"

SCHEMA = """
ALTER TABLE users ADD COLUMN email_confirmed_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE operations
    ADD COLUMN service_id UUID,
    ADD COLUMN price BIGINT,
    ADD COLUMN price_currency TEXT,
    ADD COLUMN rate NUMERIC,
    ADD COLUMN rate_date DATE,
    ADD CONSTRAINT operations_purchase_has_service CHECK (
        (type = 'purchase') = (service_id IS NOT NULL) AND (type = 'purchase') = (price IS NOT NULL)
        AND (type = 'purchase') = (price_currency IS NOT NULL));

CREATE TABLE services (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    price BIGINT NOT NULL,
    currency TEXT NOT NULL,
    active BOOLEAN DEFAULT 'true' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT services_price_positive CHECK (price > 0)
);

CREATE TABLE purchases (
    user_id UUID NOT NULL,
    service_id UUID NOT NULL,
    operation_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT purchases_user_id_service_id_key PRIMARY KEY (user_id, service_id),
    FOREIGN KEY(user_id) REFERENCES users (id),
    FOREIGN KEY(service_id) REFERENCES services (id)
);

CREATE INDEX purchases_created_at ON purchases (created_at);

CREATE TABLE rates (
    currency TEXT NOT NULL,
    rate_date DATE NOT NULL,
    rubles NUMERIC NOT NULL,
    source TEXT NOT NULL,
    loaded_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT rates_currency_rate_date_key PRIMARY KEY (currency, rate_date),
    CONSTRAINT rates_rubles_positive CHECK (rubles > 0)
);

CREATE TABLE email_codes (
    id UUID NOT NULL,
    email TEXT NOT NULL,
    code_hash BYTEA,
    wrong_tries INTEGER DEFAULT '0' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    spent_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);

CREATE INDEX email_codes_email ON email_codes (lower(email), created_at);

CREATE TABLE attempts (
    key TEXT NOT NULL,
    count INTEGER NOT NULL,
    window_ends_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (key)
);

CREATE TRIGGER users_kept_for_ever BEFORE DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION refuse_change('users are kept for ever');

CREATE TRIGGER users_not_truncated BEFORE TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('users are kept for ever');

CREATE TRIGGER accounts_kept_for_ever BEFORE DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change('accounts are kept for ever');

CREATE TRIGGER accounts_not_truncated BEFORE TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('accounts are kept for ever');
"""


def upgrade() -> None:
    """Create them."""
    op.get_bind().exec_driver_sql(SCHEMA)
