"""The README: its numbers, names and links; tests/docs/test_commands.py tests its commands."""

import re
import tomllib
from pathlib import Path

from qam_lightning.data.generate import COLLECTABLE
from qam_lightning.evaluation.statistics import over_seeds, wilson_interval
from tests.methods.paper import TABLE_4

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells, without their heads."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[c.strip() for c in row.split("|")[1:-1]] for row in t.splitlines()[2:]] for t in found
    ]


def seeds(text: str) -> list[list[list[str]]]:
    """The tables with a row per seed and one of their mean."""
    return [table for table in tables(text) if table[-1][0].startswith("mean (")]


def test_means_follow_from_the_seeds_and_say_what_their_bounds_are() -> None:
    found = seeds(RESULTS)
    assert found
    for *rows, (name, *means) in found:
        for column, mean in enumerate(means, start=1):
            scores = [int(re.match(r"\d+", row[column])[0]) / 100 for row in rows]  # type: ignore[index]
            estimate = over_seeds(scores)
            assert (name, mean) == (f"mean ({estimate.bounds})", estimate.percent())


def test_intervals_of_one_policy_are_wilsons() -> None:
    checked = 0
    for *rows, _ in seeds(RESULTS):
        for cell in (cell for row in rows for cell in row[1:]):
            if bounds := re.match(r"(\d+)% \((\d+)–(\d+)", cell):
                rate, low, high = map(int, bounds.groups())
                found = [wilson_interval(rate * n / 100, n) for n in (50, 100)]
                assert (low, high) in [(round(100 * x.low), round(100 * x.high)) for x in found]
                checked += 1
    assert checked >= 6


def test_every_kill_was_survived() -> None:
    assert "50 of 50 kills" in README
    table = (ROOT / "docs/crash_table.md").read_text("utf-8")
    assert re.search(r"in \*\*50 of 50\*\*\s+kills", table)


def test_all_methods_are_named() -> None:
    assert len(TABLE_4) == 17 and "**Seventeen methods**" in README and "sixteen other" in README
    named = {name.lower().replace("-", "_") for name in re.findall(r"[A-Za-z-]+", README)}
    assert named >= TABLE_4


def test_the_domains_are_those_with_a_configuration() -> None:
    (domains,) = (t for t in tables(README) if t[0][0].startswith("`cube-double`"))
    named = re.findall(r"`([^`]+)`", " ".join(row[0] for row in domains))
    flat = [n for name in named for n in expanded(name)]
    configured = {find.stem.replace("_", "-") for find in (ROOT / "configs").glob("*_*.yaml")}
    configured |= {"scene"}
    assert sorted(flat) == sorted(configured - {"quickstart-cube"})
    for names, how in domains:
        for name in (n for quoted in re.findall(r"`([^`]+)`", names) for n in expanded(quoted)):
            assert ("collect" in how) == (name in COLLECTABLE)


def expanded(name: str) -> list[str]:
    """``a-{b,c}`` -> ``a-b``, ``a-c``."""
    inner = re.match(r"(.*)\{(.*)\}", name)
    return [inner[1] + part for part in inner[2].split(",")] if inner else [name]


def test_links_lead_to_files() -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", README) if not x.startswith("http")]
    assert links and [x for x in links if not (ROOT / x).is_file()] == []


def test_the_supported_versions_are_those_that_can_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11" and "Python 3.11 or newer" in README
    for name, text in (("torch", "torch 2.8 or newer"), ("lightning", "lightning 2.6.4 or newer")):
        (needed,) = (x for x in project["dependencies"] if re.match(rf"{name}\W", x))
        assert f">={text.split()[1]}" in needed and text in README


def test_the_python_example_is_the_one_that_the_library_page_tests() -> None:
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (example,) = (block for block in found if "load_policy" in block)
    library = (ROOT / "docs/library.md").read_text("utf-8")
    assert example in re.sub(r"  # .*", "", library)
