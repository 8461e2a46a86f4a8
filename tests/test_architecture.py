"""The house rules: who may import whom, and that nothing is written twice."""

import ast
import sys
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qam_lightning"
COMMON = {f"qam_lightning.{name}" for name in ("arguments", "batch", "errors", "provenance")}
"""Root modules that every room may use."""

MAY_IMPORT: dict[str, set[str]] = {
    "core": {"torch"},
    "nets": {"torch", "core"},
    "methods": {"torch", "lightning", "core", "nets"},
    "data": {"numpy", "torch", "lightning", "ogbench", "gymnasium", "rich", "minari", "envs"},
    "online": {"numpy", "torch", "data", "envs"},
    "envs": {"numpy", "gymnasium", "ogbench"},
    "callbacks": {"torch", "numpy", "lightning", "rich", "wandb", "yaml"}
    | {"data", "envs", "evaluation", "methods", "online"},
    "evaluation": {"numpy", "matplotlib", "imageio", "rich"},
    "laboratory": {"torch", "numpy", "matplotlib", "rich", "yaml"}
    | {"core", "nets", "methods", "explain"},
}


def rooms() -> list[str]:
    return sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())


def imports(path: Path) -> set[str]:
    """Return the full names of all modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_every_room_has_a_rule() -> None:
    assert rooms() == sorted(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_they_may(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for name in imports(path) - COMMON:
            top, *rest = name.split(".")
            if top in sys.stdlib_module_names:
                continue
            if top == "qam_lightning":
                assert rest[:1] == [room] or rest[0] in MAY_IMPORT[room], f"{path}: {name}"
            else:
                assert top in MAY_IMPORT[room], f"{path}: {name}"


def test_nothing_knows_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "qam_lightning.cli" not in imports(path), path


def test_methods_know_only_the_contract_among_themselves() -> None:
    for path in (PACKAGE / "methods").glob("*.py"):
        inside = {n for n in imports(path) if n.startswith("qam_lightning.methods")}
        assert inside <= {"qam_lightning.methods.base"}, path


def code_lines(path: Path) -> list[str]:
    """Return a file's lines of code: no blank lines, comments, docstrings or imports."""
    tree = ast.parse(path.read_text())
    prose: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                prose |= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            prose |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(path.read_text().splitlines(), 1)
    kept = (line.strip() for number, line in lines if number not in prose)
    return [line for line in kept if line and not line.startswith("#")]


def test_no_two_methods_share_six_equal_lines() -> None:
    methods = [p for p in (PACKAGE / "methods").glob("*.py") if p.stem != "__init__"]
    windows = {
        path: {tuple(lines[i : i + 6]) for i in range(len(lines) - 5)}
        for path in methods
        for lines in [code_lines(path)]
    }
    for one, other in combinations(methods, 2):
        assert not windows[one] & windows[other], f"{one.name} and {other.name}"


def test_two_levels_of_inheritance_at_most() -> None:
    for path in (PACKAGE / "methods").glob("*.py"):
        if path.stem in ("__init__", "base"):
            continue
        classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
        assert [ast.unparse(b) for c in classes for b in c.bases] == ["Method"], path


def test_top_level_holds_what_newcomers_expect() -> None:
    for name in ("train.py", "eval.py", "configs", "environment.yml", "README.md", "LICENSE"):
        assert (ROOT / name).exists(), name
