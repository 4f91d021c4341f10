"""One fault of every family, under load, with all that is checked afterwards. `make chaos` plays many more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.faults import FAMILIES
from chaos.rounds import FAMILIES_IN_TURN
from cli.stack import ROOT

ROUNDS = -(-len(FAMILIES) // FAMILIES_IN_TURN)
OPTIONS = ("--in-turn", "--load-seconds", "2.5", "--clients", "8", "--users", "20", "--workers", "2", "--seed", "4")
NOT_EVERYWHERE = {"clock", "disk"}  # they need libfaketime, and root


def test_no_family_of_faults_breaks_a_promise(tmp_path_factory: pytest.TempPathFactory):
    data_dir: Path = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "cli", "chaos", "--rounds", str(ROUNDS), *OPTIONS]
    environment = os.environ | {"DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((data_dir / "chaos" / "results.json").read_text())
    assert results["violations"] == []
    assert results["rounds"] == ROUNDS
    assert results["acknowledged_operations"] > 100 * ROUNDS
    assert results["snapshots_during_faults"] > 0
    assert set(results["faults_by_family"]) >= set(FAMILIES) - NOT_EVERYWHERE
