"""benchmarks/online.py runs."""

import pytest

from qam_lightning.util.provenance import versions_line
from tests.benchmarks.loading import load


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_online(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    online = load("online", monkeypatch)
    monkeypatch.setitem(online.SIZES, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    online.main(["--domain", "cube_single", "--steps", "15", "--rounds", "1", "--compile"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 4 and versions_line() in lines
