"""The tables of results in the documentation are those that ``study report`` wrote."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import pytest

from qam_lightning.evaluation.statistics import over_seeds
from qam_lightning.reports.page import GENERATOR
from qam_lightning.reports.published import title
from qam_lightning.reports.report import check_output
from qam_lightning.studies.study import STUDIES
from tests.docs.pages import DOCS, PAGES, README

HEADING = "Success after training"
REPORTS = sorted(path.parent for path in (DOCS / "reports").glob("*/report.md"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(page: str, heading: str) -> dict[str, dict[str, str]]:
    """Return the first table below a heading: name of a row -> name of a column -> cell."""
    below = page.partition(f"## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)[0].splitlines()
    columns, _, *body = ([c.strip() for c in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in body}


def variant(row: dict[str, str]) -> str:
    """Return the name of a row's method with its settings, which stand after its seed."""
    columns = list(row)
    settings = columns[columns.index("seed") + 1 : columns.index("finished")]
    told = [f"{key.rpartition('.')[2]} {row[key]}" for key in settings if row[key]]
    return ", ".join([title(row["method"]), *told])


def percent(scores: list[float]) -> str:
    estimate = over_seeds(scores)
    return estimate.percent() + ("" if estimate.bounds.startswith("95%") else "†")


@pytest.mark.parametrize("folder", REPORTS, ids=lambda folder: folder.name)
def test_a_report_is_of_a_study_that_ships_and_of_one_commit(folder: Path) -> None:
    check_output(folder)
    assert GENERATOR in (folder / "index.html").read_text("utf-8")
    assert (STUDIES / f"{folder.name}.yaml").exists()
    (commit,) = {row["commit"] for row in rows(folder / "runs.csv")}
    assert re.fullmatch("[0-9a-f]{40}", commit)


@pytest.mark.parametrize("folder", REPORTS, ids=lambda folder: folder.name)
def test_the_page_shows_what_the_runs_scored(folder: Path) -> None:
    """The scores of runs.csv are the last evaluations; the page's table is made of them."""
    last: dict[str, dict[str, str]] = {}
    for row in rows(folder / "evaluations.csv"):
        last[row["folder"]] = row
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows(folder / "runs.csv"):
        assert float(row["final"]) == float(last[row["folder"]]["success"])
        found[variant(row), row["domain"]].append(float(row["final"]))
    shown = table((folder / "report.md").read_text("utf-8"), HEADING)
    assert len(shown) == len({name for name, _ in found})
    for (name, domain), scores in found.items():
        assert shown[name][domain] == percent(scores)


def quotable(folder: Path) -> set[str]:
    """The rows of a report's table as pages quote them: without the number of seeds."""
    rows = table((folder / "report.md").read_text("utf-8"), HEADING)
    return {
        f"| {' | '.join([name, *(cell for c, cell in cells.items() if c != 'seeds')])} |"
        for name, cells in rows.items()
    }


@pytest.mark.parametrize(
    ("page", "study"),
    [
        (README, "quickstart_seeds"),
        (DOCS / "results.md", "quickstart_seeds"),
        (DOCS / "results.md", "comparison"),
        (DOCS / "integrators.md", "integrator"),
        (DOCS / "integrators.md", "integrator_t10"),
        (DOCS / "integrators.md", "integrator_t10_same_tau"),
        (DOCS / "methods/bc.md", "clone_once"),
    ],
)
def test_pages_quote_reports_whole(page: Path, study: str) -> None:
    assert quotable(DOCS / "reports" / study) <= set(page.read_text("utf-8").splitlines())


def test_every_table_of_success_rates_is_a_reports() -> None:
    rate = re.compile(r"\|\s*\d+% \(\d+–")
    known = set().union(*map(quotable, REPORTS))
    pages = [page for page in PAGES if DOCS / "reports" not in page.parents]
    found = {line for p in pages for line in p.read_text("utf-8").splitlines() if rate.search(line)}
    assert found and found <= known
