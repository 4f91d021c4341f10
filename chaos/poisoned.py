"""Runs another module with rules that raise, kill their process or loop for ever at certain amounts.

`python -m chaos.poisoned celery --app worker.app ...`: production code has no switch for this.
"""

import os
import runpy
import signal
import sys
from collections.abc import Mapping

from chaos.poison import KILL, LOOP, RAISE
from core import rules
from core.operations import Account, Operation, Outcome, Shelf

decide = rules.decide


def poisoned(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf = rules.EMPTY_SHELF) -> Outcome:
    """The rules, but for certain amounts."""
    if operation.amount == RAISE:
        raise RuntimeError("poison")
    if operation.amount == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    while operation.amount == LOOP:
        pass
    return decide(operation, accounts, shelf)


if __name__ == "__main__":
    rules.decide = poisoned
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
