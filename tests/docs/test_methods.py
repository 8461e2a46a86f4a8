"""The page of every method names what is in the code."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

from qam_lightning.methods.base import Method
from tests.docs.pages import DOCS, ROOT
from tests.methods.paper import TABLE_4

FOLDER = DOCS / "methods"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.stem != "index")
LOGGED = set(re.findall(r"^\| `([^`]+)`", (DOCS / "metrics.md").read_text("utf-8"), re.MULTILINE))
MATHEMATICS = [
    importlib.import_module(f"qam_lightning.{name}")
    for name in (
        *(f"core.{p.stem}" for p in (ROOT / "qam_lightning" / "core").glob("[!_]*.py")),
        "methods.losses",
    )
]


def names(page: Path) -> dict[str, set[str]]:
    """Return the code names of a page's tables, by column: functions or settings, and metrics."""
    rows = re.findall(r"^\|.*\| (.*?) \| (.*?) ?\|$", page.read_text("utf-8"), re.MULTILINE)
    functions, metrics = (
        set(re.findall(r"`(.*?)`", " ".join(column))) for column in zip(*rows, strict=True)
    )
    return {"functions": functions, "metrics": metrics}


def test_the_overview_links_all() -> None:
    linked = set(re.findall(r"\((\w+)\.md\)", (FOLDER / "index.md").read_text("utf-8")))
    assert linked == {path.stem for path in PAGES} and linked >= TABLE_4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_functions_settings_and_metrics_are_the_codes(page: Path) -> None:
    found = names(page)
    assert found["metrics"] <= LOGGED
    functions = {name for module in MATHEMATICS for name in vars(module)}
    assert found["functions"] <= functions | settings(page.stem)
    used = "".join(sources(page.stem))
    assert {name for name in found["functions"] if name not in used} == set()


def classes(page: str) -> list[type]:
    """Return a page's method and the methods that it extends."""
    name = "base" if page == "shared" else page
    module = importlib.import_module(f"qam_lightning.methods.{name}")
    (method,) = (
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Method) and c.__module__ == module.__name__
    )
    return [c for c in method.__mro__ if issubclass(c, Method)]


def settings(page: str) -> set[str]:
    """Return the settings of a page's method."""
    return {f.name for f in dataclasses.fields(classes(page)[0])}


def sources(page: str) -> list[str]:
    """Return the text of a page's method, of those it extends, and of all mathematics."""
    own = [inspect.getsource(importlib.import_module(c.__module__)) for c in classes(page)]
    return own + [inspect.getsource(module) for module in MATHEMATICS]
