"""benchmarks/update.py measures, goes on where it was, and answers mistakes in one line."""

import csv
import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from qam_lightning.util.configs import METHODS
from tests.benchmarks.loading import load

QUICK = ("--sizes", "quickstart", "--seconds", "0.01", "--device", "cpu")


@pytest.fixture
def update(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("update", monkeypatch)


def read(out: Path) -> list[dict[str, str]]:
    with (out / "speed_table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_measured_once(
    update: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = ("--methods", "rebrac", "--modes", "eager", "--threads", "1", *QUICK)
    assert update.main([*one, "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "[1/1] rebrac, quickstart, eager, 1 thread(s): " in printed and "0 min left" in printed
    (row,) = read(tmp_path)
    expected = {"method": "rebrac", "size": "quickstart", "mode": "eager", "threads": "1"}
    assert row.items() >= (expected | {"device": "cpu", "seconds": "0.01", "jax": ""}).items()
    assert row["processor"] and f"torch {version('torch')}" in row["versions"]
    ms, gflop, peak = (float(row[n]) for n in ("ms", "gflop", "matmul_gflop_per_second"))
    assert 0 < float(row["ms_min"]) <= ms
    assert float(row["updates_per_second"]) == pytest.approx(1e3 / ms, rel=1e-3)
    assert float(row["gflop_per_second"]) == pytest.approx(1e3 * gflop / ms, rel=1e-3)
    assert float(row["share_of_matmul"]) == pytest.approx(1e3 * gflop / ms / peak, rel=1e-3)
    share = float(row["products_ms"]) / ms
    assert float(row["share_of_products"]) == pytest.approx(share, rel=1e-3)
    assert float(row["memory_mb"]) > 0 and float(row["compile_seconds"]) > 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| rebrac | eager | " in (tmp_path / "speed_table.md").read_text()

    before = (tmp_path / "speed_table.csv").read_bytes()
    assert update.main([*one, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "speed_table.csv").read_bytes() == before
    assert "[1/1]" not in capfd.readouterr().out


@pytest.mark.slow
def test_a_row_of_other_code_is_measured_again_and_failures_are_told(
    update: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--methods", "rlpd", "--modes", "bf16", "compiled", "--threads", "1"]
    arguments += [*QUICK, "--out", str(tmp_path)]
    assert update.main(arguments) == 0
    assert [(row["method"], row["mode"]) for row in read(tmp_path)] == [
        ("rlpd", "bf16"),
        ("rlpd", "compiled"),
    ]
    monkeypatch.setattr(update, "digest", lambda: "other")
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    capfd.readouterr()
    assert update.main(arguments) == 1
    assert [row["code"] == "other" for row in read(tmp_path)] == [True, False]
    (told,) = (x for x in capfd.readouterr().out.splitlines() if x.startswith("[2/2]"))
    assert "install a C++ compiler" in told


@pytest.mark.parametrize("mode", ["eager", "bf16"])
def test_the_products_of_an_update_are_all_its_operations(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = load("update_cell", monkeypatch)
    monkeypatch.setattr(cell, "TRANSITIONS", 3_000)
    sizes = importlib.import_module("workload").SIZES
    monkeypatch.setitem(sizes, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    task = cell.Task("qam", "quickstart", mode, "cpu", 0.01)
    with FlopCounterMode(display=False) as whole, cell.Products() as products:
        cell.one_cycle(task, cell.build("qam", "quickstart"), next(iter(cell.Feed())))
    with FlopCounterMode(display=False) as alone, Dtypes() as dtypes:
        products.repeat()
    assert whole.get_total_flops() == alone.get_total_flops() > 0
    assert dtypes.found == {task.dtype}


class Dtypes(TorchDispatchMode):
    """Notes the number formats of results."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found.add(result.dtype)
        return result


def test_a_mistake_is_answered_in_one_line(
    update: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "speed_table.csv").write_text("a,b\n1,2\n")
    agents = tmp_path / "checkout" / "agents" / "__init__.py"
    agents.parent.mkdir(parents=True)
    agents.touch()
    checkout, no_python = str(tmp_path / "checkout"), str(tmp_path / "python")
    wrong = {
        ("--methods", "qan"): "--methods qan: no such method; did you mean qam?",
        ("--modes", "graph", "--device", "cpu"): "--modes graph: CUDA graphs need a GPU",
        ("--modes", "fast"): "invalid choice: 'fast'",
        ("--sizes", "huge"): "invalid choice: 'huge'",
        ("--threads", "1000"): "--threads 1000: this process may use",
        ("--seconds", "nan"): "expected more than 0, found nan",
        ("--turns", "1"): "expected at least 2, found 1",
        ("--out", str(tmp_path)): "speed_table.csv: holds no table of this program",
        ("--out", str(tmp_path / "speed_table.csv")): "cannot be written",
        ("--jax", checkout): "--jax and --jax_python: give both",
        ("--jax", str(tmp_path), "--jax_python", sys.executable): "has no agents/__init__.py",
        ("--jax", checkout, "--jax_python", no_python): "No such file",
    }
    if not torch.cuda.is_available():
        wrong["--device", "cuda"] = "PyTorch finds no GPU here"
    if importlib.util.find_spec("jax") is None:
        wrong["--jax", checkout, "--jax_python", sys.executable] = "No module named 'jax'"
    for arguments, told in wrong.items():
        try:
            code = update.main(arguments)
        except SystemExit as refused:
            code = refused.code
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and line.startswith("error: ") and told in line, arguments


def test_the_agents_of_the_jax_release_are_named_after_our_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {path.stem for path in METHODS.glob("*.yaml")}
    assert set(load("jax_update", monkeypatch).AGENTS) <= known
