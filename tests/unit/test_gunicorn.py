"""What api/gunicorn.conf.py does to gunicorn."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from gunicorn.config import Config

INITIALISED = """
import gc, os, runpy
from types import SimpleNamespace
from gunicorn.config import Config
worker = SimpleNamespace(cfg=Config())
runpy.run_path("api/gunicorn.conf.py")["post_worker_init"](worker)
assert gc.get_freeze_count() > 1000 and gc.get_threshold()[0] > 700, "it looks for garbage often"
assert "keepalive" in vars(worker.cfg), "settings are not remembered"
print(os.nice(0))
"""


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return runpy.run_path("api/gunicorn.conf.py")


def test_settings_are_looked_up_once(conf: dict):
    configuration = Config()
    configuration.set("keepalive", 7)
    conf["remember"](configuration)
    worker_class = configuration.worker_class
    configuration.settings["keepalive"].get = pytest.fail
    assert configuration.keepalive == 7
    assert worker_class is configuration.worker_class  # what gunicorn works out from settings it works out still


def test_a_process_of_the_api_begins_well(tmp_path: Path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", INITIALISED], env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == (f"{min(os.nice(0) + 5, 19)}\n", "")
