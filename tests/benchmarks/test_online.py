"""benchmarks/online.py runs."""

import pytest

from tests.benchmarks.loading import load


@pytest.mark.filterwarnings("ignore")
def test_online(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    online = load("online", monkeypatch)
    monkeypatch.setitem(online.SIZES, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    steps = ("--steps", "15", "--rounds", "1", "--episodes", "1")
    online.main(["--domain", "cube_single", *steps])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 5
