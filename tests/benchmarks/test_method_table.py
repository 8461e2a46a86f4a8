"""benchmarks/method_table.py counts parameters, measures, and goes on where it was."""

import csv
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.loading import load
from tests.methods.paper import TABLE_4
from tests.methods.test_parameter_counts import TABLE_6, size


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("method_table", monkeypatch)


def test_table_6_is_the_papers(table: ModuleType) -> None:
    kinds = {name: type(table.build(name, "quickstart")).__name__ for name in table.TABLE_6}
    assert {kinds[name]: count for name, count in table.TABLE_6.items()} == TABLE_6
    assert TABLE_4 - set(table.TABLE_6) == {"bam", "rlpd"}


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("qam", ["behavior", "fine_tuned"]),
        ("qam_edit", ["behavior", "fine_tuned", "edit"]),
        ("fql", ["one_step"]),
        ("ifql", ["behavior", "critic"]),  # the best of 32
        ("cgql", ["behavior_ema", "critic"]),  # guided
        ("dsrl", ["behavior_ema", "noise_policy"]),
        ("dac", ["actor"]),
        ("rebrac", ["actor"]),
    ],
)
def test_the_parameters_that_acting_reads(
    name: str, networks: list[str], table: ModuleType
) -> None:
    method = table.build(name, "quickstart")
    counts = table.parameters(method)
    assert counts["acting"] == sum(size(method.get_submodule(part)) for part in networks)
    targets = sum(size(target) for _, target in method.ema_pairs())
    assert counts["stored"] == size(method) == counts["trained"] + targets


@pytest.mark.slow
def test_a_method_is_measured_once(
    table: ModuleType,
    tmp_path: Path,
    traced: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(table, "MODES", ("eager",))  # compiling takes a minute
    out = tmp_path / "new" / "table"
    quick = ["--size", "quickstart", "--device", "cpu", "--seconds", "0.01", "--repeats", "2"]
    arguments = [*quick, "--methods", "rebrac", "--out", str(out)]
    assert table.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "[1/1] rebrac, quickstart, eager: " in printed and "| rebrac | 257,950 |" in printed
    with out.with_suffix(".csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["method"], row["mode"], row["threads"]) == ("rebrac", "eager", "1")
    assert (row["trained"], row["stored"], row["acting"]) == ("257950", "515900", "42265")
    assert float(row["update_ms"]) > float(row["chunk_ms"]) > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".md").read_text() == printed.split("\n", 1)[1]

    before = out.with_suffix(".csv").read_bytes()
    assert table.main(arguments) == 0
    assert "[1/1]" not in capfd.readouterr().out
    assert out.with_suffix(".csv").read_bytes() == before
    monkeypatch.setattr(table.update, "digest", lambda *others: "other code")
    assert table.main(arguments) == 0
    assert "[1/1]" in capfd.readouterr().out


def test_the_papers_size_stands_beside_table_6(table: ModuleType) -> None:
    about = {"commit": "c", "code": "d", "versions": "v", "device": "cpu", "processor": "p"}
    counts = {"trained": 10_000, "stored": 20_000, "acting": 3_000}
    rows = [
        table.Row(
            **about, **counts, threads=1, seconds=1.0, method=name, size="paper", mode=mode,
            update_ms=12.34, chunk_ms=0.5,
        )
        for name, mode in (("qam", "eager"), ("qam", "compiled"), ("rlpd", "eager"))
    ]  # fmt: skip
    page = table.markdown(rows)
    assert "| qam | 10,000 | 20,000 | 19,941,496 | 3,000 | 12.3 | 12.3 | 0.5 | 0.5 |" in page
    assert "| rlpd | 10,000 | 20,000 |  | 3,000 | 12.3 |  | 0.5 |  |" in page


def test_mistakes_are_answered_with_one_line(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("time,size\n1,2\n")
    (tmp_path / "file").write_text("")
    wrong = {
        ("--methods", "qamm"): "--methods qamm: no such method; did you mean qam",
        ("--size", "huge"): "invalid choice: 'huge'",
        ("--threads", "1000"): "--threads 1000: this process may use",
        ("--out", str(tmp_path / "table")): "table.csv: holds no table of this program",
        ("--out", str(tmp_path / "file" / "table")): "cannot be written",
    }
    for arguments, told in wrong.items():
        try:
            code = table.main([*arguments, "--device=cpu"])
        except SystemExit as refused:
            code = refused.code
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and line.startswith("error: ") and told in line, arguments
