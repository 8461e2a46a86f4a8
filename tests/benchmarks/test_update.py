"""benchmarks/update.py runs, for methods with and without tuned values."""

import pytest

from qam_lightning.util.provenance import versions_line
from tests.benchmarks.loading import load


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["qam", "rlpd"])
def test_update(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = load("update", monkeypatch)
    monkeypatch.setattr(update, "TRANSITIONS", 3_000)
    monkeypatch.setitem(update.SIZES, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    update.main(["--method", method, "--size", "quickstart", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert versions_line() in printed
    for part in ("noise", "loss and backward", "EMA targets", "whole update", "GFLOP per update"):
        assert part in printed
