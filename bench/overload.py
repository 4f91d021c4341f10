"""Five times what Kassa can do: is the goodput what it was, is only the lawful 503 said, is all normal afterwards?

Overload by batches, which are accepted several times faster than they can be applied, so that the limits are reached;
and by single requests, whose acceptance is what ends first.
"""

import http.client
import time
from collections.abc import Sequence
from typing import Any

from bench.closed import CONNECTIONS, wrk
from bench.paced import post
from bench.stack import Bench, count, memory, wait_until_applied
from cli.servers import LOOPBACK

TIMES = 5
PEAK_CONNECTIONS = {"single": CONNECTIONS, "batch": 8}
PEAK_SECONDS = 20
NORMAL_SECONDS = 0.05  # that a request takes where all is well
MEBIBYTE = 2**20


def run(bench: Bench, seconds: int, parts: Sequence[str]) -> str:
    """Measure the peak, overload for so long, measure the peak again, since the database has grown and machines are
    noisy, and tell of all in words. parts: those of PEAK_CONNECTIONS.
    """
    lines = []
    for part in filter(PEAK_CONNECTIONS.__contains__, parts):
        connections = PEAK_CONNECTIONS[part]
        first = peak(bench, part)
        before = memory(bench)["api"]
        reached, result = goodput(bench, part, TIMES * connections, seconds)
        took = seconds_until_normal(bench)
        grown = memory(bench)["api"]
        wait_until_applied(bench)
        last = peak(bench, part)
        lines.append(
            f"{part}: {first:,.0f} applied/s with {connections} connections before, and {last:,.0f} after; "
            f"with {TIMES * connections} for {seconds} s {reached:,.0f}/s, {reached / first:.2f} and "
            f"{reached / last:.2f} of that, answers {result['statuses']}, p99 {result['p99'] / 1000:,.0f} ms; "
            f"API {before / MEBIBYTE:.0f} MiB before and {grown / MEBIBYTE:.0f} after; "
            f"a request takes under {1000 * NORMAL_SECONDS:.0f} ms again after {took:.1f} s"
        )
    return "\n".join(lines)


def peak(bench: Bench, part: str) -> float:
    """The goodput under as much load as gives the most; then everything is applied."""
    reached, _ = goodput(bench, part, PEAK_CONNECTIONS[part], PEAK_SECONDS)
    wait_until_applied(bench)
    return reached


def goodput(bench: Bench, part: str, connections: int, seconds: int) -> tuple[float, dict[str, Any]]:
    """Operations applied a second while the load lasts, and what was answered."""
    before, started = finished(bench), time.monotonic()
    result = wrk(bench, part, connections=connections, seconds=seconds, lawful=("202", "429", "503"))
    return (finished(bench) - before) / (time.monotonic() - started), result


def finished(bench: Bench) -> int:
    """How many operations are finished."""
    return count(bench, "SELECT last_value FROM apply_no")


def seconds_until_normal(bench: Bench) -> float:
    """Seconds until an operation is accepted as quickly as ever."""
    started = time.monotonic()
    user = (bench.stack.data_dir / "users.txt").read_text().split()[0]
    api = http.client.HTTPConnection(LOOPBACK, int(bench.stack.environment["PORT"]), timeout=60)
    while True:
        asked = time.monotonic()
        try:
            post(api, "/v1/operations", user, {}, b'{"type":"deposit","amount":1}')
        except Exception:  # refused as yet
            time.sleep(NORMAL_SECONDS)
        else:
            if time.monotonic() - asked < NORMAL_SECONDS:
                return asked - started
