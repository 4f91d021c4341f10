"""The broken builds that `make mutants` hunts can be built: their patches have kept up with the code."""

from pathlib import Path

import pytest

from chaos.mutants import copy_tree, names


@pytest.mark.parametrize("name", names())
def test_a_mutants_patch_applies(name: str, tmp_path: Path):
    assert (copy_tree(tmp_path / "kassa", name) / "chaos").is_dir()
