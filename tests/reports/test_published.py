"""The published curves, and runs beside them."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from qam_lightning.reports import published
from qam_lightning.reports.report import write_report
from qam_lightning.reports.settings import flat
from qam_lightning.util.configs import CONFIGS, METHODS
from tests.app.conftest import resolved  # noqa: F401  (a fixture)
from tests.reports.folders import make_run, read

PACKAGE = Path(published.__file__).parent
DOMAINS = [
    *("antmaze_giant", "antmaze_large", "humanoidmaze_large", "humanoidmaze_medium", "scene"),
    *("cube_double", "cube_triple", "cube_quadruple", "puzzle_3x3", "puzzle_4x4"),
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with gzip.open(PACKAGE / "published.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_and_domain_of_the_paper_is_found(rows):
    names = {path.stem for path in METHODS.glob("*.yaml")} - {"bc", "trqam"}  # not the paper's
    assert {published.title(name) for name in names} == {row["method"] for row in rows}
    assert published.title("my_own") == "my_own"
    units = set()
    for name in DOMAINS:
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        settings = dict(flat(config))
        domain = config["domain"]
        units |= {published.unit(domain, settings)}
        units |= {published.unit(domain, settings, n) for _, n in published.tasks_of(domain)}
    assert units | {"all"} == {row["task"] for row in rows}


def test_a_domain_is_the_mean_of_its_tasks_and_all_of_the_domains():
    domains = sorted(published.domains())
    assert len(domains) == 10
    for name in ("qam", "rlpd", "cgql_linex"):
        step = 1_250_000
        of = {d: published.published(name, d)[step].mean for d in domains}
        assert np.mean(list(of.values())) == pytest.approx(
            published.published(name, "all")[step].mean, abs=2e-4
        )
        tasks = [
            published.published(name, f"scene-play-singletask-task{n}-v0") for n in range(1, 6)
        ]
        assert np.mean([task[step].mean for task in tasks]) == pytest.approx(
            of["scene-play"], abs=2e-4
        )


@pytest.mark.parametrize(
    ("step", "online_from", "expected"),
    [
        (50_000, None, 50_000),
        (1_000_000, 1_000_000, 1_000_000),
        (1_050_000, 1_000_000, 1_050_000),
        (50_000, 0, 1_050_000),  # without an offline phase
        (4_000 + 50_000, 4_000, 1_050_000),
    ],
)
def test_online_phases_begin_together(step, online_from, expected):
    assert published.published_step(step, online_from) == expected


def test_a_report_has_the_difference_at_the_same_step(tmp_path, rows):
    """QAM on all tasks of cube-double, FQL on one of them; three seeds each, up to 100,000."""
    runs = []
    for task in range(1, 6):
        for seed, score in enumerate((0.1, 0.2, 0.3)):
            runs.append(make_run(tmp_path / f"q{task}{seed}", [0.0, score], task=task, seed=seed,
                                 every=50_000))  # fmt: skip
    runs.append(make_run(tmp_path / "f", [0.0, 1.0], method="fql", task=2, every=50_000))
    runs.append(make_run(tmp_path / "below", [0.0, 0.0], method="qam_edit", domain="puzzle-3x3",
                         every=50_000))  # fmt: skip
    for domain in ("mine", "cube-single"):  # nothing is published, nothing is tuned
        runs.append(make_run(tmp_path / domain, [0.0, 1.0], domain=domain, every=50_000))
    write_report(runs, tmp_path / "report", "x", published=True)
    found = {(r["method"], r["task"]): r for r in read(tmp_path / "report/published.csv")}
    assert len(found) == 5 + 1 + 1 + 1
    theirs = {(r["method"], r["task"]): r for r in rows if r["step_thousands"] == "100"}
    for (method, unit), ours, low, high in (
        (("QAM", "cube-double-play"), 0.2, 0.1, 0.3),
        (("FQL", "cube-double-play-singletask-task2-v0"), 1.0, 1.0, 1.0),
        (("QAM-EDIT", "puzzle-3x3-play-singletask-task1-v0"), 0.0, 0.0, 0.0),
    ):
        row, other = found[method, unit], theirs[method, unit]
        assert [float(row[k]) for k in ("step", "mean", "low", "high")] == pytest.approx(
            [100_000, ours, low, high]
        )
        mean, ci_low, ci_high = (float(other[k]) for k in ("success_mean", "ci_low", "ci_high"))
        assert float(row["difference"]) == pytest.approx(ours - mean, abs=1e-6)
        assert row["overlap"] == str(low <= ci_high and ci_low <= high)
    assert {row["overlap"] for row in found.values()} == {"True", "False"}
    text = (tmp_path / "report/report.md").read_text()
    assert "| QAM | cube-double-play | 100,000 | 20% (10–30)† |" in text
    assert "cube-double-play-singletask-task1" not in text  # the domain's mean is there
    assert "ColinQiyangLi/qam" in text
    steps = "trainer.max_steps 100000 (paper: 1000000)"
    assert f"- QAM, cube-double: {steps}" in text and "QAM, mine" not in text
    assert "QAM, cube-single" not in text


@pytest.mark.parametrize(
    ("method", "domain"),
    [("qam_edit", "scene"), ("rlpd", "humanoidmaze_large"), ("cgql", "cube_quadruple")],
)
def test_the_shipped_configurations_are_the_papers(
    resolved: Callable[..., dict],  # noqa: F811
    method: str,
    domain: str,
) -> None:
    config = resolved(f"--config={domain}.yaml", f"--method={method}")
    settings = dict(flat(config))
    assert published.differences(method, config["domain"], settings) == []
    settings["model.width"], settings["data.fraction"] = 256, 0.5
    found = published.differences(method, config["domain"], settings)
    assert sorted(found) == ["data.fraction 0.5 (paper: 1.0)", "model.width 256 (paper: 512)"]


def test_a_setting_that_a_run_lacks_has_its_default_not_the_papers_value(
    resolved: Callable[..., dict],  # noqa: F811
) -> None:
    config = resolved("--config=humanoidmaze_large.yaml", "--method=qam")
    settings = dict(flat(config))
    del settings["data.horizon"], settings["model.rho"]
    del settings["model.tau"]  # it has no default
    found = published.differences("qam", "humanoidmaze-large", settings)
    assert found == ["data.horizon 5 (paper: 1)", "model.rho 0.5 (paper: 0.0)"]
