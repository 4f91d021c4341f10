"""The schema, with a sentence for each rule that the database itself keeps.

Operators and checkers write SQL against these names. `core/migrations` brings a database here; `make check` holds
the two together. New columns go at the end of a table, as a migration adds them there.

The hot tables (`operations`, `entries`) carry no foreign keys: each would cost a look-up per row in the drain, every
row is written by a statement that has just read or locked what it refers to, users and accounts are never deleted,
and `core/reconcile.py` looks for orphans.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.event import listen
from sqlalchemy.schema import DDL

metadata = MetaData()
Id = Uuid(as_uuid=False)  # ids travel as strings; nothing computes with them
NOW = text("clock_timestamp()")


def timestamp(name: str, *, nullable: bool = False) -> Column:
    """A moment in UTC with microseconds; set by the database's clock unless it may be absent."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=None if nullable else NOW)


lanes = Table(
    "lanes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # The fair queue's clock: the turn of the last operation applied on this lane. See core/acceptance.py.
    Column("turn", BigInteger, nullable=False, server_default="0"),
    # The row is the lane's lock and is rewritten by every drain: room on the page keeps each rewrite in place.
    postgresql_with={"fillfactor": 10},
)

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("username", Text, nullable=False),
    Column("email", Text),
    Column("role", Text, nullable=False, server_default="user"),
    Column("lane", Integer, ForeignKey("lanes.id"), nullable=False),
    Column("next_seq", BigInteger, nullable=False, server_default="0"),  # how many operations were accepted
    Column("turn", BigInteger, nullable=False, server_default="0"),  # the turn of the last accepted operation
    Column("password_hash", Text),
    Column("first_name", Text, nullable=False, server_default=""),
    Column("last_name", Text, nullable=False, server_default=""),
    Column("bio", Text, nullable=False, server_default=""),
    timestamp("created_at"),
    timestamp("disabled_at", nullable=True),
    timestamp("email_confirmed_at", nullable=True),  # when a code that was mailed there came back
    CheckConstraint("next_seq >= 0", name="users_next_seq_not_negative"),
    CheckConstraint("role IN ('user', 'service', 'auditor', 'admin')", name="users_role_known"),
    # Names and addresses are one user's whatever their capitals.
    Index("users_username_key", text("lower(username)"), unique=True),
    Index("users_email_key", text("lower(email)"), unique=True),
    postgresql_with={"fillfactor": 70},
)

# How far each user's operations are finished. It is a table of its own, so that who applies a user's operations, and
# moves on here, and who accepts them, and holds the user's row meanwhile, never wait for each other.
progress = Table(
    "progress",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("done_seq", BigInteger, nullable=False, server_default="0"),  # length of the finished prefix
    CheckConstraint("done_seq >= 0", name="progress_done_seq_not_negative"),
    postgresql_with={"fillfactor": 50},
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    timestamp("created_at"),
    timestamp("expires_at"),
    timestamp("ended_at", nullable=True),
    Index("sessions_user_id", "user_id"),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),  # SHA-256; the token itself is nowhere
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    timestamp("created_at"),
    timestamp("spent_at", nullable=True),
    Index("refresh_tokens_session_id", "session_id"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id")),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False, server_default=""),
    Column("currency", Text, nullable=False),
    Column("lane", Integer, ForeignKey("lanes.id")),
    Column("is_default", Boolean, nullable=False, server_default="false"),
    Column("main_account_id", Id, ForeignKey("accounts.id")),  # of a hold account: the account it holds for
    Column("balance", BigInteger, nullable=False, server_default="0"),  # minor units
    Column("version", BigInteger, nullable=False, server_default="0"),  # how many entries the account has
    timestamp("created_at"),
    timestamp("closed_at", nullable=True),
    # Only the world, where money comes from, may owe.
    CheckConstraint("balance >= 0 OR kind = 'world'", name="accounts_balance_not_negative"),
    CheckConstraint("kind IN ('main', 'hold', 'world', 'revenue')", name="accounts_kind_known"),
    # A user's accounts have an owner and no lane of their own; Kassa's own have a lane and no owner.
    CheckConstraint(
        "CASE WHEN kind IN ('main', 'hold') THEN user_id IS NOT NULL AND lane IS NULL"
        " ELSE user_id IS NULL AND lane IS NOT NULL END",
        name="accounts_owner_or_lane",
    ),
    # Opening an account that is there already finds it.
    Index(
        "accounts_user_currency_name_key",
        "user_id",
        "currency",
        "name",
        unique=True,
        postgresql_where=text("kind = 'main'"),
    ),
    Index("accounts_user_default_key", "user_id", unique=True, postgresql_where=text("is_default")),
    Index(
        "accounts_main_account_id_key",
        "main_account_id",
        unique=True,
        postgresql_where=text("main_account_id IS NOT NULL"),
    ),
    # One world and one revenue account for each lane and currency, so that lanes do not wait for each other.
    Index("accounts_kind_lane_currency_key", "kind", "lane", "currency", unique=True),
    # Balances are rewritten all the time: room on the page keeps each rewrite in place and out of the indexes.
    postgresql_with={"fillfactor": 50},
)

