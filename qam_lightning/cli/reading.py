"""Reading a configuration file: YAML of plain values. Every key is a name and occurs once."""

import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qam_lightning.cli.values import fits, writable
from qam_lightning.util.errors import UserError, reading, shown
from qam_lightning.util.files import regular
from qam_lightning.util.settings import GROUPS

Config = dict[str, Any]

_SECTIONS = {*GROUPS, "model", "tuned"}
_FLAGS_ONLY = {
    "config": "include: FILE reads another file",
    "task": "data.task is one",
    "print_config": "remove it",
    "help": "remove it",
}


def flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Return all values by their whole keys, e.g. ``data.task``."""
    found: Config = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def merge(below: Config, above: Config) -> None:
    """Lay a configuration over another one."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merge(below[key], value)
        else:
            below[key] = value


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number, a date is text, and only plain data can be written.

    `get_single_node` checks a file before any value of it is made.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Return the file's node.

        Raises:
            UserError: a key is no name or is set twice, a tag asks for more than plain data, or
                anchors expand to more than a configuration can hold.
        """
        self._depth, self._nodes = 0, 0
        self._lines: dict[str, int] = {}
        node = super().get_single_node()
        if node is not None:
            self._check(node, "", 0)
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._refusal(self.peek_event(), f"nested more than {_MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # an integer of 5,000 digits, `!!int x`
            kind = node.tag.rpartition(":")[2]
            raise self._refusal(node, f"'{shown(node.value)}' cannot be read as {kind}") from None
        if isinstance(value, int) and not fits(value):
            raise self._refusal(node, f"{shown(value)} does not fit into 64 bits")
        return value

    def _check(self, node: yaml.Node, path: str, depth: int) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise self._refusal(node, f"holds more than {_MAX_NODES:,} values, aliases expanded")
        if depth > _MAX_DEPTH:
            raise self._refusal(node, f"an alias nests it more than {_MAX_DEPTH} levels deep")
        if isinstance(node, yaml.ScalarNode) and not writable(node.value):
            found = shown(node.value)
            raise self._refusal(node, f"'{found}' is not text: it holds NUL or half a character")
        if node.tag not in _PLAIN:
            raise self._refusal(node, f"the tag {shown(node.tag)} is not supported; remove it")
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._check(item, f"{path}{number}.", depth + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = self._check_key(key, path)
                self._check(
                    value, f"{path}{name}.".replace("model.init_args.", "model."), depth + 1
                )

    def _check_key(self, key: yaml.Node, path: str) -> str:
        """Check a key below ``path``; return its name."""
        if not isinstance(key, yaml.ScalarNode):
            raise self._refusal(key, "not valid YAML: a key is a name, not a collection")
        if key.tag not in (_TAG + "str", _TAG + "merge") or not key.value.strip():
            found = f"the key {shown(key.value)}" if key.value.strip() else "an empty key"
            raise self._refusal(key, f"{found} is no name; expected the name of a setting")
        name, line = f"{path}{key.value}", key.start_mark.line + 1
        if name in self._lines:
            where = f"on lines {self._lines[name]} and {line}"
            raise UserError(f"{self.name}: '{shown(name)}' is set twice, {where}; remove one")
        self._lines[name] = line
        return key.value

    def _refusal(self, node: yaml.Node | yaml.Event, problem: str) -> UserError:
        return UserError(f"{self.name}, line {node.start_mark.line + 1}: {problem}")


_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_MAX_DEPTH, _MAX_NODES, _MAX_BYTES = 40, 50_000, 2**20

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


yaml.SafeDumper.add_multi_representer(  # defaults of Lightning's callbacks
    enum.Enum, lambda dumper, member: dumper.represent_str(str(member.value))
)


class Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, Dumper):
    _kind.add_implicit_resolver(
        _TAG + "float",
        re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+"),
        list("-+0123456789"),
    )


def read_config(path: Path) -> Config:
    """Read a configuration file, without interpreting it.

    Raises:
        UserError: it is not YAML, does not hold keys and values, or sets a key twice.
    """
    config = read_yaml(read_text(path, "a configuration file"), str(path))
    if config is not None and not isinstance(config, dict):
        raise UserError(f"{path}: expected keys with values, found {_found(config)}")
    config = _nested(config or {}, path)
    for key, instead in _FLAGS_ONLY.items():
        if key in config:
            raise UserError(f"{path}: {key} is a flag and no key of a file; {instead}")
    for label in ("domain", "method"):
        if label in config and config[label] is None:
            del config[label]
    for section in _SECTIONS & config.keys():
        config[section] = _settings(config, section, section, path)
    if "model" in config:
        config["model"] = _model(config["model"], path)
    return {key: value for key, value in config.items() if value or key not in _SECTIONS}


def read_text(path: Path, what: str) -> str:
    """Read the text of a YAML file.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        UserError: it cannot be read, is larger than 1 MiB, or is not text in UTF-8.
    """
    with reading(path), regular(path).open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: is larger than 1 MiB, expected {what}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML text file") from error


def read_yaml(text: str, name: str) -> Any:
    """Read plain values from YAML.

    Args:
        text: the YAML.
        name: where it stands, for messages.

    Raises:
        UserError: it is not YAML, or more than plain values.
    """
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{name}, line {line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not a YAML text file") from error


def _settings(config: Config, key: str, name: str, path: Path) -> Config:
    """Return a section's settings; a heading alone has none."""
    value = config.get(key)
    if name == "model" and isinstance(value, str):
        value = {"class_path": value}
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {name} is {_found(value)}, expected keys with values")
    return value or {}


def _found(value: object) -> str:
    """Name a value as it stands in a file."""
    if isinstance(value, str):
        return f"'{shown(value)}'"
    return "a list" if isinstance(value, list) else shown(value)


def _nested(config: Config, path: Path) -> Config:
    """Write ``data.task: 2`` as ``data: {task: 2}``; `_Loader` has refused a key in both forms."""
    found: Config = {}
    for key in sorted(config, key=lambda key: "." in key):  # plain ones first
        value = config[key]
        *sections, name = key.split(".")
        place = found
        for section in sections:
            place = _section(place, section, key, path)
        if isinstance(value, dict):
            merge(_section(place, name, key, path), _nested(value, path))
        else:
            place[name] = value
    return found


def _section(config: Config, name: str, key: str, path: Path) -> Config:
    if config.get(name) is None:
        config[name] = {}
    if not isinstance(config[name], dict):
        raise UserError(
            f"{path}: '{key}' is set, and '{name}' is {shown(config[name])}; remove one"
        )
    return config[name]


def _model(model: Config, path: Path) -> Config:
    """Return the section of the method, with all settings below ``init_args``."""
    settings = _settings(model, "init_args", "model.init_args", path)
    short = {key: value for key, value in model.items() if key not in ("class_path", "init_args")}
    found: Config = {"init_args": {**short, **settings}} if short or settings else {}
    if "class_path" in model:
        name = model["class_path"]
        if not isinstance(name, str) or not name.strip():
            expected = "expected the name of a class"
            raise UserError(f"{path}: model.class_path is {_found(name)}, {expected}")
        found["class_path"] = name
    return found
