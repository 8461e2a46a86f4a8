"""Results by what they compare: variants of methods, tasks, seeds."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qam_lightning.reports.published import title
from qam_lightning.reports.results import Result, Score
from qam_lightning.reports.settings import had, has_effect
from qam_lightning.util.errors import shown

Task = tuple[str, int]
"""A domain and the number of its task."""


class Variant(NamedTuple):
    """Runs that differ in domain, task and seed only.

    Attributes:
        method: as in files.
        settings: the values of what varies besides.
        results: the runs, by domain, task and seed.
    """

    method: str
    settings: dict[str, Any]
    results: list[Result]

    @property
    def setting(self) -> str:
        """What varies besides the method, e.g. ``tau 3.0``; empty if nothing does."""
        return ", ".join(
            f"{key.rpartition('.')[2]} {shown(value, 60)}" for key, value in self.settings.items()
        )

    @property
    def label(self) -> str:
        """E.g. ``QAM, tau 3.0``."""
        return ", ".join(filter(None, (title(self.method), self.setting)))

    def scores(self, pick: Callable[[Result], Score | float | None]) -> dict[Task, list[float]]:
        """Return a number of every run that has it, by task and in the order of seeds."""
        found: dict[Task, list[float]] = {}
        for result in self.results:
            picked = pick(result)
            if picked is not None:
                value = picked.success if isinstance(picked, Score) else picked
                found.setdefault((result.domain, result.task), []).append(value)
        return found


class Comparison(NamedTuple):
    """All results of a report.

    Attributes:
        variants: in the order of the runs.
        axes: the settings that tell variants of one method apart.
        tasks: all tasks, by domain.
        lines: what a reader has to know: runs that were left out, settings that were mixed.
    """

    variants: list[Variant]
    axes: list[str]
    tasks: list[Task]
    lines: list[str]

    @property
    def results(self) -> list[Result]:
        """All runs."""
        return [result for variant in self.variants for result in variant.results]

    @property
    def domains(self) -> list[str]:
        """All domains."""
        return list(dict.fromkeys(domain for domain, _ in self.tasks))

    @property
    def has_online(self) -> bool:
        """Whether a run has an online phase, or will have one."""
        return any(result.settings.get("online.steps") for result in self.results)

    @property
    def has_both_phases(self) -> bool:
        """Whether a run has an offline and an online phase, or will have."""
        return any(
            result.settings.get("online.steps") and result.length.gradient_steps
            for result in self.results
        )

    def tasks_of(self, domain: str | None) -> list[Task]:
        """Return the tasks of a domain; all if it is None."""
        return [task for task in self.tasks if domain in (None, task[0])]


def compare(results: Sequence[Result], axes: Sequence[str] | None = None) -> Comparison:
    """Sort results into variants.

    A setting tells variants apart if it differs between runs of one method, domain and task: values
    that are tuned for a domain do not. A run that is older than a setting counts with its default.

    Args:
        results: of distinct folders.
        axes: the settings to tell variants apart by, as a study's keys; None finds them. Further
            ones are found if runs of equal method, task and seed are left.
    """
    results = _with_clones_of_seeds(results)
    varying = _varying(results)
    chosen = varying
    if axes is not None:
        keys = [key.replace("model.init_args.", "model.") for key in axes]
        chosen = [key for key in keys if key in varying]
        pairs = _repeated(results, chosen)
        chosen += [
            key
            for key in varying
            if key not in chosen and any(_value(a, key) != _value(b, key) for a, b in pairs)
        ]
    lines = [
        f"{other.folder} is left out: {first.folder} has the same method, settings, task and seed"
        for first, other in _repeated(results, chosen)
    ]
    repeated = {id(other) for _, other in _repeated(results, chosen)}
    kept = [result for result in results if id(result) not in repeated]
    lines += [
        f"{result.folder}/config.yaml is not the last checkpoint's: edited, or resumed since"
        for result in kept
        if result.changed
    ]
    for key in (key for key in varying if key not in chosen):
        values = dict.fromkeys(shown(_value(result, key), 60) for result in kept)
        lines.append(f"{key} differs between runs that are averaged: {', '.join(values)}")
    groups: dict[str, list[Result]] = {}
    for result in kept:
        groups.setdefault(_key(result, chosen), []).append(result)
    variants = [
        Variant(
            group[0].method,
            _settings(group[0], chosen),
            sorted(group, key=lambda r: (r.domain, r.task, r.seed)),
        )
        for group in groups.values()
    ]
    tasks = sorted({(result.domain, result.task) for result in kept})
    return Comparison(variants, chosen, tasks, lines)


def _by_task(results: Sequence[Result]) -> list[list[Result]]:
    """Return the runs of every method, domain and task."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault((result.method, result.domain, result.task), []).append(result)
    return list(groups.values())


def _with_clones_of_seeds(results: Sequence[Result]) -> list[Result]:
    """Return results whose ``pretrained`` says ``${seed}`` where seeds have clones of their own."""
    found: dict[int, Result] = {}
    for runs in _by_task(results):
        paths = [str(run.settings.get("pretrained")) for run in runs]
        names = [
            re.sub(rf"(?s)(.*)(?<!\d){run.seed}(?!\d)", r"\1${seed}", path)
            for run, path in zip(runs, paths, strict=True)
        ]
        own = len(set(names)) < len(set(paths))
        for run, name in zip(runs, names, strict=True):
            settings = {**run.settings, "pretrained": name}
            found[id(run)] = replace(run, settings=settings) if own else run
    return [found[id(run)] for run in results]


def _varying(results: Sequence[Result]) -> list[str]:
    """Return the settings that differ between runs of one method, domain and task."""
    varying: dict[str, None] = {}  # in order, each once
    for runs in _by_task(results):
        for key in dict.fromkeys(key for run in runs for key in run.settings):
            if has_effect(key) and len({_text(_value(run, key)) for run in runs}) > 1:
                varying[key] = None
    return list(varying)


def _value(result: Result, key: str) -> Any:
    """Return a setting; where the run has none, its default today, and None without one."""
    own = result.settings
    return own[key] if key in own else had(own).get(key)


def _settings(result: Result, axes: Sequence[str]) -> dict[str, Any]:
    """Return the settings among ``axes`` that the run or its method has."""
    values = {key: _value(result, key) for key in axes}
    return {key: x for key, x in values.items() if x is not None or key in result.settings}


def _key(result: Result, axes: Sequence[str]) -> str:
    return _text([result.method, *(_value(result, key) for key in axes)])


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _repeated(results: Sequence[Result], axes: Sequence[str]) -> list[tuple[Result, Result]]:
    """Return every run that repeats another one, after that one, which is the further one."""
    seen: dict[tuple, Result] = {}
    pairs = []
    for result in sorted(results, key=lambda r: (r.finished, r.last.step), reverse=True):
        where = (_key(result, axes), result.domain, result.task, result.seed)
        if (first := seen.setdefault(where, result)) is not result:
            pairs.append((first, result))
    return pairs
