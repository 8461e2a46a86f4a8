"""The crash harness sees differences, and in the long test kills a run for itself."""

import importlib.util
import re
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


def test_the_guide_tells_what_the_tables_say():
    guide = (ROOT / "docs/endurance.md").read_text()
    assert set(re.findall(r"\d+ of \d+", guide)) == {"50 of 50"}
    for kind in crash.FAULTS.values():
        assert f"({kind.file}.md)" in guide
        assert "in **50 of 50**" in (ROOT / f"docs/{kind.file}.md").read_text()
    rows = (ROOT / "docs/slurm_table.md").read_text().split("|---|---|---|\n")[1].splitlines()
    assert len(rows) > 10 and all(row.endswith("| equal |") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("fault", crash.FAULTS)
def test_a_few_kills(fault, tmp_path):
    private = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if fault == "disk" and subprocess.run(private, capture_output=True).returncode:
        pytest.skip("this system gives no file system to its users")
    script = [sys.executable, "benchmarks/crash.py", "--kills", "3", "--fault", fault]
    subprocess.run([*script, "--output", str(tmp_path)], cwd=ROOT, check=True)
    (rows,) = [path.read_text().splitlines() for path in tmp_path.glob("*.csv")]
    assert len(rows) == 4 and all(row.endswith("equal,equal") for row in rows[1:])
    (table,) = [path.read_text() for path in tmp_path.glob("*.md")]
    assert "**3 of 3**" in table
