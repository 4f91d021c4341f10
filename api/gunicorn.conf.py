"""How gunicorn serves the API: see api/server.py and api/http1.py for what is ours in its worker."""

import os
import shutil
import tempfile
from typing import Any

from core import garbage
from core.telemetry import logging_config

# Before anything imports prometheus_client: its counters are shared by all processes through files in this directory.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="kassa-metrics-"))

bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or '8000'}"
worker_class = "api.server.Worker"
workers = int(os.environ.get("API_PROCESSES") or "2")
worker_connections = 2_000  # of each process; more wait to be accepted
keepalive = 75  # seconds; longer than nginx's own 60, so that it never reuses a connection that we are closing
timeout = 30  # seconds without a sign of life of a whole process, not of a request
graceful_timeout = 35  # seconds; the longest wait that a client may ask for, and a little
control_socket_disable = True
NICENESS = 5  # where processors are short, applying goes first: what is accepted faster than it is applied only waits
logconfig_dict = logging_config(os.environ.get("LOG_LEVEL") or "INFO") | {
    "loggers": {"gunicorn.error": {"propagate": True}}
}


def post_worker_init(_worker: Any) -> None:
    """The application is loaded."""
    os.nice(NICENESS)
    garbage.look_seldom()


def on_exit(_server: Any) -> None:
    """Leave no counters behind."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
