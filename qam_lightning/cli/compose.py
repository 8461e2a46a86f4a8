"""Configuration files and flags of ``fit``, composed into one configuration.

Later layers override earlier ones:

    configs/base.yaml
    the method's file
    the domain's file
    every ``--config`` file, in order, each after the files that it includes
    the flags

``method`` and ``domain`` choose the second and third layer, as flags and as keys of files. A flag
overrides a file, and a later file an earlier one. ``--config scene.yaml`` is the same as
``--domain scene``. Settings that a file holds for a method or domain that was not chosen are left
out, see `_without_method` and `_without_domain`.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qam_lightning.cli.settings import METHOD, known, resolved, settings_of
from qam_lightning.util.arguments import closest
from qam_lightning.util.configs import CONFIGS, METHODS
from qam_lightning.util.errors import UserError

Config = dict[str, Any]

DEFAULT_METHOD = "qam"
_NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|-\.inf", re.IGNORECASE)
_VALUES = ("--config", "-c", "--domain", "--method", "--task")


class Layer(NamedTuple):
    """A configuration file.

    Attributes:
        path: the file.
        config: what it holds.
    """

    path: Path
    config: Config

    @property
    def class_path(self) -> str | None:
        """The method's class that the file names."""
        return self.config.get("model", {}).get("class_path")

    @property
    def names_method(self) -> bool:
        """Whether the file chooses a method, by name or by class."""
        return "method" in self.config or self.class_path is not None


class Composition(NamedTuple):
    """What a command line results in, before it is parsed.

    Attributes:
        config: the merged files, ``${...}`` unresolved.
        flags: the flags, which override the files.
        places: key -> the file that set it last.
    """

    config: Config
    flags: list[str]
    places: dict[str, Path]

    @property
    def arguments(self) -> list[str]:
        """The arguments for the parser."""
        return [f"--config={yaml.safe_dump(self.config, sort_keys=False)}", *self.flags]

    @property
    def class_path(self) -> str:
        """The method's class."""
        flags = [flag.partition("=") for flag in self.flags]
        named = [v for key, _, v in flags if key in ("--model", "--model.class_path") and v]
        return named[-1] if named else self.config.get("model", {}).get("class_path", METHOD)


def compose(argv: Sequence[str]) -> Composition:
    """Compose the configuration of a run.

    Args:
        argv: arguments of ``fit`` as the user wrote them.

    Raises:
        UserError: a name that no configuration has, or a file that cannot be read.
    """
    files, labels, flags = _split(argv)
    _check_flags(labels, flags)
    layers = [layer for path in files for layer in _with_includes(path)]
    for layer in layers:
        _check_labels(layer)
    own = [
        layer
        for layer in layers
        if layer.path.parent not in (CONFIGS, METHODS) or not _shipped(layer)
    ]
    method, domain = _choice(layers, labels, flags)
    own = [_without_domain(_without_method(layer, method), method, domain) for layer in own]
    chosen = [
        find_config(name, kind) for kind, name in (("method", method), ("domain", domain)) if name
    ]
    stack = [Layer(path, read_config(path)) for path in (CONFIGS / "base.yaml", *chosen)] + own
    config: Config = {}
    places: dict[str, Path] = {}
    for layer in stack:
        _merge(config, copy.deepcopy(layer.config))
        places |= dict.fromkeys(leaves(layer.config), layer.path)
    composition = Composition(config, flags, places)
    types = known(composition.class_path)
    _round_floats(config, types)
    return composition._replace(flags=[_integer(flag, types) for flag in flags])


# -- the command line ----------------------------------------------------------------------------


def _split(argv: Sequence[str]) -> tuple[list[Path], dict[str, str], list[str]]:
    """Return the files, the names of method and domain given as flags, and all other flags."""
    files, labels, flags, last = [], {}, [], []
    for argument in joined(argv):
        flag, _, value = argument.partition("=")
        if flag == "--print_config":
            last.append(argument)  # the parser prints what it has read so far
        elif flag not in _VALUES:
            flags.append(argument)
        elif not value:
            raise UserError(f"{flag} needs a value; see --help")
        elif flag == "--task":
            flags.append(f"--data.task={value}")
        elif flag in ("--config", "-c"):
            path = find_config(value)
            files.append(path)
            kind = "method" if path.parent == METHODS else "domain"
            if kind in labels and _shipped(Layer(path, read_config(path))):
                labels[kind] = path.stem  # the same as a later flag
        else:
            labels[flag.removeprefix("--")] = value
            find_config(value, flag.removeprefix("--"))
    return files, labels, flags + last


def joined(argv: Sequence[str]) -> list[str]:
    """Join every flag with its value by ``=``: to a parser, a negative number is a flag."""
    found: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        is_flag = word.startswith("-") and "=" not in word and word != "--print_config"
        if is_flag and rest and (not rest[0].startswith("-") or _NEGATIVE.fullmatch(rest[0])):
            word = f"{word}={rest.pop(0)}"
        found.append(word)
    return found


