"""Whatever is logged leaves as one line of JSON, of bounded length."""

import json
import subprocess
import sys

import pytest

from cli.stack import ROOT

LINE_CHARACTERS_MAX = 20_000

PROGRAM = """
import logging, sys
import structlog
from core import telemetry
telemetry.configure()
value = eval(sys.argv[1])
structlog.contextvars.bind_contextvars(request_id="r1", user="u1")
structlog.get_logger("kassa.test").info("event", field=value, nested={"inner": value})
logging.getLogger("somebody.else").warning("event %s", value)
try:
    raise ValueError(value)
except ValueError:
    structlog.get_logger("kassa.test").exception("event")
"""


@pytest.mark.parametrize(
    "value", ["'a\\r\\nb\\x1b[31mred\\u2028c'", "'x' * 2**20", "b'\\xff\\x00'", "'\\ud800'", "object()"]
)
def test_each_event_is_one_bounded_line_of_json(value: str):
    ran = subprocess.run([sys.executable, "-c", PROGRAM, value], cwd=ROOT, capture_output=True, check=True)
    lines = ran.stdout.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == 3, lines[:5]
    for line in lines:
        assert len(line) < LINE_CHARACTERS_MAX
        assert not set(line) & set(b"\r\x1b"), "nothing that a terminal would obey"
        event = json.loads(line)
        assert {"event", "level", "logger", "timestamp"} <= set(event)
        assert (event["request_id"], event["user"]) == ("r1", "u1")
