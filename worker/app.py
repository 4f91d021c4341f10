"""The Celery application of workers, beat and Flower: `celery --app worker.app worker`."""

import sys
from typing import Any

import sqlalchemy as sa
from celery.schedules import crontab
from celery.signals import celeryd_init, setup_logging, worker_process_init

from core import db, garbage, lanes, settings, telemetry
from core.broker import DEFAULT_QUEUE, celery_app
from core.errors import NotReady

# UTC. The Bank announces the next day's rates in Moscow's afternoon; the later looks are for when it is late, or was
# not to be reached. They stand in for retries, which a broker could lose.
RATES_ANNOUNCED = crontab(hour="12,14,16,18", minute=30)

FORGOTTEN_CODES_SECONDS = 60.0  # somebody waits for the mail, and its code is good for ten minutes

try:
    configuration = settings.load()
    telemetry.configure(configuration.log_level)
    engine = db.engine(configuration.database_url, "worker", 2, lock_timeout=db.DRAIN_LOCK_TIMEOUT)
    db.wait_for(engine)
    with engine.connect() as connection:
        lane_ids = lanes.all_ids(connection)
except (settings.SettingsError, sa.exc.DBAPIError) as error:
    sys.exit(f"kassa worker: {error}")

app = celery_app(configuration.broker, lane_ids)
app.conf.update(
    include=["worker.tasks"],
    beat_schedule={
        "housekeeping": {"task": "housekeeping", "schedule": 3600.0, "options": {"queue": DEFAULT_QUEUE}},
        "mail_forgotten_codes": {
            "task": "mail_forgotten_codes",
            "schedule": FORGOTTEN_CODES_SECONDS,
            "options": {"queue": DEFAULT_QUEUE, "expires": FORGOTTEN_CODES_SECONDS},
        },
        "fetch_rates": {"task": "fetch_rates", "schedule": RATES_ANNOUNCED, "options": {"queue": DEFAULT_QUEUE}},
    },
)
app.set_default()


@setup_logging.connect
def configure_logging(**_signal: Any) -> None:
    """Keep Celery from setting up its own logs: ours are JSON lines."""
    telemetry.configure(configuration.log_level)


@celeryd_init.connect
def refuse_unsafe_database(**_signal: Any) -> None:
    """Do not start on a database that could lose what was acknowledged, or has another version's schema."""
    try:
        db.require_ready(engine, configuration.lanes)
    except NotReady as error:
        sys.exit(f"kassa worker: {error}")


@worker_process_init.connect
def leave_parents_connections(**_signal: Any) -> None:
    """After the fork, two processes must not talk over one connection."""
    engine.dispose(close=False)


@worker_process_init.connect
def look_seldom_for_garbage(**_signal: Any) -> None:
    """All that a process needs was loaded before the fork."""
    garbage.look_seldom()