def _integer(flag: str, types: dict[str, Any]) -> str:
    """Write the value of an integer setting without an exponent: 1e6 becomes 1000000."""
    key, equals, value = flag.partition("=")
    if (
        equals
        and _is_integer(key.lstrip("-"), types)
        and re.fullmatch(r"(\d+\.?\d*|\.\d+)e\+?\d+", value, re.I)
    ):
        number = float(value)
        return f"{key}={int(number)}" if number.is_integer() else flag
    return flag


def _is_integer(key: str, types: dict[str, Any]) -> bool:
    setting = types.get(key.replace("init_args.", ""))
    return key == "seed" or setting is not None and bool(re.search(r"\bint\b", setting.type))


def _round_floats(config: Config, types: dict[str, Any], prefix: str = "") -> None:
    for key, value in config.items():
        if isinstance(value, dict):
            _round_floats(value, types, f"{prefix}{key}.")
        elif isinstance(value, float) and value.is_integer() and _is_integer(prefix + key, types):
            config[key] = int(value)


# -- method and domain ---------------------------------------------------------------------------


def _choice(
    layers: list[Layer], labels: dict[str, str], flags: list[str]
) -> tuple[str | None, str | None]:
    """Return the shipped method and domain to load; None for a method or domain of the user's."""
    method: str | None = DEFAULT_METHOD
    domain = None
    for layer in layers:
        if layer.names_method:
            method = _method_of(layer)
        if "domain" in layer.config:
            domain = (
                layer.config["domain"] if _is_shipped(layer.config["domain"], "domain") else None
            )
    if any(flag.partition("=")[0] in ("--model", "--model.class_path") for flag in flags):
        method = None
    return labels.get("method", method), labels.get("domain", domain)


def _check_flags(labels: dict[str, str], flags: list[str]) -> None:
    """Refuse flags that choose a method by name and another one by class."""
    named = Composition({}, flags, {}).class_path
    if "method" in labels and named != METHOD:
        meant = _file("method", labels["method"])["model"]["class_path"]
        if resolved(named) != meant and not meant.endswith(f".{named}"):
            raise UserError(f"--method is {labels['method']}, but --model is {named}; remove one")


def _check_labels(layer: Layer) -> None:
    """Refuse labels that choose nothing, or something else than the file's own settings."""
    config, path = layer.config, layer.path
    for kind, defined in (
        ("method", layer.class_path),
        ("domain", config.get("data", {}).get("env")),
    ):
        if not isinstance(config.get(kind), str | None):
            raise UserError(f"{path}: {kind} is {config[kind]!r}, expected a name")
        if kind in config and not defined and not _is_shipped(config[kind], kind):
            try:
                find_config(str(config[kind]), kind)
            except UserError as error:
                raise UserError(f"{error} (in {path})") from None
    method = config.get("method")
    if method and layer.class_path and _is_shipped(method, "method"):
        meant = read_config(find_config(method, "method"))["model"]["class_path"]
        if layer.class_path != meant:
            other = f"model.class_path is {layer.class_path}"
            raise UserError(f"{path}: method is {method}, but {other}; remove one")


def _method_of(layer: Layer) -> str | None:
    name = layer.config.get("method")
    return name if name is not None and _is_shipped(name, "method") else None


def _is_shipped(name: object, kind: str) -> bool:
    folder = METHODS if kind == "method" else CONFIGS
    path = folder / f"{_stem(str(name))}.yaml"
    if not path.is_file():
        return False
    return kind == "method" or _shipped(Layer(path, read_config(path)))


def _shipped(layer: Layer) -> bool:
    """Whether a file is a shipped method's or domain's own, not a recipe that uses one."""
    if layer.path.parent == METHODS:
        return True
    return (
        layer.path.parent == CONFIGS and _stem(str(layer.config.get("domain"))) == layer.path.stem
    )


def _stem(name: str) -> str:
    return name.replace("-", "_")


def _without_method(layer: Layer, method: str | None) -> Layer:
    """Drop what a file holds for another method than the chosen one.

    Of the method's settings, those stay that the chosen method has too and that the user chose:
    neither method's own file sets them, and they differ from the default of the file's method.
    """
    other = _method_of(layer)
    if not layer.names_method or (method == other and method is not None):
        return layer
    if method is None:
        if other is None:
            return layer  # a method of the user's own
        wanted = METHOD
    else:
        wanted = _file("method", method)["model"]["class_path"]
    config = {k: v for k, v in layer.config.items() if k not in ("method", "tuned", "run_dir")}
    before, after = _file("method", other), _file("method", method)
    for path in {*leaves(before), *leaves(after)}:
        _drop(config, path)
    theirs = settings_of(layer.class_path or before.get("model", {}).get("class_path", METHOD))
    settings = config.get("model", {}).get("init_args", {})
    kept = {
        key: value
        for key, value in settings.items()
        if key in settings_of(wanted)
        and not (key in theirs and theirs[key].default and theirs[key].value == value)
    }
    config["model"] = {"init_args": kept}
    return Layer(layer.path, config)


