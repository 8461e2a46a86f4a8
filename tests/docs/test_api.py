"""The API page names the public names."""

import re

import qam_lightning
from tests.docs.pages import DOCS


def test_the_api_page_names_all_that_the_package_exports() -> None:
    table = (DOCS / "api.md").read_text("utf-8").split("## Methods")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in row.split(", ")}
    assert named == {f"`{name}`" for name in qam_lightning.__all__}
