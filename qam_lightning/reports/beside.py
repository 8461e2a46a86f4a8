"""Scores beside the published ones at the same step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from qam_lightning.evaluation.statistics import Estimate
from qam_lightning.reports import estimates, published
from qam_lightning.reports.comparison import Comparison, Task, Variant
from qam_lightning.reports.published import Point
from qam_lightning.reports.results import Result


class Beside(NamedTuple):
    """A mean beside the published one.

    Attributes:
        variant: whose.
        unit: the published name of a task, of a domain, or ``all``.
        step: on the axis of the published curves.
        ours: mean and bounds.
        theirs: mean and 95% interval.
        within: whether a larger unit contains this one.
    """

    variant: Variant
    unit: str
    step: int
    ours: Estimate
    theirs: Point
    within: bool

    @property
    def overlap(self) -> bool:
        """Whether the two intervals have a number in common."""
        return self.ours.low <= self.theirs.high and self.theirs.low <= self.ours.high

    def row(self) -> dict[str, Any]:
        """Return the line of ``published.csv``."""
        return {
            "method": self.variant.label,
            "task": self.unit,
            "step": self.step,
            **dict(zip(("mean", "low", "high", "bounds"), self.ours, strict=True)),
            **{f"published_{name}": x for name, x in self.theirs._asdict().items()},
            "difference": round(self.ours.mean - self.theirs.mean, 6),
            "overlap": self.overlap,
        }


def beside(found: Comparison) -> list[Beside]:
    """Return the means after both phases that have a published counterpart."""
    return [x for variant in found.variants for x in _of_variant(variant)]


def setting_lines(found: Comparison) -> list[str]:
    """Return how the settings differ from the paper's: one line per variant and domain."""
    lines: dict[str, None] = {}  # in order, each once
    for variant in found.variants:
        for result in variant.results:
            differ = published.differences(result.method, result.domain, result.settings)
            if differ:
                lines[f"{variant.label}, {result.domain}: {', '.join(differ)}"] = None
    return list(lines)


def _of_variant(variant: Variant) -> Iterator[Beside]:
    at: dict[int, dict[Task, list[float]]] = {}
    for result in variant.results:
        for step, success in _scores(result):
            task = (result.domain, result.task)
            at.setdefault(step, {}).setdefault(task, []).append(success)
    for step, scores in sorted(at.items()):
        yield from _at_step(variant, step, scores)


def _scores(result: Result) -> Iterator[tuple[int, float]]:
    """Yield the scores after both phases, with their steps on the published axis."""
    for score in (result.offline, result.online):
        if score is not None:
            yield published.published_step(score.step, result.curve.online_from), score.success


def _at_step(variant: Variant, step: int, scores: dict[Task, list[float]]) -> Iterator[Beside]:
    settings = {result.domain: result.settings for result in variant.results}
    domains = {d for d, _ in scores if all(task in scores for task in published.tasks_of(d))}
    units: list[tuple[str, list[Task]]] = []
    if {published.unit(d, settings[d]) for d in domains} == published.domains():
        units.append(("all", list(scores)))
    units += [(published.unit(d, settings[d]), published.tasks_of(d)) for d in sorted(domains)]
    units += [(published.unit(d, settings[d], n), [(d, n)]) for d, n in sorted(scores)]
    covered: set[Task] = set()
    for unit, tasks in units:
        theirs = published.published(variant.method, unit).get(step)
        if theirs is not None:
            ours = estimates.mean([scores[task] for task in tasks])
            within = unit != "all" and len(tasks) == 1 and tasks[0] in covered
            yield Beside(variant, unit, step, ours, theirs, within)
            covered |= set(tasks)
