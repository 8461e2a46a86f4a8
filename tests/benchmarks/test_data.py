"""benchmarks/data.py runs."""

from pathlib import Path

import pytest

from qam_lightning.util.provenance import versions_line
from tests.benchmarks.loading import load


def test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--transitions", "5000", "--cold", "5000", "--repeats", "3")
    load("data", monkeypatch).main([*sizes, "--directory", str(tmp_path)])
    printed = capsys.readouterr().out
    assert versions_line() in printed
    assert "plain gather" in printed and "storage: disk" in printed and "fits memory" in printed
