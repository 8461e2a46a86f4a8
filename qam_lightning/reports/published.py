"""The authors' published success curves, and how a run's settings differ from the paper's.

``published.csv.gz`` is computed from the data that the authors of the paper released with their
code (https://github.com/ColinQiyangLi/qam, MIT license, see ``published_license.txt``): success of
12 seeds every 50,000 steps, mean and 95% bootstrap interval over seeds. ``all`` is the mean over 50
tasks, a domain's name the mean over its five. Steps are gradient steps up to 1,000,000, and from
there on environment steps of the online phase.
"""

import csv
import functools
import gzip
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from qam_lightning.reports.settings import flat, had, has_effect
from qam_lightning.util.configs import CONFIGS, METHODS

OFFLINE_STEPS = 1_000_000
EVERY = 50_000  # steps between two evaluations
CREDIT = (
    "Published curves: computed from the data that the authors of the paper released with their "
    "code, https://github.com/ColinQiyangLi/qam (MIT license): success of 12 seeds every 50,000 "
    "steps, with 95% bootstrap intervals."
)
_TASKS = 5  # of every domain
_LARGE = "-100m"  # of the name of a dataset; the published names lack it


class Point(NamedTuple):
    """Published success at a step: mean over seeds and the bounds of its 95% interval."""

    mean: float
    low: float
    high: float


@functools.cache
def curves() -> Mapping[tuple[str, str], Mapping[int, Point]]:
    """Return unit and method -> step -> success; see `unit` for the units."""
    found: dict[tuple[str, str], dict[int, Point]] = {}
    with files(__package__).joinpath("published.csv.gz").open("rb") as file:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            for row in csv.DictReader(text):
                numbers = (float(row[key]) for key in ("success_mean", "ci_low", "ci_high"))
                steps = found.setdefault((row["task"], row["method"]), {})
                steps[int(row["step_thousands"]) * 1000] = Point(*numbers)
    return found


@functools.cache
def _titles() -> Mapping[str, str]:
    published = {name.lower().replace("-", "_"): name for _, name in curves()}
    return {"bc": "BC", "trqam": "TRQAM", **published}


def title(method: str) -> str:
    """Return a method's name in texts, e.g. ``QAM-EDIT`` of ``qam_edit``; unknown names as is."""
    return _titles().get(method, method)


def unit(domain: str, settings: Mapping[str, Any], task: int | None = None) -> str:
    """Return the published name of a task; of its domain's mean if ``task`` is None."""
    dataset = str(settings.get("data.dataset", "")).removesuffix(_LARGE)
    name = f"{domain}-{dataset}"
    return name if task is None else f"{name}-singletask-task{task}-v0"


def published(method: str, unit: str) -> Mapping[int, Point]:
    """Return step -> success of a method, empty if nothing was published."""
    return curves().get((unit, title(method)), {})


def domains() -> set[str]:
    """Return the published names of all domains."""
    return {unit for unit, _ in curves() if unit != "all" and "-singletask-" not in unit}


def tasks_of(domain: str) -> list[tuple[str, int]]:
    """Return the tasks over which the published mean of a domain goes."""
    return [(domain, number) for number in range(1, _TASKS + 1)]


def published_step(step: int, online_from: int | None) -> int:
    """Return the step of the published curves for one of a run's: online phases begin together."""
    if online_from is None or step <= online_from and online_from:
        return step
    return OFFLINE_STEPS + step - online_from


def differences(method: str, domain: str, settings: Mapping[str, Any]) -> list[str]:
    """Return how a run's settings differ from the paper's, as ``model.width 128 (paper: 512)``.

    A setting that the run lacks has its default in code; one without a default is left out. Empty
    for a method, a domain or a dataset without published curves.
    """
    own = had(settings)
    if method not in _titles() or unit(domain, own) not in domains():
        return []
    return [
        f"{key} {own[key]} (paper: {value})"
        for key, value in _paper(method, domain).items()
        if own.get(key, value) != value and (own["online.steps"] or not key.startswith("online."))
    ]


@functools.cache
def _paper(method: str, domain: str) -> Mapping[str, Any]:
    """Return the paper's settings: defaults in code, the method's file, the domain's file."""
    names = [CONFIGS / "base.yaml", METHODS / f"{method}.yaml"]
    names.append(CONFIGS / f"{domain.replace('-', '_')}.yaml")
    config = OmegaConf.merge(*(OmegaConf.load(name) for name in names), {"tuned_as": domain})
    settings = dict(flat(OmegaConf.to_container(config, resolve=True)))
    found = dict(had(settings))
    found |= {"trainer.max_steps": OFFLINE_STEPS, "trainer.precision": "32-true"}
    groups = ("model.", "data.", "trainer.", "online.")
    return {
        key: value
        for key, value in found.items()
        if key.startswith(groups) and has_effect(key) and key != "online.steps"
    }
