"""`./kassa seed`: a demo through the public API, the same however often it is run."""

import subprocess
import sys
from pathlib import Path

from cli.stack import ROOT
from tests.end_to_end.conftest import PASSWORD, Kassa
from tests.end_to_end.test_services import promote


def seed(kassa: Kassa, data_dir: Path, *options: str) -> str:
    """Run it; its output."""
    environment = kassa.stack.environment | {"DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "cli", "seed", "--url", kassa.url, *options],
        env=environment,
        cwd=ROOT,
        input=PASSWORD + "\n",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_seeding_twice_stores_everything_once(kassa: Kassa, tmp_path: Path):
    admin = promote(kassa, kassa.user(), "admin")
    options = ("--admin", admin.name, "--password-stdin")
    first = seed(kassa, tmp_path, *options)
    assert "demo-alice: " in first
    with kassa.engine.connect() as connection:
        query = "SELECT count(*) FROM operations o JOIN users u ON u.id = o.user_id WHERE username LIKE 'demo-%%'"
        before = connection.exec_driver_sql(query).scalar_one()
        assert before >= 24
        assert seed(kassa, tmp_path, *options) == first
        assert connection.exec_driver_sql(query).scalar_one() == before
    services = kassa.http.get("/v1/services?limit=100").json()["items"]
    assert [service["name"] for service in services].count("Yoga, a month") == 1