def _without_domain(layer: Layer, method: str | None, domain: str | None) -> Layer:
    """Drop what a file holds for another domain than the chosen one.

    That is what either domain's file sets, the environment, and the values tuned to it.
    """
    other = layer.config.get("domain")
    if other is None or domain is None or _stem(other) == _stem(domain):
        return layer
    config = copy.deepcopy(layer.config)
    before = _file("domain", other) if _is_shipped(other, "domain") else {}
    settings = _file("method", method).get("model", {}).get("init_args", {})
    tuned = {f"model.init_args.{key}" for key, value in settings.items() if "${tuned" in str(value)}
    dropped = {"run_dir", "domain", "tuned_as", "data.env", "data.path", *tuned}
    for path in dropped | {*leaves(before), *leaves(_file("domain", domain))}:
        _drop(config, path)
    return Layer(layer.path, config)


def _file(kind: str, name: str | None) -> Config:
    return read_config(find_config(name, kind)) if name else {}


# -- files ---------------------------------------------------------------------------------------


def find_config(name: str, kind: str = "config", beside: Path = Path()) -> Path:
    """Find a configuration file.

    Args:
        name: a path, or the name of a shipped file with or without ``.yaml``.
        kind: ``"config"`` looks in ``beside`` first, then in ``configs``; ``"domain"`` and
            ``"method"`` only where the shipped files of that kind are.
        beside: the folder that paths are relative to.

    Raises:
        UserError: there is no such file; names the closest ones.
    """
    folder = METHODS if kind == "method" else CONFIGS
    if kind == "config":
        name = str(Path(name).expanduser())
        candidates = [base / n for base in (beside, folder) for n in (name, f"{name}.yaml")]
    else:
        candidates = [folder / f"{_stem(name)}.yaml"]
    for candidate in candidates:
        if candidate.is_file() and (
            kind != "domain" or _shipped(Layer(candidate, read_config(candidate)))
        ):
            return candidate.resolve()
    shipped = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))
    where = f" (searched {beside.resolve()} and {folder})"
    if kind != "config":
        shipped = domains() if kind == "domain" else [Path(p).stem for p in shipped]
        where = ""
    raise UserError(f"no {kind} named '{name}'{where}; {closest(name, shipped, 3)}")


def domains() -> list[str]:
    """Return the names of the shipped domains."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml") if _shipped(Layer(p, read_config(p))))


def _with_includes(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """Yield the files that a file includes, then the file itself."""
    if path in above:
        raise UserError(f"{path}: includes itself; remove the include")
    config = dict(read_config(path))
    included = config.pop("include", [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: include is {included!r}, expected a file or a list of files")
    for name in names:
        yield from _with_includes(find_config(name, beside=path.parent), (*above, path))
    yield Layer(path, config)


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Config:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"on lines {lines[key.value]} and {line}"
                raise UserError(f"{self.name}: '{key.value}' is set twice, {where}; remove one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+"),
    list("-+0123456789"),
)


def read_config(path: Path) -> Config:
    """Read a configuration file, without interpreting it.

    Raises:
        UserError: it is not YAML, or does not hold keys and values.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)
        config = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML text file") from error
    if config is not None and not isinstance(config, dict):
        raise UserError(f"{path}: expected keys with values, found {type(config).__name__}")
    config = config or {}
    if isinstance(config.get("model"), str):
        config["model"] = {"class_path": config["model"]}
    sections = {key.partition(".")[0] for key in known()}
    for key, value in config.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {key!r} is no name")
        if key in sections and not isinstance(value, dict):
            raise UserError(f"{path}: {key} is {value!r}, expected keys with values")
    _check_model(config.get("model", {}), path)
    return config


def _check_model(model: Config, path: Path) -> None:
    if not isinstance(model.get("class_path", ""), str):
        found = model["class_path"]
        raise UserError(f"{path}: model.class_path is {found!r}, expected the name of a class")
    if model.get("init_args", {}) is None:
        model["init_args"] = {}  # the heading alone
    if not isinstance(model.get("init_args", {}), dict):
        found = model["init_args"]
        raise UserError(f"{path}: model.init_args is {found!r}, expected keys with values")


def leaves(config: Config, prefix: str = "") -> Iterator[str]:
    """Yield the keys of all values, e.g. ``data.task``."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merge(below: Config, above: Config) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = value


def _drop(config: Config, path: str) -> None:
    """Remove a key, and sections that it leaves empty; copies what it changes."""
    key, _, rest = path.partition(".")
    if not rest:
        config.pop(key, None)
    elif isinstance(config.get(key), dict):
        config[key] = dict(config[key])
        _drop(config[key], rest)
