"""The spine: users and their sessions, accounts, operations, entries, lanes."""

from alembic import op

revision = "0001"
down_revision = None

SCHEMA = """
CREATE SEQUENCE apply_no;

CREATE TABLE entries (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    operation_id UUID NOT NULL,
    account_id UUID NOT NULL,
    account_version BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    balance_after BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT entries_account_id_account_version_key PRIMARY KEY (account_id, account_version),
    CONSTRAINT entries_amount_not_zero CHECK (amount <> 0),
    CONSTRAINT entries_account_version_positive CHECK (account_version > 0)
);

CREATE INDEX entries_operation_id ON entries USING brin (operation_id);

CREATE TABLE lanes (
    id INTEGER NOT NULL,
    turn BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id)
)
 WITH (fillfactor = 10);

CREATE TABLE operations (
    id UUID NOT NULL,
    user_id UUID NOT NULL,
    requested_by UUID NOT NULL,
    seq BIGINT NOT NULL,
    lane INTEGER NOT NULL,
    turn BIGINT NOT NULL,
    type TEXT NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL,
    account_id UUID NOT NULL,
    counterparty_id UUID,
    ref_operation_id UUID,
    amount BIGINT NOT NULL,
    currency TEXT NOT NULL,
    comment TEXT,
    metadata JSONB,
    idempotency_key TEXT,
    request_hash BYTEA NOT NULL,
    request_id TEXT,
    cancel_requested BOOLEAN DEFAULT 'false' NOT NULL,
    rejection JSONB,
    apply_no BIGINT,
    account_version BIGINT,
    counterparty_version BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT operations_user_id_seq_key UNIQUE (user_id, seq),
    CONSTRAINT operations_user_id_idempotency_key_key UNIQUE (user_id, idempotency_key),
    CONSTRAINT operations_amount_positive CHECK (amount > 0),
    CONSTRAINT operations_seq_positive CHECK (seq > 0),
    CONSTRAINT operations_status_known CHECK (status IN ('pending', 'applied', 'rejected', 'canceled', 'failed')),
    CONSTRAINT operations_finished_has_apply_no CHECK ((status <> 'pending') = (apply_no IS NOT NULL) AND (status <> 'pending') = (finished_at IS NOT NULL)),
    CONSTRAINT operations_rejected_has_reason CHECK ((status = 'rejected') = (rejection IS NOT NULL)),
    CONSTRAINT operations_applied_has_entry CHECK ((status = 'applied') = (account_version IS NOT NULL))
)
 WITH (fillfactor = 80);

CREATE INDEX operations_counterparty_id_created_at ON operations (counterparty_id, created_at, id) WHERE counterparty_id IS NOT NULL;

CREATE INDEX operations_pending ON operations (lane, turn, id) WHERE status = 'pending';

CREATE INDEX operations_user_id_created_at ON operations (user_id, created_at, id);

CREATE TABLE users (
    id UUID NOT NULL,
    username TEXT NOT NULL,
    email TEXT,
    role TEXT DEFAULT 'user' NOT NULL,
    lane INTEGER NOT NULL,
    next_seq BIGINT DEFAULT '0' NOT NULL,
    done_seq BIGINT DEFAULT '0' NOT NULL,
    turn BIGINT DEFAULT '0' NOT NULL,
    password_hash TEXT,
    first_name TEXT DEFAULT '' NOT NULL,
    last_name TEXT DEFAULT '' NOT NULL,
    bio TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT users_done_seq_within_accepted CHECK (0 <= done_seq AND done_seq <= next_seq),
    CONSTRAINT users_role_known CHECK (role IN ('user', 'service', 'auditor', 'admin')),
    FOREIGN KEY(lane) REFERENCES lanes (id)
)
 WITH (fillfactor = 70);

CREATE UNIQUE INDEX users_email_key ON users (lower(email));

CREATE UNIQUE INDEX users_username_key ON users (lower(username));

CREATE TABLE accounts (
    id UUID NOT NULL,
    user_id UUID,
    kind TEXT NOT NULL,
    name TEXT DEFAULT '' NOT NULL,
    currency TEXT NOT NULL,
    lane INTEGER,
    is_default BOOLEAN DEFAULT 'false' NOT NULL,
    main_account_id UUID,
    balance BIGINT DEFAULT '0' NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT accounts_balance_not_negative CHECK (balance >= 0 OR kind = 'world'),
    CONSTRAINT accounts_kind_known CHECK (kind IN ('main', 'hold', 'world', 'revenue')),
    CONSTRAINT accounts_owner_or_lane CHECK (CASE WHEN kind IN ('main', 'hold') THEN user_id IS NOT NULL AND lane IS NULL ELSE user_id IS NULL AND lane IS NOT NULL END),
    FOREIGN KEY(user_id) REFERENCES users (id),
    FOREIGN KEY(lane) REFERENCES lanes (id),
    FOREIGN KEY(main_account_id) REFERENCES accounts (id)
)
 WITH (fillfactor = 50);

CREATE UNIQUE INDEX accounts_kind_lane_currency_key ON accounts (kind, lane, currency);

CREATE UNIQUE INDEX accounts_main_account_id_key ON accounts (main_account_id) WHERE main_account_id IS NOT NULL;

CREATE UNIQUE INDEX accounts_user_currency_name_key ON accounts (user_id, currency, name) WHERE kind = 'main';

CREATE UNIQUE INDEX accounts_user_default_key ON accounts (user_id) WHERE is_default;

CREATE TABLE sessions (
    id UUID NOT NULL,
    user_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    FOREIGN KEY(user_id) REFERENCES users (id)
);

CREATE INDEX sessions_user_id ON sessions (user_id);

CREATE TABLE refresh_tokens (
    token_hash BYTEA NOT NULL,
    session_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    spent_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (token_hash),
    FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
);

CREATE INDEX refresh_tokens_session_id ON refresh_tokens (session_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change('entries are append-only');

CREATE TRIGGER entries_not_truncated BEFORE TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('entries are append-only');

CREATE TRIGGER operations_finished_for_ever BEFORE UPDATE ON operations
    FOR EACH ROW WHEN (OLD.status <> 'pending')
    EXECUTE FUNCTION refuse_change('a finished operation never changes');

CREATE TRIGGER operations_kept_for_ever BEFORE DELETE ON operations
    FOR EACH ROW EXECUTE FUNCTION refuse_change('operations are kept for ever');

CREATE TRIGGER operations_not_truncated BEFORE TRUNCATE ON operations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('operations are kept for ever');
"""


def upgrade() -> None:
    """Create everything."""
    op.get_bind().exec_driver_sql(SCHEMA.replace("%", "%%"))  # psycopg2 reads a single one as a mark
