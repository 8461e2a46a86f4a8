"""What can be set, read from the source without importing it.

Importing a class that trains takes seconds: PyTorch, Lightning, simulators. Its constructor's
names, types, defaults and docstrings are text, and reading that takes milliseconds.
"""

import ast
import contextlib
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import docstring_parser

import qam_lightning
from qam_lightning.util.errors import UserError

GROUPS = {
    "trainer": "qam_lightning.cli.trainer.Trainer",
    "data": "qam_lightning.data.datamodule.ChunkDataModule",
    "log": "qam_lightning.callbacks.metrics.MetricsLogger",
    "evaluation": "qam_lightning.callbacks.evaluation.Evaluate",
    "checkpoints": "qam_lightning.callbacks.checkpoints.Checkpoints",
    "progress": "qam_lightning.callbacks.progress.Progress",
    "online": "qam_lightning.callbacks.online.Online",
}
"""Group of settings -> the class that takes them. Callbacks act in this order."""

CALLBACKS = ("log", "evaluation", "checkpoints", "progress", "online")
"""The groups that are callbacks."""

METHOD = "qam_lightning.methods.base.Method"

_FIELDS = ("field", "setting")
"""Functions that declare a field: ``field(0.5, ...)`` or ``field(default=0.5)``."""

_SLOW = ("lightning", "torch")
"""Packages that hold no settings of ours and take long to read."""

DERIVED = {
    "data": {"seed"},
    "log": {"run_dir"},
    "checkpoints": {"run_dir"},
    "online": {"run_dir", "seed"},
    "model": {"spaces", "discount", "seed"},
}
"""Arguments that the command line fills in from other settings, see `cli.training.FitCLI`."""


class Setting(NamedTuple):
    """An argument of a constructor or a function.

    Attributes:
        type: the annotation, as written, and the range where one is declared.
        default: the default, as written; None if there is none.
        help: what the docstring says of it.
    """

    type: str
    default: str | None
    help: str

    @property
    def value(self) -> object:
        """The default as a value; the text itself where it is no literal."""
        try:
            return ast.literal_eval(self.default or "None")
        except ValueError:
            return self.default


@functools.cache
def settings_of(name: str) -> dict[str, Setting]:
    """Return the settings of a class or function.

    Args:
        name: with its module, e.g. ``qam_lightning.methods.qam.QAM``, or with the package that it
            is exported from.

    Returns:
        Argument -> setting; empty if the source cannot be found. Arguments that a class hands on
        (``**kwargs``) and fields of data classes are those of its bases, too.
    """
    name = resolved(name)
    module, _, attribute = name.rpartition(".")
    tree, _ = _source(module)
    node = next((n for n in tree.body if getattr(n, "name", None) == attribute), None)
    if isinstance(node, ast.FunctionDef):
        return _arguments(node, ast.get_docstring(node))
    if not isinstance(node, ast.ClassDef):
        return {}
    constructor = next((n for n in node.body if getattr(n, "name", None) == "__init__"), None)
    inherited: dict[str, Setting] = {}
    if not isinstance(constructor, ast.FunctionDef) or constructor.args.kwarg:
        for base in reversed(node.bases):
            inherited |= settings_of(_qualified(ast.unparse(base), module))
    if isinstance(constructor, ast.FunctionDef):
        texts = (ast.get_docstring(node), ast.get_docstring(constructor))
        return inherited | _arguments(constructor, "\n\n".join(filter(None, texts)))
    kept = {name: setting for name, setting in inherited.items() if name not in _constants(node)}
    return kept | dict(_fields(node))


def resolved(name: str) -> str:
    """Return a class's name with the module that defines it, e.g. for ``qam_lightning.QAM``."""
    module, _, attribute = name.rpartition(".")
    if module == "qam_lightning":  # imported when first used, so not by an import statement
        home = qam_lightning._HOMES.get(attribute)
        return f"{module}.{home}.{attribute}" if home else name
    origin = _qualified(attribute, module)
    return name if origin == name else resolved(origin)


