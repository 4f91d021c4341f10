"""`./kassa`: what operators and engineers run by hand."""

import argparse
import importlib
import os
import shlex
import signal
import sys
from pathlib import Path

import sqlalchemy as sa

from cli.run import interrupt
from cli.servers import CannotStart
from cli.stack import ROOT
from core.settings import SettingsError

COMMANDS = {
    "run": "run all of Kassa on this machine",
    "migrate": "bring the database to this version's schema",
    "verify": "reconcile the whole ledger",
    "create-admin": "make an administrator, or promote a user to one",
    "rates": "load, fetch and show exchange rates",
    "seed": "fill a demo through the public API",
    "bench": "measure Kassa beside bare SQL transactions",
    "chaos": "put Kassa under faults, and check all that its clients were told",
    "replay": "play bank statements through the public API and compare every balance",
}


def main() -> int:
    """Dispatch to the module of the command."""
    parser = argparse.ArgumentParser(prog="kassa", description="A queue-backed transaction processor.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"cli.{name.replace('-', '_')}")
        formatter = argparse.RawDescriptionHelpFormatter
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__, formatter_class=formatter)
        module.add_arguments(subparser)
        subparser.set_defaults(main=module.main)
    arguments = parser.parse_args()
    if arguments.command in ("run", "bench", "chaos"):
        signal.signal(signal.SIGTERM, interrupt)
        signal.signal(signal.SIGINT, interrupt)  # a shell's background job inherits it as ignored
    else:
        attach()
    try:
        return int(arguments.main(arguments))
    except (CannotStart, SettingsError) as error:
        print(f"kassa {arguments.command}: {error}", file=sys.stderr)
    except sa.exc.DBAPIError as error:
        print(f"kassa {arguments.command}: the database refused or does not answer: {error.orig}", file=sys.stderr)
    except OSError as error:
        print(f"kassa {arguments.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"kassa {arguments.command}: interrupted", file=sys.stderr)
        return 130
    return 1


def attach() -> None:
    """Where nothing else is said, work on the Kassa that `make run` started: its run.env and secret."""
    data_dir = Path(os.environ.get("DATA_DIR") or ROOT / ".data")
    run_env, secret = data_dir / "run.env", data_dir / "secret.key"
    for line in run_env.read_text().splitlines() if run_env.exists() else []:
        name, _, value = line.partition("=")
        os.environ.setdefault(name, "".join(shlex.split(value)))
    if secret.exists():
        os.environ.setdefault("SECRET_KEY", secret.read_text())


if __name__ == "__main__":
    sys.exit(main())
