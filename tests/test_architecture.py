"""Who may import whom. docs/development.md explains the packages; this holds them to it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qam_lightning"

LAYERS = (
    {"cli", "studies", "__main__"},
    {"laboratory", "reports"},
    {"callbacks", "loggers"},
    {"online", "policy", "pretrained", "export", "checkpoints", "run_folder"},
    {"methods", "evaluation"},
    {"envs", "data"},
    {"nets"},
    {"core"},
    {"runtime"},
    {"util"},
)
"""From top to bottom: a package uses its own layer and those below."""

EXCEPTIONS = {
    ("methods", "callbacks.base"): "the module attaches its EMA callback",
    ("methods", "callbacks.ema"): "the module attaches its EMA callback",
    ("methods", "callbacks.metrics"): "the module attaches rows for the trainer's loggers",
}

ONLY = {
    "core": {"torch"},
    "nets": {"torch"},
    "online": {"numpy", "torch"},
    "methods": {"torch", "lightning"},
    "runtime": {"numpy", "onnxruntime"},
}
"""What these packages may import from outside, besides the standard library."""


def imports(path: Path) -> set[str]:
    """Return the full names of the modules a file imports, but for those only types need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def parts() -> list[str]:
    """Return the names of the subpackages, and of the modules beside them."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return sorted(folders | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"})


@pytest.mark.parametrize("part", parts())
def test_packages_use_only_what_lies_below(part: str) -> None:
    single = PACKAGE / f"{part}.py"
    for path in [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py")):
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "qam_lightning":
                allowed = not rest or layer(rest[0]) >= layer(part)
                assert allowed or (part, ".".join(rest)) in EXCEPTIONS, f"{path}: {name}"
            elif part in ONLY and top not in sys.stdlib_module_names:
                assert top in ONLY[part], f"{path}: {name}"


def test_the_top_level_holds_what_newcomers_expect() -> None:
    for name in ("train.py", "eval.py", "configs", "environment.yml", "README.md", "LICENSE"):
        assert (ROOT / name).exists(), name