@functools.cache
def _source(module: str) -> tuple[ast.Module, bool]:
    """Return a module's text, parsed, and whether it is a package; empty if it cannot be found."""
    package, *inner = module.split(".")
    spec = None
    if package not in _SLOW:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)  # its modules' specs would import the package
    homes = getattr(sys.modules.get(package), "__path__", spec and spec.submodule_search_locations)
    places = [Path(home, *inner) for home in homes or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    if spec and spec.origin and not inner:
        files.append(Path(spec.origin))
    path = next((file for file in files if file.suffix == ".py" and file.is_file()), Path())
    text = path.read_bytes() if path.name else b""
    try:
        return ast.parse(text), path.name == "__init__.py"
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"{where}: not valid Python: {getattr(error, 'msg', error)}") from error


def _qualified(name: str, module: str) -> str:
    """Return a name with the module that it is imported from, as a module's text says."""
    tree, is_package = _source(module)
    package = module if is_package else module.rpartition(".")[0]
    first, dot, rest = name.partition(".")
    for node in tree.body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            if isinstance(node, ast.Import):
                if alias.asname == first:
                    return f"{alias.name}{dot}{rest}"
                if alias.asname is None and alias.name.partition(".")[0] == first:
                    return name
            elif (alias.asname or alias.name) == first:
                relative = f"{'.' * node.level}{node.module or ''}"
                try:
                    source = importlib.util.resolve_name(relative, package)
                except ImportError:  # beyond the outermost package
                    continue
                return f"{source}.{alias.name}{dot}{rest}"
    return f"{module}.{name}"


def _arguments(function: ast.FunctionDef, docstring: str | None) -> dict[str, Setting]:
    texts = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(docstring or "").params
    }
    positional = [a for a in function.args.args if a.arg != "self"]
    given = [None] * (len(positional) - len(function.args.defaults)) + function.args.defaults
    arguments = [*positional, *function.args.kwonlyargs]
    defaults = [*given, *function.args.kw_defaults]
    return {
        argument.arg: Setting(
            _text(argument.annotation), _text(default) or None, _line(texts.get(argument.arg, ""))
        )
        for argument, default in zip(arguments, defaults, strict=True)
    }


def _is_constant(field: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(field.annotation)


def _constants(node: ast.ClassDef) -> set[str]:
    """Return the attributes that a class annotates as constants, which are no settings of it."""
    fields = (field for field in node.body if isinstance(field, ast.AnnAssign))
    return {ast.unparse(field.target) for field in fields if _is_constant(field)}


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, Setting]]:
    """Yield the annotated fields of a class, each with the string that stands below it."""
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or _is_constant(field):
            continue
        documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        text = str(below.value.value) if documented else ""  # type: ignore[union-attr]
        kind = ", ".join([_text(field.annotation), *_bounds(field.value)])
        yield (
            ast.unparse(field.target),
            Setting(kind, _default(field.value), _line(text)),
        )


def _default(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and _text(value.func).rpartition(".")[2] in _FIELDS:
        named = {k.arg: k.value for k in value.keywords}
        value = value.args[0] if value.args else named.get("default")
    return _text(value) or None


def _bounds(value: ast.expr | None) -> list[str]:
    """Return the range that a field declares, e.g. ``at least 0``."""
    names = ("at_least", "above", "at_most", "below")
    declared = value.keywords if isinstance(value, ast.Call) else []
    return [f"{k.arg.replace('_', ' ')} {_text(k.value)}" for k in declared if k.arg in names]


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node else ""


def _line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def known(method: str = METHOD) -> dict[str, Setting]:
    """Return all settings of the groups and of a method's class by key, e.g. ``data.task``."""
    found = {}
    for group, name in (*GROUPS.items(), ("model", method)):
        for argument, setting in settings_of(name).items():
            if argument not in DERIVED.get(group, ()):
                found[f"{group}.{argument}"] = setting
    return found


@functools.cache
def defaults(method: str) -> dict[str, object]:
    """Return the defaults that are literals, of the groups and of a method's class.

    They are what a configuration means that an older version wrote, which did not know them.
    """
    found = {}
    for key, setting in known(method).items():
        with contextlib.suppress(ValueError):
            if setting.default is not None:
                found[key] = ast.literal_eval(setting.default)
    return found


def is_method(name: str) -> bool:
    """Whether a class has a method's settings."""
    return settings_of(name).keys() >= settings_of(METHOD).keys()
