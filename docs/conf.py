"""The documentation site: `make docs` builds it into build/docs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from qam_lightning import __version__  # noqa: E402

project = "qam_lightning"
author = "the qam_lightning authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # generated tables may start at a lower heading

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"qam_lightning {__version__}"
html_theme_options = {"navigation_with_keys": True}


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings write |x| and a*b as mathematics, not as reStructuredText."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`|:\w+:`.*?`)", line)
        parts[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def skip(app, what, name, obj, skip: bool, options) -> bool | None:
    """The fields of a NamedTuple stand in its docstring already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app) -> None:
    """Escape before napoleon reads the docstring's sections."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    app.connect("autodoc-skip-member", skip)
