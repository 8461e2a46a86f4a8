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
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from qam_lightning.cli.reading import Config, Dumper, flat, merge, read_config, read_yaml
from qam_lightning.cli.values import PATHS, at_home, expand_homes, joined, plain, whole_numbers
from qam_lightning.util.arguments import closest
from qam_lightning.util.configs import CONFIGS, METHODS
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.settings import METHOD, Setting, known, resolved, settings_of

DEFAULT_METHOD = "qam"
_MOST_FILES = 100
_LABEL = re.compile(r"[\w-]{1,100}")
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
        return [f"--config={yaml.dump(self.config, Dumper=Dumper, sort_keys=False)}", *self.flags]

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
    layers = _layers(files)
    for layer in layers:
        _check_labels(layer)
    own = [
        layer
        for layer in layers
        if layer.path.parent not in (CONFIGS, METHODS) or not _is_own_file(layer)
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
        merge(config, copy.deepcopy(layer.config))
        places |= dict.fromkeys(flat(layer.config), layer.path)
    composition = Composition(config, flags, places)
    types = known(composition.class_path)
    whole_numbers(config, types)
    expand_homes(config)
    for flag in flags:
        _check_collection(flag, types)
    return composition._replace(flags=[plain(flag, types) for flag in flags])


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
            if kind in labels and _is_own_file(Layer(path, read_config(path))):
                labels[kind] = path.stem  # the same as a later flag
        else:
            labels[flag.removeprefix("--")] = value
            find_config(value, flag.removeprefix("--"))
    return files, labels, flags + last


def _check_collection(flag: str, types: dict[str, Setting]) -> None:
    """Hold YAML in a flag to what YAML in a file may be."""
    key, _, value = flag.lstrip("-").partition("=")
    setting = types.get(key)
    is_text = key in PATHS or setting is not None and setting.type.startswith("str")
    if value[:1] in ("{", "[") and not is_text:
        read_yaml(value, f"--{shown(key)}")
    elif key == "model.init_args":
        raise UserError(f"model.init_args is '{shown(value)}', expected keys with values")


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
            raise UserError(f"{path}: {kind} is {shown(config[kind])}, expected a name")
        if kind in config and not defined and not _is_shipped(config[kind], kind):
            try:
                find_config(str(config[kind]), kind)
            except UserError as error:
                raise UserError(f"{error} (in {path})") from None
    method = config.get("method")
    if method and layer.class_path and _is_shipped(method, "method"):
        meant = _file("method", method)["model"]["class_path"]
        if layer.class_path != meant:
            other = f"model.class_path is {layer.class_path}"
            raise UserError(f"{path}: method is {method}, but {other}; remove one")


def _method_of(layer: Layer) -> str | None:
    name = layer.config.get("method")
    return name if name is not None and _is_shipped(name, "method") else None


def _is_shipped(name: object, kind: str) -> bool:
    if not _LABEL.fullmatch(str(name)):
        return False
    folder = METHODS if kind == "method" else CONFIGS
    path = folder / f"{_stem(str(name))}.yaml"
    if not path.is_file():
        return False
    return kind == "method" or _is_own_file(Layer(path, read_config(path)))


def _is_own_file(layer: Layer) -> bool:
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
    for path in {*flat(before), *flat(after)}:
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
    for path in dropped | {*flat(before), *flat(_file("domain", domain))}:
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
        name = at_home("include" if beside.name else "config", name)
        candidates = [base / n for base in (beside, folder) for n in (name, f"{name}.yaml")]
    else:
        candidates = [folder / f"{_stem(name)}.yaml"] if _LABEL.fullmatch(name) else []
    for candidate in candidates:
        if os.path.isfile(candidate) and (
            kind != "domain" or _is_own_file(Layer(candidate, read_config(candidate)))
        ):
            return candidate.resolve()
        if kind == "config" and os.path.exists(candidate) and not os.path.isdir(candidate):
            raise UserError(f"{candidate}: is not a regular file, expected a configuration file")
    shipped = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))
    where = f" (searched {beside.resolve()} and {folder})"
    if kind != "config":
        shipped = domains() if kind == "domain" else [Path(p).stem for p in shipped]
        where = ""
    raise UserError(f"no {kind} named '{shown(name)}'{where}; {closest(name, shipped, 3)}")


def domains() -> list[str]:
    """Return the names of the shipped domains."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml") if _is_own_file(Layer(p, read_config(p))))


def _layers(files: list[Path]) -> list[Layer]:
    """Read files, each after the files that it includes."""
    found: list[Layer] = []
    for path in files:
        for layer in _with_includes(path):
            found.append(layer)
            if len(found) > _MOST_FILES:
                raise UserError(f"{path}: more than {_MOST_FILES} files with all that they include")
    return found


def _with_includes(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """Yield the files that a file includes, then the file itself."""
    if path in above:
        raise UserError(f"{path}: includes itself; remove the include")
    if len(above) > _MOST_FILES:
        raise UserError(f"{path}: {_MOST_FILES} files include one another to reach it")
    config = dict(read_config(path))
    included = config.pop("include", [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: include is {shown(included)}, expected a file or a list of files")
    for name in names:
        yield from _with_includes(find_config(name, beside=path.parent), (*above, path))
    yield Layer(path, config)


def _drop(config: Config, path: str) -> None:
    """Remove a key, and sections that it flat empty; copies what it changes."""
    key, _, rest = path.partition(".")
    if not rest:
        config.pop(key, None)
    elif isinstance(config.get(key), dict):
        config[key] = dict(config[key])
        _drop(config[key], rest)
