"""The crash harness sees differences, and in the long test kills a run for itself."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("crash", ROOT / "benchmarks" / "crash.py")
assert spec is not None and spec.loader is not None
crash = importlib.util.module_from_spec(spec)
sys.modules["crash"] = crash
spec.loader.exec_module(crash)


def test_equal_states_are_equal_but_for_time():
    state = {"a": [torch.arange(3), (1, 2.5)], "seconds": 1.0}
    assert crash.differences(state, {**state, "seconds": 2.0}, "x") == []


@pytest.mark.parametrize(
    "other",
    [
        {"a": [torch.tensor([0, 1, 3]), (1, 2.5)]},
        {"a": [torch.arange(3, dtype=torch.int32), (1, 2.5)]},
        {"a": [torch.arange(3), (1, 2.0)]},
        {"a": [torch.arange(3), (1,)]},
        {"b": [torch.arange(3), (1, 2.5)]},
    ],
)
def test_every_difference_is_named(other):
    (found,) = crash.differences({"a": [torch.arange(3), (1, 2.5)]}, other, "x")
    assert found.startswith("x")


@pytest.mark.slow
def test_a_few_kills(tmp_path):
    command = [sys.executable, "benchmarks/crash.py", "--kills", "3", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = (tmp_path / "crash_table.csv").read_text().splitlines()
    assert len(rows) == 4 and all(row.endswith("equal,equal") for row in rows[1:])
    assert "**3 of 3**" in (tmp_path / "crash_table.md").read_text()
