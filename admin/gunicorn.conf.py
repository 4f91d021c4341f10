"""How gunicorn serves the admin pages: one process is plenty for a handful of administrators."""

import os

from core.telemetry import logging_config

bind = f"{os.environ.get('ADMIN_HOST', '127.0.0.1')}:{os.environ.get('ADMIN_PORT', '8001')}"
worker_class = "asgi"
asgi_lifespan = "off"  # there is nothing to do at start and stop that create_app does not do
workers = 1
timeout = 30  # seconds without a sign of life of the process, not of a request
graceful_timeout = 20  # seconds; longer than the longest statement (core.db.SESSION)
control_socket_disable = True
logconfig_dict = logging_config(os.environ.get("LOG_LEVEL", "INFO")) | {
    "loggers": {"gunicorn.error": {"propagate": True}, "gunicorn.access": {"propagate": False}}
}
