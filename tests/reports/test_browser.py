"""The page in a real browser, where one is installed: its figures load, and it fits a phone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qam_lightning.reports.report import write_report
from tests.reports.folders import make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
MEASURE = """<script>addEventListener("load", () => {
  const loaded = [...document.images].filter(x => x.naturalWidth > 0).length;
  const page = document.documentElement;
  document.title = [loaded, document.images.length, page.scrollWidth, page.clientWidth].join(" ");
})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_fits_the_screen(tmp_path: Path, width: int) -> None:
    runs = [
        make_run(tmp_path / f"{domain}-{method}-{tau}", [0.1, 0.4], [0.6], method=method,
                 domain=domain, model__tau=tau, every=50_000)
        for domain in ("scene", "cube-double", "puzzle-3x3")
        for method in ("qam", "fql", "qam_edit")
        for tau in (1.0, 3.0)
    ]  # fmt: skip
    write_report(runs, tmp_path / "report", "title" * 60, ["lost " + "x" * 300], published=True)
    page = tmp_path / "report" / "measured.html"
    page.write_text((page.with_name("index.html")).read_text() + MEASURE)
    command = [
        *(CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
        *("--virtual-time-budget=5000", "--dump-dom", page.as_uri()),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", shown)
    assert found, shown[:2000]
    loaded, images, scroll, client = map(int, found.groups())
    assert loaded == images == 3
    assert scroll <= client
