"""Logs as JSON lines, one per event, with whatever context was bound (request, user, operation, lane)."""

import logging
import logging.config
import sys
from typing import Any

import structlog

FIELD_CHARACTERS_MAX = 4_000  # a megabyte in a field still makes one readable line


def shorten(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Cut long strings, however deep; JSON itself escapes line breaks and control characters."""
    return {key: shortened(value) for key, value in event.items()}


def shortened(value: Any) -> Any:
    """The value with the middle of every long string left out."""
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(inner) for inner in value]
    if isinstance(value, str) and len(value) > FIELD_CHARACTERS_MAX:
        half = FIELD_CHARACTERS_MAX // 2
        return f"{value[:half]} ... ({len(value)} characters) ... {value[-half:]}"
    return value


QUIET = ("alembic", "celery.worker.strategy", "celery.app.trace", "httpx", "httpcore")  # each line says what ours say

SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    shorten,
]


def logging_config(level: str = "INFO") -> dict[str, object]:
    """A `logging.config` dictionary: every library's lines leave in the same JSON form as our own."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [structlog.stdlib.ExtraAdder(), *SHARED],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer(ensure_ascii=True),
                ],
            }
        },
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": sys.stdout, "formatter": "json"}},
        "loggers": {name: {"level": "WARNING"} for name in QUIET},
        "root": {"handlers": ["stdout"], "level": level},
    }


def configure(level: str = "INFO") -> None:
    """Send all logs of this process to standard output as JSON lines."""
    logging.config.dictConfig(logging_config(level))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