operations = Table(
    "operations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, nullable=False),  # in whose order it stands
    Column("requested_by", Id, nullable=False),  # who asked: the user, or a service acting for the user
    Column("seq", BigInteger, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("account_id", Id, nullable=False),
    Column("counterparty_id", Id),
    Column("ref_operation_id", Id),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("comment", Text),
    Column("metadata", JSONB),
    Column("idempotency_key", Text),
    Column("request_hash", LargeBinary, nullable=False),
    Column("request_id", Text),  # of the HTTP request that was accepted; logs carry it through the worker
    Column("cancel_requested", Boolean, nullable=False, server_default="false"),
    Column("rejection", JSONB),
    Column("apply_no", BigInteger),
    Column("account_version", BigInteger),
    Column("counterparty_version", BigInteger),
    timestamp("created_at"),
    timestamp("finished_at", nullable=True),
    # Of a purchase: what was bought, and the price and rate in force when it was accepted.
    Column("service_id", Id),
    Column("price", BigInteger),  # minor units of price_currency
    Column("price_currency", Text),
    Column("rate", Numeric),  # units of the account's currency for one of the price's; NULL where they are the same
    Column("rate_date", Date),
    Column("batch_id", Id),
    Column("batch_index", Integer),
    # A user's operations are numbered in the order of acceptance; two cannot share a place.
    UniqueConstraint("user_id", "seq", name="operations_user_id_seq_key"),
    # However often a client retries, one operation.
    Index(
        "operations_user_id_idempotency_key_key",
        "user_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    CheckConstraint("amount > 0", name="operations_amount_positive"),
    CheckConstraint("seq > 0", name="operations_seq_positive"),
    CheckConstraint(
        "status IN ('pending', 'applied', 'rejected', 'canceled', 'failed')", name="operations_status_known"
    ),
    # A finished operation has its place in the order of application and its moment; a pending one has neither.
    CheckConstraint(
        "(status <> 'pending') = (apply_no IS NOT NULL) AND (status <> 'pending') = (finished_at IS NOT NULL)",
        name="operations_finished_has_apply_no",
    ),
    # A rejected operation says why, and no other does.
    CheckConstraint("(status = 'rejected') = (rejection IS NOT NULL)", name="operations_rejected_has_reason"),
    # A purchase says what was bought and for how much, and no other does.
    CheckConstraint(
        "(type = 'purchase') = (service_id IS NOT NULL) AND (type = 'purchase') = (price IS NOT NULL)"
        " AND (type = 'purchase') = (price_currency IS NOT NULL)",
        name="operations_purchase_has_service",
    ),
    # An applied operation points at the entry of its own account.
    CheckConstraint("(status = 'applied') = (account_version IS NOT NULL)", name="operations_applied_has_entry"),
    # History, a page at a time: one's own, and what others sent.
    Index("operations_user_id_created_at", "user_id", "created_at", "id"),
    Index(
        "operations_counterparty_id_created_at",
        "counterparty_id",
        "created_at",
        "id",
        postgresql_where=text("counterparty_id IS NOT NULL"),
    ),
    # Each row is rewritten once, when it is finished, and no index holds what changes then: with as much room on the
    # page the rewrite nearly always stays in place, and out of all indexes.
    postgresql_with={"fillfactor": 50},
)

# The queue of record: what each lane still has to do, in order. A pending operation stands here, a finished one does
# not. It is a table of its own, so that finishing changes no index of `operations`, and so that a vacuum of what the
# finished leave behind here, which each look at a lane has to pass, takes as long however much history there is.
queue = Table(
    "queue",
    metadata,
    Column("lane", Integer, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("operation_id", Id, nullable=False),
    PrimaryKeyConstraint("lane", "turn", "operation_id", name="queue_lane_turn_operation_id_key"),
    postgresql_with={
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 10000,
        "vacuum_truncate": "false",  # to give pages back it would lock everybody out, again and again
        "vacuum_index_cleanup": "on",  # each look passes its dead entries, however few of the table's pages have any
    },
)

entries = Table(
    "entries",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("operation_id", Id, nullable=False),
    Column("account_id", Id, nullable=False),
    Column("account_version", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),  # minor units; what the account gained (or lost, if negative)
    Column("balance_after", BigInteger, nullable=False),
    timestamp("created_at"),
    # The line number within the account: no two lines share one.
    PrimaryKeyConstraint("account_id", "account_version", name="entries_account_id_account_version_key"),
    CheckConstraint("amount <> 0", name="entries_amount_not_zero"),
    CheckConstraint("account_version > 0", name="entries_account_version_positive"),
    # Nearly free to keep, since operations are applied in about the order in which their ids were made.
    Index("entries_operation_id", "operation_id", postgresql_using="brin"),
)

services = Table(
    "services",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("price", BigInteger, nullable=False),  # minor units
    Column("currency", Text, nullable=False),
    Column("active", Boolean, nullable=False, server_default="true"),
    timestamp("created_at"),
    CheckConstraint("price > 0", name="services_price_positive"),
)

purchases = Table(
    "purchases",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("service_id", Id, ForeignKey("services.id"), nullable=False),
    Column("operation_id", Id, nullable=False),
    timestamp("created_at"),
    # Nobody buys the same service twice.
    PrimaryKeyConstraint("user_id", "service_id", name="purchases_user_id_service_id_key"),
    Index("purchases_created_at", "created_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    Column("requested_by", Id, nullable=False),
    Column("idempotency_key", Text),
    Column("request_hash", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("refused", JSONB, nullable=False),  # the errors of what was not accepted, by place in the batch
    timestamp("created_at"),
    # The least and the greatest id that its operations got: they are found between them, without an index of their own.
    Column("first_operation_id", Id, nullable=False),
    Column("last_operation_id", Id, nullable=False),
    # However often a client retries, one batch. (NULLs do not collide.)
    UniqueConstraint("requested_by", "idempotency_key", name="batches_requested_by_idempotency_key_key"),
)

# How much waits, for the limit of the whole: see core/limits.py.
load = Table(
    "load",
    metadata,
    Column("one", Boolean, primary_key=True, server_default="true"),
    Column("counted", BigInteger, nullable=False, server_default="0"),  # operations that were pending then
    Column("counted_at", DateTime(timezone=True), nullable=False, server_default="1970-01-01 00:00:00+00"),
    Column("count_seconds", Double, nullable=False, server_default="0"),  # that it took to count them
    Column("oldest_seconds", Double, nullable=False, server_default="0"),  # that the oldest had waited then
    Column("let_in", BigInteger, nullable=False, server_default="0"),  # operations, since
    CheckConstraint("one", name="load_one_row"),
    postgresql_with={"fillfactor": 10},
)

rates = Table(
    "rates",
    metadata,
    Column("currency", Text, nullable=False),
    Column("rate_date", Date, nullable=False),
    Column("rubles", Numeric, nullable=False),  # for one unit of the currency, exactly as published
    Column("source", Text, nullable=False),
    timestamp("loaded_at"),
    PrimaryKeyConstraint("currency", "rate_date", name="rates_currency_rate_date_key"),
    CheckConstraint("rubles > 0", name="rates_rubles_positive"),
)

email_codes = Table(
    "email_codes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("email", Text, nullable=False),
    Column("code_hash", LargeBinary),  # NULL until the worker has made the code and is mailing it
    Column("wrong_tries", Integer, nullable=False, server_default="0"),
    timestamp("created_at"),
    timestamp("expires_at"),
    timestamp("spent_at", nullable=True),
    Index("email_codes_email", text("lower(email)"), "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    # What is counted and for whom, such as "login/account/alice" or "login/address/192.0.2.1".
    Column("key", Text, primary_key=True),
    Column("count", Integer, nullable=False),
    timestamp("window_ends_at"),
)

# Finished operations are numbered in the order in which they were applied. A number is drawn only while every account
# that the operation touches is locked, so of two operations that touch one account the earlier has the smaller number.
apply_no = Sequence("apply_no", metadata=metadata)

GUARDS = (
    """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$
""",
    """
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change('entries are append-only')
""",
    """
CREATE TRIGGER entries_not_truncated BEFORE TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('entries are append-only')
""",
    # After, since before an update PostgreSQL locks the row for the trigger, and writes that to its log.
    """
CREATE TRIGGER operations_finished_for_ever AFTER UPDATE ON operations
    FOR EACH ROW WHEN (OLD.status <> 'pending')
    EXECUTE FUNCTION refuse_change('a finished operation never changes')
""",
    """
CREATE TRIGGER operations_kept_for_ever BEFORE DELETE ON operations
    FOR EACH ROW EXECUTE FUNCTION refuse_change('operations are kept for ever')
""",
    """
CREATE TRIGGER operations_not_truncated BEFORE TRUNCATE ON operations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('operations are kept for ever')
""",
    """
CREATE TRIGGER users_kept_for_ever BEFORE DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION refuse_change('users are kept for ever')
""",
    """
CREATE TRIGGER users_not_truncated BEFORE TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('users are kept for ever')
""",
    """
CREATE TRIGGER accounts_kept_for_ever BEFORE DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change('accounts are kept for ever')
""",
    """
CREATE TRIGGER accounts_not_truncated BEFORE TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('accounts are kept for ever')
""",
)
"""What a constraint cannot say: entries are append-only, operations are kept, a finished one never changes."""

for guard in GUARDS:
    listen(metadata, "after_create", DDL(guard.replace("%", "%%")))  # type: ignore[no-untyped-call]
