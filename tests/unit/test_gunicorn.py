"""What api/gunicorn.conf.py does to gunicorn."""

import os
import subprocess
import sys
from pathlib import Path

INITIALISED = """
import gc, os, runpy
runpy.run_path("api/gunicorn.conf.py")["post_worker_init"](None)
assert gc.get_freeze_count() > 1000 and gc.get_threshold()[0] > 700, "it looks for garbage often"
print(os.nice(0))
"""


def test_a_process_of_the_api_begins_well(tmp_path: Path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", INITIALISED], env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == (f"{min(os.nice(0) + 5, 19)}\n", "")
