"""The tables of docs/integrators.md: the closed forms computed anew, the rest as in its file."""

import re

import pytest

from qam_lightning.core.flow import TimeGrid
from qam_lightning.laboratory.optimum import behavior_distance, distances
from qam_lightning.laboratory.problems import PROBLEMS
from tests.core.test_denoiser import errors
from tests.docs.pages import DOCS
from tests.docs.test_results import rows

PAGE = (DOCS / "integrators.md").read_text("utf-8")
W1 = {
    (row["problem"], row["method"], row["flow_steps"], row["steps"]): float(row["w1"])
    for row in rows(DOCS / "integrators.csv")
}


def cells(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, line by line."""
    below = PAGE.partition(f"# {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def is_rounded(cell: str, value: float) -> bool:
    """Whether a cell shows a number; of one halfway between two cells, either may stand there."""
    digits, percent = cell.replace("−", "-").rstrip("%"), cell.endswith("%")
    half = 0.5 / 10 ** len(digits.partition(".")[2])
    return abs(float(digits) - (100 * value if percent else value)) <= half * 1.01


CLOSED_FORMS = cells("Why")
LABORATORY = cells("In the laboratory")
LONGER = cells("Training or scheme?")


@pytest.mark.parametrize("line", CLOSED_FORMS, ids=lambda line: f"s {line[0]}, T {line[1]}")
def test_the_table_of_closed_forms_is_what_the_schemes_do(line: list[str]) -> None:
    width, steps = float(line[0]), int(line[1])
    found = errors("shifted_euler", TimeGrid(steps), width, "euler")
    found += errors("denoiser", TimeGrid(steps, 2.0), width, "etd2")
    shown = ", ".join(line[2:]).split(", ")
    wrong = [pair for pair in zip(shown, found, strict=True) if not is_rounded(*pair)]
    assert wrong == []


def test_the_laboratorys_tables_are_of_the_file() -> None:
    shown = {}
    for name, floor, steps, _, _, paper, _, denoiser in LABORATORY:
        shown[name, "exact tilt", "0", "0"] = floor
        shown[name, "qam", steps, "500"] = paper
        shown[name, "qam_denoiser", steps, "500"] = denoiser
    for name, steps, paper, longer_paper, denoiser, longer in LONGER:
        assert shown[name, "qam", steps, "500"] == paper
        assert shown[name, "qam_denoiser", steps, "500"] == denoiser
        shown[name, "qam", steps, "4000"] = longer_paper
        shown[name, "qam_denoiser", steps, "4000"] = longer
    assert [key for key, cell in shown.items() if not is_rounded(cell, W1[key])] == []
    assert shown.keys() == {key for key in W1 if key[1] != "behaviour"}


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("500", "At T = 5, the `denoiser` scheme's distance to the tilt is {} to {} times smaller"),
        ("4000", "stays nearer on every problem: by a factor of {} to {} at T = 5, and of"),
    ],
)
def test_the_page_says_how_much_nearer_the_denoiser_scheme_comes(steps: str, sentence: str) -> None:
    ratios = [
        W1[name, "qam", "5", steps] / W1[name, "qam_denoiser", "5", steps] for name in PROBLEMS
    ]
    assert sentence.format(f"{min(ratios):.0f}", f"{max(ratios):.0f}") in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("line", LABORATORY, ids=lambda line: f"{line[0]}, T {line[2]}")
def test_the_minimiser_and_the_samplers_are_as_the_table_says(line: list[str]) -> None:
    name, _, steps, euler, minimiser, _, etd2, _ = line
    if PROBLEMS[name].dim > 1:
        assert euler == minimiser == etd2 == "–"
        return
    found = (
        *distances(PROBLEMS[name], int(steps)),
        behavior_distance(PROBLEMS[name], int(steps), "etd2", 2.0),
    )
    wrong = [p for p in zip((euler, minimiser, etd2), found, strict=True) if not is_rounded(*p)]
    assert wrong == []
