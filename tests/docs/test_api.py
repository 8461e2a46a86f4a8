"""The API page names the public names."""

import re
from pathlib import Path

import qam_lightning
from tests.docs.pages import DOCS


def test_the_api_page_names_all_that_the_package_exports() -> None:
    table = (DOCS / "api.md").read_text("utf-8").split("## Methods")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in row.split(", ")}
    assert named == {f"`{name}`" for name in qam_lightning.__all__}


def test_the_development_guide_names_every_package() -> None:
    folder = Path(qam_lightning.__file__).parent
    parts = [p for p in folder.iterdir() if not p.name.startswith("_") and p.name != "py.typed"]
    names = {f"{p.name}/" if p.is_dir() else p.name for p in parts}
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "development.md").read_text("utf-8"), re.MULTILINE)
    assert names - {name.strip("`") for row in rows for name in row.split(", ")} == set()
