"""The pages' code: blocks by language, and the commands in them and in the text."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return a page's commands, as words: those in blocks, and ``python ...`` in the text."""
    shell = [b for b in blocks(page, "bash") if not b.startswith("#!")]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    lines += [c for c in re.findall(r"`([^`]+)`", prose) if re.match(r"(python|make) \S", c)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [[re.sub(r"\b[SMN]$", "1", word) for word in line] for line in words if line]


def files(page: Path) -> dict[str, str]:
    """Return the YAML files that a page shows: name -> text; the first line is ``# name``."""
    found = {}
    for text in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)
        if name:
            found[name[1]] = text
    return found
