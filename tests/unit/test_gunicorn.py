"""What api/gunicorn.conf.py does to gunicorn."""

import runpy
from pathlib import Path

import pytest
from gunicorn.config import Config


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
