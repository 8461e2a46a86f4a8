"""A study's file: a grid of settings, and the runs that it describes.

    settings:                       # of every run
      config: quickstart.yaml
    grid:                           # every combination is a run
      method: [qam, fql]
      seed: 0-4                     # 0, 1, 2, 3, 4
    list:                           # each entry, combined with the grid
      - {task: 1, trainer.max_steps: 4000}
      - {task: 2, trainer.max_steps: 8000}
    exclude:                        # combinations that are left out
      - {method: fql, task: 2}
    groups:                         # each adds its own settings, grid, list and exclusions
      residual: {settings: {model.residual: true}}
      direct: {settings: {model.residual: false}}

A key is a flag of ``fit`` without its dashes. A ``search`` in place of the grid chooses each run by
the results of those before it, see `search`:

    settings: {config: quickstart.yaml}
    search:
      trials: 30
      prune: true                   # stop runs that fall behind the others; false by default
      space:
        model.tau: {low: 0.03, high: 30, log: true}
        model.flow_steps: [5, 10]
"""

import argparse
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qam_lightning.cli.reading import flat, read_text, read_yaml
from qam_lightning.util.arguments import closest
from qam_lightning.util.arguments import path as at_home
from qam_lightning.util.configs import CONFIGS
from qam_lightning.util.errors import UserError, shown

STUDIES = CONFIGS / "studies"
"""The shipped studies."""

MOST_RUNS = 100_000

_PARTS = ("settings", "grid", "list", "exclude")
_KEYS = ("name", "folder", *_PARTS, "groups", "search")
_NAME = re.compile(r"[\w-]{1,60}")  # up to 240 bytes; most file systems take 255
_RANGE = re.compile(r"\d{1,9}-\d{1,9}")
_NUMBERS = re.compile(r"\d{1,9}(-\d{1,9})?(\s*,\s*\d{1,9}(-\d{1,9})?)*")
_NAMES = "up to 60 letters, digits, _ and -"
_LONGEST = 150  # bytes of the name of a run's folder
_LONGEST_TAG = 64
_REFUSED = {
    "run_dir": "the study names the folders of its runs; `folder` is the one that holds them",
    "ckpt_path": "runs go on from their last checkpoint by themselves",
    "print_config": "`fit --print_config` shows a configuration",
    "help": "`fit --help` shows the settings",
}
_FIRST = ("config", "domain", "task", "method")
"""Keys that the name of a run's folder begins with; the seed comes last."""


class Run(NamedTuple):
    """A run of a study.

    Attributes:
        group: its group, ``""`` if the study has none.
        axes: the keys that the study varies, and this run's values.
        settings: all keys that the study sets, the axes included.
        run_dir: its folder.
        arguments: those of ``fit``, without ``--ckpt_path``.
    """

    group: str
    axes: dict[str, Any]
    settings: dict[str, Any]
    run_dir: Path
    arguments: list[str]

    @property
    def name(self) -> str:
        """The folder's name, with the group's before it."""
        return "/".join(filter(None, (self.group, self.run_dir.name)))


class Range(NamedTuple):
    """The values from which a search chooses.

    Attributes:
        low: the lowest; the search chooses integers if both bounds are.
        high: the highest.
        log: whether it chooses the logarithm uniformly.
    """

    low: float
    high: float
    log: bool = False


class Search(NamedTuple):
    """What a search tries.

    Attributes:
        trials: how many runs it makes.
        prune: whether it stops runs that fall behind the others.
        space: setting -> a range, or the values to choose from.
        settings: those of all runs.
    """

    trials: int
    prune: bool
    space: dict[str, Range | list[Any]]
    settings: dict[str, Any]


class Study(NamedTuple):
    """A study.

    Attributes:
        name: its name.
        path: its file.
        folder: the folder that holds those of its runs.
        runs: its runs, in the order of the file; none for a search.
        search: what is searched; None for a grid.
    """

    name: str
    path: Path
    folder: Path
    runs: list[Run]
    search: Search | None = None


class _Part(NamedTuple):
    """The runs that a study, or a group of it, describes."""

    settings: dict[str, Any]
    grid: dict[str, list[Any]]
    entries: list[dict[str, Any]]
    exclude: list[dict[str, list[Any]]]


