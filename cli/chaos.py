"""Put Kassa under faults, and check everything that its clients were told.

Starts a cluster of its own in DATA_DIR/chaos (PostgreSQL, Redis, the API, workers, sweeper and beat, with a proxy on
every link), plays rounds of load and faults, and stops at the first broken promise with exit code 1: seed, round, the
shortest facts, history and logs. docs/reliability.md explains what is checked. A round takes about ten seconds.

With --mutants it shows that it has teeth: broken builds (tests/faults/mutants) must each be caught.

As root, and with libfaketime (Debian: apt-get install faketime), all families of faults can be had.
"""

import argparse
import os
import random
from pathlib import Path

from chaos.faults import FAMILIES
from chaos.mutants import hunt, names
from chaos.rounds import FAULTS_MAX, Options, run, summary
from cli.stack import ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a run may be."""
    parser.add_argument("--rounds", type=int, default=20, help="how many at the most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0, help="for how long at the most (default: no limit)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is random (default: a new one, shown)")
    parser.add_argument("--faults", nargs="*", choices=FAMILIES, default=list(FAMILIES), help="families (default: all)")
    parser.add_argument("--in-turn", action="store_true", help="two families a round, one after another")
    parser.add_argument("--faults-max", type=int, default=FAULTS_MAX, help="in a round (default: %(default)s)")
    parser.add_argument("--load-seconds", type=float, default=5, help="of each round (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--users", type=int, default=40, help="default: %(default)s")
    parser.add_argument(
        "--mutants", nargs="*", metavar="NAME", help="instead, put broken builds under the rounds: these, or all"
    )
    parser.add_argument("--workers", type=int, default=3, help="worker processes (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Play the rounds, and say what they come to."""
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    if arguments.mutants is not None:
        results = hunt(arguments.mutants or names(), arguments.rounds, seed, lambda line: print(line, flush=True))
        return 0 if all(result.caught_in for result in results) else 1
    data_dir = Path(os.environ.get("DATA_DIR") or ROOT / ".data") / "chaos"
    options = Options(
        seed=seed,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        load_seconds=arguments.load_seconds,
        clients=arguments.clients,
        users=arguments.users,
        workers=arguments.workers,
        families=tuple(arguments.faults),
        data_dir=data_dir.resolve(),
        faults_max=arguments.faults_max,
        in_turn=arguments.in_turn,
    )
    print(f"seed {seed}", flush=True)
    totals = run(options, lambda line: print(line, flush=True))
    for name, value in summary(totals).items():
        print(f"{name.replace('_', ' ')}: {value}")
    return 1 if totals.violations else 0
