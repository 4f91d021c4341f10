"""Measure Kassa beside bare SQL transactions on the same PostgreSQL, in the same run.

Starts a fresh stack of its own in DATA_DIR/bench, loads users through the API's own code, and then runs every part
several times, interleaved, because machines are shared and noisy. Each part begins after a vacuum and a checkpoint,
so that it does not pay for the one before, and ends when everything accepted is applied; a figure whose ledger does not
reconcile is an error. Prints a table, and writes DATA_DIR/bench/results.json.

bare, bare_hot, bare_read: pgbench. single: a transfer a request. wait: deposits, answered when finished. batch, hot:
1,000 transfers a request, hot with one account in all of them. reads: an account. latency: at 30 % of single. fair:
light users beside one with 20,000 queued operations. idle: at rest. With --growth: all of these but pgbench, and the
balance, history and statement of busy accounts, on databases of 10^3, 10^5 and 5*10^6 finished operations at once,
with vacuums as they come, which takes a quarter of an hour with --seconds 3. With --machines: two network namespaces
with workers of their own, one of them cut off under load. With --overload: single and batch with five times as many
clients as at the peak.

Needs wrk (Debian: apt-get install wrk); pgbench comes with the bundled PostgreSQL.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Sequence

from bench import closed, growth, machines, overload, paced, rest
from bench.rest import UNITS
from bench.stack import Bench, load, ratio, settle, start
from cli.servers import CannotStart
from core.reconcile import violations

PER_SECOND: dict[str, Callable[[Bench, str], float]] = {
    **dict.fromkeys(("bare", "bare_hot", "bare_read"), closed.bare),
    **dict.fromkeys(("single", "wait", "batch", "hot"), closed.operations),
    "reads": closed.requests,
}
OTHERS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "latency": paced.latency,
    "fair": paced.fair,
    "idle": rest.idle,
}
PARTS = (*PER_SECOND, *OTHERS)
# What a figure is compared with, and the ratio that it must reach.
AT_LEAST = {
    "single": ("bare", 0.30),
    "wait": ("single", 0.8),
    "batch": ("bare", 1.5),
    "hot": ("bare_hot", 4.0),
    "reads": ("bare_read", 0.04),
}
AT_MOST = {"applied_p50": 10.0, "applied_p99": 50.0, "core_percent": 2.0}
LIGHT_RATIO_MAX = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and which parts."""
    parser.add_argument("--seconds", type=int, default=8, help="of each run of a part (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each part (default: %(default)s)")
    parser.add_argument("--users", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--growth", action="store_true", help="compare databases of different sizes instead")
    parser.add_argument(
        "--machines", choices=("redis", "rabbitmq"), help="two worker machines instead, one cut off under load; as root"
    )
    parser.add_argument("--overload", type=int, metavar="SECONDS", help="instead: five times the load for so long")
    parser.add_argument("--sizes", nargs="+", type=int, default=growth.SIZES, help="of --growth (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Run all parts, interleaved, and print the table."""
    if arguments.machines:
        print(machines.run(arguments.machines))
        return 0
    require(arguments)
    if arguments.growth:
        print(growth.table(growth.run(arguments.seconds, arguments.rounds, tuple(arguments.sizes))))
        return 0
    bench = start(arguments.seconds, arguments.users)
    try:
        load(bench)
        if arguments.overload:
            return overloaded(bench, arguments.overload, arguments.parts)
        for number in range(arguments.rounds):
            for part in arguments.parts:
                measure(bench, part, number + 1)
            if broken := violations(bench.engine):
                raise CannotStart(f"the ledger does not reconcile: {broken}")
        print(table(bench.figures))
        results = bench.stack.data_dir / "results.json"
        results.write_text(json.dumps({"figures": bench.figures, "notes": bench.notes}, indent=1))
        print(f"The ledger reconciles. Figures, and the memory of each process, are in {results}.")
    finally:
        bench.engine.dispose()
        bench.stack.stop()
    return 0


def require(arguments: argparse.Namespace) -> None:
    """Raise CannotStart where something is missing."""
    if not shutil.which("wrk"):
        raise CannotStart("wrk is missing: install it (Debian: apt-get install wrk).")
    if "latency" in arguments.parts and "single" not in arguments.parts:
        raise CannotStart("latency is measured at a share of single: add single to --parts.")


def overloaded(bench: Bench, seconds: int, parts: Sequence[str]) -> int:
    """Overload it, and say how it took that."""
    print(overload.run(bench, seconds, parts))
    broken = violations(bench.engine)
    print(f"The ledger {'does not reconcile: ' + str(broken) if broken else 'reconciles.'}")
    return 1 if broken else 0


def measure(bench: Bench, part: str, number: int) -> None:
    """Run a part once, and note and show its figures."""
    settle(bench)
    found = {part: PER_SECOND[part](bench, part)} if part in PER_SECOND else OTHERS[part](bench)
    for name, figure in found.items():
        bench.figures.setdefault(name, []).append(figure)
        print(f"round {number}  {name:16} {shown(name, figure)}", flush=True)


def shown(name: str, figure: float) -> str:
    """A figure with its unit."""
    if name in PER_SECOND:
        return f"{figure:12,.0f} /s"
    return f"{figure:12,.2f} {UNITS.get(name, 'ms')}"


def table(figures: dict[str, list[float]]) -> str:
    """Each figure's median, minimum and maximum, and what it must reach in the same run."""
    lines = ["", f"{'figure':16} {'median':>16} {'min':>16} {'max':>16}"]
    for name, each in figures.items():
        columns = (shown(name, figure) for figure in (statistics.median(each), min(each), max(each)))
        lines.append(f"{name:16} " + " ".join(f"{column:>16}" for column in columns) + "  " + judged(name, figures))
    return "\n".join(lines)


def judged(name: str, figures: dict[str, list[float]]) -> str:
    """How a figure compares with what it must reach; ratios are taken within each round."""
    base, least = AT_LEAST.get(name, ("", 0.0))
    if base in figures:
        return f"{ratio(figures[name], figures[base]):.3f} x {base} (must reach {least})"
    if name in AT_MOST:
        return f"(at most {AT_MOST[name]:g})"
    if name == "light_p99_beside":
        times = ratio(figures[name], figures["light_p99_alone"])
        return f"{times:.2f} x light_p99_alone (at most {LIGHT_RATIO_MAX:g})"
    return ""
