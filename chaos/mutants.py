"""Broken builds: the harness must catch each of them, or it proves nothing.

Every patch of tests/faults/mutants is applied to a copy of the tree, and the copy is put under the same rounds as any
other Kassa, with the same seed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.servers import CannotStart
from cli.stack import ROOT

PATCHES = ROOT / "tests" / "faults" / "mutants"
ROUND_SECONDS_MAX = 90
START_SECONDS_MAX = 60
FAILED = re.compile(r"FAILED: seed \d+, round (\d+): (.*)")


@dataclass(frozen=True)
class Result:
    """What became of a mutant: the round in which it was caught, None if it was not, and by which rules."""

    name: str
    caught_in: int | None
    rules: str


def names() -> list[str]:
    """Every mutant."""
    return sorted(patch.stem for patch in PATCHES.glob("*.patch"))


def hunt(mutants: Sequence[str], rounds: int, seed: int, say: Callable[[str], None]) -> list[Result]:
    """Put each mutant under at most `rounds` rounds."""
    results = []
    for name in mutants:
        with tempfile.TemporaryDirectory(prefix="kassa-mutant-") as directory:
            os.chmod(directory, 0o755)  # PostgreSQL runs as another user
            tree = copy_tree(Path(directory) / "kassa", name)
            result = play(tree, name, rounds, seed)
        results.append(result)
        caught = f"caught in round {result.caught_in}: {result.rules}" if result.caught_in else "NOT caught"
        say(f"{name:28} {caught}")
    return results


def copy_tree(target: Path, name: str) -> Path:
    """The tree as it is here, with the mutant's patch."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in listed.splitlines():
        source = ROOT / path
        if source.exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / path)
    applied = subprocess.run(
        ["git", "apply", "--unsafe-paths", str(PATCHES / f"{name}.patch")], cwd=target, capture_output=True, text=True
    )
    if applied.returncode:
        raise CannotStart(f"the patch {name} does not apply any more: make it anew. {applied.stderr.strip()}")
    return target


def play(tree: Path, name: str, rounds: int, seed: int) -> Result:
    """Run the harness of the copy."""
    environment = os.environ | {"PYTHONPATH": str(tree), "DATA_DIR": str(tree / ".data")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    command = [sys.executable, "-m", "cli", "chaos", "--rounds", str(rounds), "--seed", str(seed)]
    try:
        ran = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX + rounds * ROUND_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotStart(f"{name}: the harness did not end") from error
    found = FAILED.search(ran.stdout)
    if found is None and ran.returncode:
        raise CannotStart(f"{name}: the harness itself failed: {ran.stdout[-500:]} {ran.stderr[-500:]}")
    return Result(name, int(found[1]) if found else None, found[2] if found else "")
