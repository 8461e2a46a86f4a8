"""benchmarks/acting.py measures and writes its tables."""

import csv
from pathlib import Path
from typing import Any

import pytest

from qam_lightning.util.provenance import versions_line
from tests.benchmarks.loading import load


def test_acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[Any]) -> None:
    acting = load("acting", monkeypatch)
    tiny = {"width": 8, "depth": 1, "num_critics": 2, "flow_steps": 2}
    for size in ("paper", "quickstart"):
        monkeypatch.setitem(acting.SIZES, size, tiny)
    monkeypatch.setattr(acting, "ENVIRONMENTS", ("Pendulum-v1",))
    out = tmp_path / "new" / "table"
    few = ["--methods", "qam", "rlpd", "--num_envs", "1", "2", "--repeats", "2", "--rounds", "1"]
    assert acting.main([*few, "--out", str(out)]) == 0
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 2 + 2 * 2 and all(float(row["value"]) > 0 for row in rows)
    lines = out.with_suffix(".md").read_text().splitlines()
    assert versions_line() in lines[2] and acting.hardware() in lines[2]
    assert sum(line.startswith(("| qam |", "| rlpd |")) for line in lines) == 4
    assert sum(line.startswith("| `Pendulum-v1` |") for line in lines) == 2
    assert len(traced) == 2 * 2 * 3 + 2
