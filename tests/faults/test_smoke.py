"""One fault of every family, under load, with all that is checked afterwards. `./kassa chaos` plays many more."""

from pathlib import Path

import pytest

from chaos.faults import FAMILIES
from chaos.rounds import FAMILIES_IN_TURN, Options, run

SEED = 4
ROUNDS = -(-len(FAMILIES) // FAMILIES_IN_TURN)
LOAD_SECONDS = 2.5


def test_no_family_of_faults_breaks_a_promise(tmp_path_factory: pytest.TempPathFactory):
    data_dir: Path = tmp_path_factory.mktemp("chaos")
    options = Options(
        seed=SEED,
        rounds=ROUNDS,
        seconds=0,
        load_seconds=LOAD_SECONDS,
        clients=8,
        users=20,
        workers=2,
        families=tuple(FAMILIES),
        data_dir=data_dir,
        in_turn=True,
    )
    totals = run(options, print)
    assert totals.violations == []
    assert totals.rounds == ROUNDS
    assert totals.acknowledged > 100 * ROUNDS
    assert totals.snapshots > 0
    assert set(totals.faults) >= set(FAMILIES) - {"clock", "disk"}, "those two cannot be had everywhere"