def read_study(name: str) -> Study:
    """Read a study.

    Args:
        name: a path, or the name of a shipped study with or without ``.yaml``.

    Raises:
        UserError: there is no such file, or it describes no study.
    """
    path = find_study(name)
    content = _read(path)
    title = content.get("name", path.stem)
    if not isinstance(title, str) or not _NAME.fullmatch(title):
        raise UserError(f"{path}: name is {shown(title)}, expected {_NAMES}")
    folder = content.get("folder", f"runs/{title}")
    if not isinstance(folder, str) or not folder.strip():
        raise UserError(f"{path}: folder is {shown(folder)}, expected the name of a folder")
    try:
        study = Study(title, path, at_home(folder), [])
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: folder: {error}") from None
    if "search" in content:
        return study._replace(search=_search(content, path))
    parts = {"": _part(content, path, "")}
    if "groups" in content:
        common = parts.pop("")
        groups = _groups(content["groups"], path)
        parts = {name: _joined(common, part, path, name) for name, part in groups}
    found = (run for name, part in parts.items() for run in _runs(part, name, study))
    runs = list(itertools.islice(found, MOST_RUNS + 1))
    _check_folders(runs, path)
    _check_exclusions(parts, path)
    return study._replace(runs=runs)


def find_study(name: str) -> Path:
    """Return the path of a study's file.

    Raises:
        UserError: there is none; names the closest ones that ship.
    """
    candidates = [folder / n for folder in (Path(), STUDIES) for n in (name, f"{name}.yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    raise UserError(f"no study named '{shown(name)}'; {closest(name, shipped, 3)}")


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(read_text(path, "a study"), str(path))
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a study, with {', '.join(_KEYS)}")
    _check_keys(content, _KEYS, str(path))
    return content


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key '{shown(key)}'; {closest(key, known)}")


# -- parts -----------------------------------------------------------------------------------------


def _groups(content: object, path: Path) -> Iterator[tuple[str, _Part]]:
    for name, part in _mapping(content, path, "groups").items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: a group is named '{shown(name)}', expected {_NAMES}")
        part = _mapping(part, path, f"groups.{name}")
        _check_keys(part, _PARTS, f"{path}: groups.{name}")
        yield name, _part(part, path, f"groups.{name}.")


def _part(content: Mapping[str, Any], path: Path, prefix: str) -> _Part:
    """Read what a study and a group have in common."""

    def entries(key: str) -> list[dict[str, Any]]:
        found = content.get(key, [])
        if not isinstance(found, list) or key in content and not found:
            raise UserError(f"{path}: {prefix}{key} is {shown(found)}, expected a list of settings")
        if {} in found:
            raise UserError(f"{path}: an entry of {prefix}{key} is empty; fill or remove it")
        return [_settings(entry, path, f"{prefix}{key}") for entry in found]

    if content.get("grid") == {}:
        raise UserError(f"{path}: {prefix}grid is empty; list values in it, or remove it")
    grid = _settings(content.get("grid", {}), path, f"{prefix}grid")
    excluded = [
        {key: _values(key, x, path, f"{prefix}exclude") for key, x in entry.items()}
        for entry in entries("exclude")
    ]
    part = _Part(
        _settings(content.get("settings", {}), path, f"{prefix}settings"),
        {key: _axis(key, value, path, f"{prefix}grid") for key, value in grid.items()},
        entries("list"),
        excluded,
    )
    _check_disjoint(part, path)
    return part


def _settings(content: object, path: Path, where: str) -> dict[str, Any]:
    """Return settings by their dotted keys."""
    found = flat(_mapping(content, path, where))
    spelled: dict[str, str] = {}
    for key, value in found.items():
        if (other := spelled.setdefault(canonical(key), key)) != key:
            raise UserError(f"{path}: {where}.{other} and {where}.{key} are one; remove one")
        if value == {}:
            raise UserError(f"{path}: {where}.{key} is empty; give it a value, or remove it")
        if key in _REFUSED:
            raise UserError(f"{path}: {where}.{key} cannot be set; {_REFUSED[key]}")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise UserError(f"{path}: {where}: '{shown(key)}' is no name of a setting")
    return found


def _mapping(content: object, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content and where == "groups":
        raise UserError(f"{path}: {where} is {shown(content)}, expected keys with values")
    return content


def _values(key: str, value: Any, path: Path, where: str) -> list[Any]:
    """Return the values that an axis or an exclusion lists; ``0-4`` are five."""
    if isinstance(value, str) and _RANGE.fullmatch(value):
        return list(itertools.islice(_numbers(value), MOST_RUNS + 1))
    values = value if isinstance(value, list) else [value]
    if canonical(key) in ("seed", "data.task"):  # elsewhere, 0-4 in a list is a text
        numbers = [text for text in map(shown, values) if _NUMBERS.fullmatch(text)]
        for text in numbers:
            if not text.isdigit():
                found = list(itertools.islice(_numbers(",".join(numbers)), 100))
                raise UserError(
                    f"{path}: {where}.{key} has '{text}'; list its numbers: {shown(found)}"
                )
    return values


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of ``0-2, 5``."""
    for word in text.split(","):
        first, _, last = word.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _axis(key: str, value: Any, path: Path, where: str) -> list[Any]:
    values = _values(key, value, path, where)
    if not values:
        raise UserError(f"{path}: {where}.{key} has no values; list some, or remove it")
    return values


def _joined(common: _Part, own: _Part, path: Path, group: str) -> _Part:
    """Lay a group over the study. Its settings override the study's."""
    for key in {*own.grid} & {*common.grid}:
        raise UserError(f"{path}: {key} is in grid and in groups.{group}.grid; remove one")
    if own.entries and common.entries:
        raise UserError(f"{path}: the study and groups.{group} both have a list; remove one")
    part = _Part(
        {**common.settings, **own.settings},
        {**common.grid, **own.grid},
        own.entries or common.entries,
        [*common.exclude, *own.exclude],
    )
    _check_disjoint(part, path, f" (group {group})")
    return part


def _check_disjoint(part: _Part, path: Path, where: str = "") -> None:
    """Refuse a key that is set in two ways, whatever its spelling."""
    homes: dict[str, str] = {}
    for home, keys in (
        ("settings", part.settings),
        ("grid", part.grid),
        ("list", {key for entry in part.entries for key in entry}),
    ):
        for key in keys:
            full = canonical(key)
            if (other := homes.setdefault(full, home)) != home:
                raise UserError(f"{path}: {key} is in {other} and in {home}{where}; remove one")


def canonical(key: str) -> str:
    """Return the one spelling of a key that may be written in two ways."""
    return "data.task" if key == "task" else key.replace("model.init_args.", "model.")


# -- searches --------------------------------------------------------------------------------------


def _search(content: Mapping[str, Any], path: Path) -> Search:
    for key in ("grid", "list", "exclude", "groups"):
        if key in content:
            raise UserError(f"{path}: search and {key} are both there; remove one")
    found = _mapping(content["search"], path, "search")
    _check_keys(found, ("trials", "prune", "space"), f"{path}: search")
    trials, prune = found.get("trials"), found.get("prune", False)
    if type(trials) is not int or not 1 <= trials <= MOST_RUNS:
        raise UserError(f"{path}: search.trials is {shown(trials)}, expected 1 to {MOST_RUNS:,}")
    if not isinstance(prune, bool):
        raise UserError(f"{path}: search.prune is {shown(prune)}, expected true or false")
    space = _mapping(found.get("space"), path, "search.space")
    if not space:
        raise UserError(f"{path}: search.space is empty, expected settings to choose")
    values = {key: _choice(value, path, f"search.space.{key}") for key, value in space.items()}
    settings = _settings(content.get("settings", {}), path, "settings")
    _settings(dict.fromkeys(values), path, "search.space")  # checks the keys
    for key in values:
        if key == "config":
            raise UserError(f"{path}: search.space.config cannot be set; name the settings")
        if canonical(key) in map(canonical, settings):
            raise UserError(f"{path}: {key} is in settings and in search.space; remove one")
    return Search(trials, prune, values, settings)


def _choice(value: Any, path: Path, where: str) -> Range | list[Any]:
    """Read the values from which a search chooses."""
    if isinstance(value, list) and value and all(isinstance(x, str | int | float) for x in value):
        if len({_written(x) for x in value}) < len(value):
            raise UserError(f"{path}: {where} is {shown(value)}; write every value once")
        return value
    problem = f"{path}: {where} is {shown(value)}, expected a list, or low and high"
    if not isinstance(value, dict):
        raise UserError(problem)
    _check_keys(value, Range._fields, f"{path}: {where}")
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    # Not isinstance: true and false are numbers to it.
    if type(low) not in (int, float) or type(high) not in (int, float) or type(log) is not bool:
        raise UserError(problem)
    assert low is not None and high is not None
    if not -math.inf < low < high < math.inf or log and low <= 0:
        raise UserError(f"{path}: {where} is {shown(value)}, expected low < high, above 0 with log")
    return Range(low, high, log)


def trial(study: Study, name: str, values: dict[str, Any]) -> Run:
    """Return a run of a search.

    Args:
        study: one with a search.
        name: of the run's folder.
        values: those that the search chose.
    """
    assert study.search is not None
    return _run(study, "", name, values, {**study.search.settings, **values})


# -- runs ------------------------------------------------------------------------------------------


def _runs(part: _Part, group: str, study: Study) -> Iterator[Run]:
    """Yield the runs of a part."""
    axes = [[(key, value) for value in values] for key, values in part.grid.items()]
    entries = part.entries or [{}]
    count = len(entries)
    for axis in axes:
        count *= len(axis)
    if count > MOST_RUNS:
        raise UserError(f"{study.path}: {count:,} runs, expected at most {MOST_RUNS:,}")
    for combination in itertools.product(*axes):
        for entry in entries:
            varied = {**dict(combination), **entry}
            settings = {**part.settings, **varied}
            if not any(_matches(rule, settings) for rule in part.exclude):
                yield _run(study, group, _slug(varied), varied, settings)


def _run(
    study: Study, group: str, name: str, axes: dict[str, Any], settings: dict[str, Any]
) -> Run:
    run = Run(group, axes, settings, study.folder / group / name, [])
    # What trackers call it. A flag overrides WANDB_*; the study's own settings have the last word.
    labels = {"log.group": study.name, "log.name": run.name, "log.tags": _tags(run, study)}
    flags = _arguments({**labels, **settings}, study.path)
    return run._replace(arguments=[*flags, f"--run_dir={run.run_dir}"])


def _tags(run: Run, study: Study) -> list[str]:
    """Return the names of a run's study, group and method; without those that it lacks."""
    method = run.settings.get("method")
    tags = (study.name, run.group, method.replace("-", "_") if isinstance(method, str) else "")
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))


def _check_exclusions(parts: Mapping[str, _Part], path: Path) -> None:
    """Refuse exclusions of what the study does not have: they are misspelled."""
    known: dict[str, list[Any]] = {}
    for part in parts.values():
        for settings in (part.settings, *part.entries):
            for key, value in settings.items():
                known.setdefault(key, []).append(value)
        for key, values in part.grid.items():
            known.setdefault(key, []).extend(values)
    for rule in (rule for part in parts.values() for rule in part.exclude):
        for key, values in rule.items():
            for value in values:
                if value not in known.get(key, []):
                    what = f"{key}: {shown(value)}"
                    raise UserError(f"{path}: exclude: no run has {what}; mend or remove it")


def _matches(rule: Mapping[str, list[Any]], settings: Mapping[str, Any]) -> bool:
    return all(key in settings and settings[key] in values for key, values in rule.items())


def _slug(axes: Mapping[str, Any]) -> str:
    """Name a run by its values, e.g. ``scene-task1-qam-tau3-seed0``."""
    first = [key for key in _FIRST if key in axes]
    rest = sorted((key for key in axes if key not in first), key=lambda key: key == "seed")
    parts = []
    for key in (*first, *rest):
        value = _written(axes[key])
        name = "" if key in ("config", "domain", "method") else key.rpartition(".")[2]
        parts.append(re.sub(r"[^\w.+-]+", "_", f"{name}{value.removesuffix('.yaml')}"))
    slug = "-".join(parts) or "run"
    content = slug.encode()
    if len(content) > _LONGEST:
        begin = content[: _LONGEST - 10].decode(errors="ignore")
        slug = f"{begin}-{hashlib.sha256(content).hexdigest()[:8]}"
    return slug


def _written(value: Any) -> str:
    """Write a value as ``fit`` reads it: equal numbers alike, infinity as in YAML."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    # To YAML, an escape of JSON's may be half a character.
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arguments(settings: Mapping[str, Any], path: Path) -> list[str]:
    """Write settings as arguments of ``fit``."""
    arguments = []
    for key, value in settings.items():
        values = value if key == "config" and isinstance(value, list) else [value]
        for one in values:
            if key == "config" and isinstance(one, str):
                beside = path.parent / one
                if beside.is_file() and not beside.samefile(path):  # a study may share its name
                    one = str(beside)
            arguments.append(f"--{key}={_written(one)}")
    return arguments


def _check_folders(runs: list[Run], path: Path) -> None:
    """Refuse a study without runs, and runs that would share a folder."""
    if not runs:
        raise UserError(f"{path}: describes no run; give it a grid or a list")
    if len(runs) > MOST_RUNS:
        raise UserError(f"{path}: more than {MOST_RUNS:,} runs; make two studies of it")
    seen: dict[Path, Run] = {}
    for run in runs:
        if (other := seen.setdefault(run.run_dir, run)) is not run:
            equal = "the same run" if other.settings == run.settings else "two runs"
            raise UserError(
                f"{path}: {equal} would go to {run.run_dir} twice; write every value once"
            )
