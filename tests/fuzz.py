"""Fuzz every call of the OpenAPI document as every role, until enough requests were made; some ten minutes.

`make fuzz` runs it. Schemathesis makes the requests, good and bad ones, from the document that Kassa serves. It fails
at any 5xx, at a pass that broke off, and if the ledger does not reconcile afterwards.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal

import httpx
import sqlalchemy as sa

from bench.stack import Bench, load, start, token, wait_until_applied
from cli.stack import ROOT
from core import identity, rates, settings
from core.money import CURRENCIES
from core.rate_sheets import RateSheet
from core.reconcile import violations

SCHEMATHESIS = ROOT / ".venv-fuzz" / "bin" / "schemathesis"
ROLES = ("user", "service", "auditor", "admin")
ENDS_THE_SESSION = "^/v1/auth/(logout|password)"
FINISHED = (0, 1)  # Schemathesis's exit codes: nothing found, something found; anything else is no finished pass
COUNTED = re.compile(r'^kassa_http_requests_total\{.*route="([^"]*)",status="(\d+)".*\} (\d+)')
OUR_OWN = "/metrics"


def main() -> int:
    """Fuzz in passes, each with other seeds, and say what came back."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=60, help="of each call in a pass (default: %(default)s)")
    arguments = parser.parse_args()
    if not SCHEMATHESIS.exists():
        sys.exit("fuzz: Schemathesis is missing: run `make fuzz`, which installs it.")
    bench = start(1, 20, "fuzz")
    try:
        load(bench)
        with bench.engine.begin() as connection:  # where a rate is not known 503 is lawful; here none is
            rates.store(connection, RateSheet(rates.today(), dict.fromkeys(CURRENCIES, Decimal(1))), "fuzz")
        tokens = {"": "", **{role: token_of(bench, role) for role in ROLES}}
        answers: Counter[str] = Counter()
        number = 0
        while sum(answers.values()) < arguments.requests:
            role = list(tokens)[number % len(tokens)]
            fuzz(bench, tokens[role], arguments.examples, number)
            number += 1
            answers = answered(bench)
            print(f"pass {number}, as {role or 'nobody'}: {sum(answers.values()):,} requests so far", flush=True)
        wait_until_applied(bench)
        return judge(bench, answers)
    finally:
        bench.engine.dispose()
        bench.stack.stop()


def token_of(bench: Bench, role: str) -> str:
    """An access token of a new user of the role."""
    known = settings.load(bench.stack.environment)
    with bench.engine.begin() as connection:
        user = identity.insert_user(connection, known, f"fuzz-{role}", None, None)
        connection.execute(sa.text("UPDATE users SET role = :role WHERE id = :id"), {"role": role, "id": user})
        return token(connection, known, user)


def fuzz(bench: Bench, bearer: str, examples: int, seed: int) -> None:
    """One pass over all calls."""
    command = [
        *(str(SCHEMATHESIS), "run", f"{bench.url}/openapi.json", "--checks", "not_a_server_error"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed)),
        *("--continue-on-failure", "--suppress-health-check", "all", "--request-timeout", "40", "--warnings", "off"),
        *("--workers", "4"),
    ]
    if bearer:
        command += ["--header", f"Authorization: Bearer {bearer}", "--exclude-path-regex", ENDS_THE_SESSION]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=bench.stack.data_dir)
    log = bench.stack.data_dir / "log" / f"schemathesis-{seed}.log"
    log.write_text(ran.stdout + ran.stderr)
    if ran.returncode not in FINISHED:
        sys.exit(f"fuzz: Schemathesis broke off with exit code {ran.returncode}: see {log}")


def answered(bench: Bench) -> Counter[str]:
    """Requests by status, as Kassa counts them, without ours for these counts."""
    counted: Counter[str] = Counter()
    for line in httpx.get(f"{bench.url}/metrics", timeout=30).text.splitlines():
        if (found := COUNTED.match(line)) and found[1] != OUR_OWN:
            counted[found[2]] += int(found[3])
    return counted


def judge(bench: Bench, answers: Counter[str]) -> int:
    """Say what came back, and whether it is well."""
    wrong = {status: count for status, count in answers.items() if status >= "500"}
    broken = violations(bench.engine)
    print(f"{sum(answers.values()):,} requests: {dict(sorted(answers.items()))}")
    print(f"5xx that are defects: {wrong or 'none'}; the ledger {'does not reconcile' if broken else 'reconciles'}")
    for finding in broken:
        print(f"  {finding}")
    if wrong:
        print(f"  see {bench.stack.data_dir / 'log'}")
    return 1 if wrong or broken else 0


if __name__ == "__main__":
    sys.exit(main())
