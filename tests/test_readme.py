"""The README: its names and links; tests/docs/test_commands.py tests its commands."""

import re
import tomllib
from pathlib import Path

from qam_lightning.data.generate import COLLECTABLE
from tests.methods.paper import TABLE_4

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells, without their heads."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[c.strip() for c in row.split("|")[1:-1]] for row in t.splitlines()[2:]] for t in found
    ]


def test_every_kill_was_survived() -> None:
    assert "we killed runs at 50 random moments. Every resumed run" in README
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
