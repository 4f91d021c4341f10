"""Reconcile the whole ledger: prints every truth and how many rows break it, and exits 1 if any do."""

import argparse

from core import db, settings
from core.reconcile import reconcile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options: DATABASE_URL comes from the environment."""


def main(_arguments: argparse.Namespace) -> int:
    """Check one truth after another in one snapshot; it may run beside a working system."""
    engine = db.engine(settings.load().database_url, "verify", 1)
    broken = 0
    for finding in reconcile(engine):
        print(f"{'ok    ' if not finding.violations else 'BROKEN'} {finding.truth}: {finding.violations} violations")
        for sample in finding.samples:
            print(f"         {sample}")
        broken += bool(finding.violations)
    print("The ledger reconciles." if not broken else f"{broken} truths are broken: stop the workers, and look.")
    return 1 if broken else 0
