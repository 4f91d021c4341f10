"""Swagger UI and ReDoc: served whole from here, and really drawn by a browser that is kept from any other server."""

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.end_to_end.conftest import Kassa

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DRAWING_MILLISECONDS = 20_000  # of the browser's own time, which runs ahead while it waits for nothing
BROWSER_SECONDS_MAX = 120
PAGES = ("/docs", "/redoc")

needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on the PATH")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_and_all_its_files_come_from_here(kassa: Kassa, page: str):
    answer = kassa.http.get(page)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert any(file.endswith(".js") for file in files)
    for file in files:
        found = kassa.http.get(urljoin(page, file))
        assert (found.status_code, len(found.content) > 0) == (200, True), file
        again = kassa.http.get(urljoin(page, file), headers={"If-None-Match": found.headers["ETag"]})
        assert again.status_code == 304, file


@pytest.mark.parametrize(
    "path", ["/docs/assets/", "/docs/assets/none.js", "/docs/pages/../app.py", "/docs/pages/%2e%2e/app.py"]
)
def test_there_is_nothing_else_among_the_files(kassa: Kassa, path: str):
    answer = kassa.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_draws_every_call(kassa: Kassa, page: str, tmp_path: Path):
    document = kassa.http.get("/openapi.json").json()
    drawn = browse(kassa.url + page, tmp_path, "--dump-dom")
    text = re.sub(r"\u200b|<wbr/?>", "", re.sub(r"<(?:span|div|a)[^>]*>|</(?:span|div|a)>", "", drawn.stdout))
    assert "Kassa" in text
    missing = [path for path in document["paths"] if path not in text]
    assert not missing, f"not drawn: {missing}"
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"].rstrip(".") in text
    refused = [line for line in drawn.stderr.splitlines() if "Content Security Policy" in line or "Uncaught" in line]
    assert [line for line in refused if "cdn.redoc.ly/redoc/logo-mini.svg" not in line] == []


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_takes_a_picture(kassa: Kassa, page: str, tmp_path: Path):
    picture = tmp_path / "picture.png"
    browse(kassa.url + page, tmp_path, f"--screenshot={picture}", "--window-size=1400,2200")
    assert picture.stat().st_size > 50_000, "more than an empty page"


def browse(url: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window, let it draw itself, and close. Every name but this machine's leads nowhere."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--virtual-time-budget={DRAWING_MILLISECONDS}",
        f"--user-data-dir={directory / 'profile'}",
        *options,
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=BROWSER_SECONDS_MAX, check=True)
