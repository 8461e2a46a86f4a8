"""Run folders -> the numbers that a report is made of."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qam_lightning.evaluation.plots import Curve, read_curve
from qam_lightning.online.schedule import Length
from qam_lightning.reports.settings import flat
from qam_lightning.run_folder import contents
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.metrics_csv import Row, read_metrics
from qam_lightning.util.run_config import read_run_config
from qam_lightning.util.schema import Count, Schema, Text, read_json, validated

_ADVICE = "restore the file, or leave the run out"


class _Trainer(Schema, extra="allow"):
    max_steps: Count


class _Data(Schema, extra="allow"):
    env: Text
    task: Count


class _Model(Schema, extra="allow"):
    class_path: Text


class _Online(Schema, extra="allow"):
    steps: Count = 0


class _Config(Schema, extra="allow"):
    """What a report needs of a resolved configuration."""

    seed: Count
    method: Text
    trainer: _Trainer
    data: _Data
    model: _Model
    online: _Online = _Online()


class _Facts(Schema, extra="allow"):
    """What a report needs of the JSON beside a checkpoint."""

    versions: dict[Text, Text] = {}
    hardware: Text = ""
    config: Text = ""
    offline_steps: Count | None = None


class Score(NamedTuple):
    """A success rate and the step at which it was evaluated, on the axis of `Curve.steps`."""

    success: float
    step: int


@dataclass(frozen=True)
class Result:
    """What a run's folder says.

    Attributes:
        folder: the folder.
        method: the method as in files, e.g. ``qam_edit``; the class's name of a custom one.
        domain: the environment, e.g. ``cube-double``.
        task: the number of its task.
        seed: the training seed.
        settings: the resolved configuration, by dotted keys as on the command line.
        curve: success at every evaluation.
        rows: the rows of ``metrics/eval.csv``.
        length: how long the whole run is.
        speed: updates per second, the median of the rows of ``metrics/train.csv``; None if
            there are none.
        hours: updates over their speed, and the evaluations; without start-up and environment steps
            that no update follows. None if speed is.
        hardware: the device that trained; empty if it was not recorded.
        versions: the software that wrote the last checkpoint, and its commit; empty if unknown.
        config_hash: of ``config.yaml``, as in the checkpoint.
        changed: whether ``config.yaml`` is not the last checkpoint's: it was edited, or the run was
            resumed with other settings and not saved since.
    """

    folder: Path
    method: str
    domain: str
    task: int
    seed: int
    settings: Mapping[str, Any]
    curve: Curve
    rows: Sequence[Row]
    length: Length
    speed: float | None
    hours: float | None
    versions: Mapping[str, str]
    hardware: str
    config_hash: str
    changed: bool

    @property
    def finished(self) -> bool:
        """Whether the evaluation after the last step is there."""
        last = self.rows[-1]
        return self.length.is_reached(int(last["gradient_step"]), int(last["env_step"]))

    @property
    def last(self) -> Score:
        """The last evaluation so far."""
        return self._score(len(self.rows) - 1)

    @property
    def final(self) -> Score | None:
        """The evaluation after the last step; None before."""
        return self.last if self.finished else None

    @property
    def best(self) -> Score | None:
        """The highest evaluation of a finished run, the latest of equal ones as in ``best.ckpt``.

        It was chosen by its own episodes, and is therefore too high on average.
        """
        if not self.finished:
            return None
        success = self.curve.success
        return self._score(len(success) - 1 - int(np.argmax(success[::-1])))

    @property
    def offline(self) -> Score | None:
        """The evaluation at the end of the offline phase; None before it or without a phase."""
        count, end = int((~self._online).sum()), self.length.gradient_steps
        ended = count and end and int(self.rows[count - 1]["gradient_step"]) >= end
        return self._score(count - 1) if ended else None

    @property
    def online(self) -> Score | None:
        """The last evaluation of a finished online phase."""
        return self.final if self.curve.online_from is not None else None

    @cached_property
    def regret(self) -> float | None:
        """1 minus the mean success over the environment steps of a finished online phase.

        The mean is the integral of the evaluations, joined by straight lines, over the environment
        steps from the first to the last of them, divided by their number. The last evaluation of
        the offline phase is the one at 0 environment steps. None with fewer than two evaluations.
        """
        if self.online is None or self.length.gradient_steps and self.offline is None:
            return None
        first = max(0, int((~self._online).sum()) - 1)
        steps = np.array([int(row["env_step"]) for row in self.rows[first:]])
        success = self.curve.success[first:]
        if steps[-1] == steps[0]:
            return None
        area = np.sum(np.diff(steps) * (success[1:] + success[:-1]) / 2)
        return float(1 - area / (steps[-1] - steps[0]))

    @property
    def commit(self) -> str:
        """The commit that wrote the last checkpoint, ``unknown`` if it is not recorded."""
        return self.versions.get("commit", "unknown")

    @property
    def device(self) -> str:
        """The devices that train, by name; by their setting if that was not recorded."""
        wanted = self.hardware or self.settings.get("trainer.accelerator", "auto")
        counts = [self.settings.get(f"trainer.{key}", 1) for key in ("devices", "num_nodes")]
        return " × ".join(str(x) for x in (*(c for c in reversed(counts) if c != 1), wanted))

    @property
    def total(self) -> int:
        """Steps on the curve's axis that a finished run has."""
        start = self.curve.online_from
        offline = self.length.gradient_steps if start is None else start
        return offline + self.length.env_steps

    @property
    def _online(self) -> np.ndarray:
        return np.array([row["phase"] == "online" for row in self.rows])

    def _score(self, index: int) -> Score:
        return Score(float(self.curve.success[index]), int(self.curve.steps[index]))


def read_results(runs: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Read run folders.

    Args:
        runs: folders; one that is named twice counts once.

    Returns:
        The results, and one line for every run that has none: damaged, or not evaluated yet.

    Raises:
        UserError: a folder holds nothing of a run.
    """
    results, lines = [], []
    for folder in dict.fromkeys(runs):
        if not folder.is_dir() or not contents(folder):
            found = "no run" if folder.is_dir() else "no folder"
            holds_runs = next(folder.glob("*/config.yaml"), None) is not None
            advice = "name those in it" if holds_runs else "leave it out"
            raise UserError(f"{folder}: is {found}, expected a run's folder; {advice}")
        try:
            results.append(read_result(folder))
        except UserError as error:
            lines.append(str(error))
    return results, lines


def read_result(folder: Path) -> Result:
    """Read a run's folder; ``checkpoints/`` may be missing.

    Raises:
        UserError: it is damaged, or holds no evaluation.
    """
    text, config = read_run_config(folder / "config.yaml", _ADVICE)
    settings = dict(flat(config))
    checked = validated(_Config, config, folder / "config.yaml", "a configuration", _ADVICE)
    custom = checked.method == "custom"
    curve, rows = read_curve(folder), read_metrics(folder / "metrics" / "eval.csv")[1]
    speed, hours = _cost(folder, rows)
    facts = _facts(folder)
    return Result(
        folder=folder,
        method=shown(checked.model.class_path.rpartition(".")[2] if custom else checked.method),
        domain=shown(checked.data.env),
        task=checked.data.task,
        seed=checked.seed,
        settings=settings,
        curve=curve,
        rows=rows,
        length=Length.of(config, _offline_steps(facts, curve)),
        speed=speed,
        hours=hours,
        versions=facts.versions,
        hardware=facts.hardware,
        config_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
        changed=bool(facts.config) and facts.config != text,
    )


def _offline_steps(facts: _Facts, curve: Curve) -> int | None:
    """Return the gradient steps of the offline phase if they are not ``trainer.max_steps``."""
    if facts.offline_steps is None and curve.online_from == 0:
        return 0  # the method has none, and no checkpoint says so
    return facts.offline_steps


def _cost(folder: Path, evaluations: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return gradient steps per second, and hours."""
    path = folder / "metrics" / "train.csv"
    rows = read_metrics(path, ("gradient_step", "steps_per_second"))[1] if path.exists() else []
    if not rows:
        return None, None
    steps = np.diff([0, *(int(row["gradient_step"]) for row in rows)])
    speeds = np.maximum([float(row["steps_per_second"]) for row in rows], 1e-9)
    if not np.all(np.isfinite(speeds)):
        return None, None
    seconds = sum(float(row.get("seconds") or 0) for row in evaluations)
    return float(np.median(speeds)), float((np.sum(steps / speeds) + seconds) / 3600)


def _facts(folder: Path) -> _Facts:
    for name in ("last", "last-1", "best"):
        path = folder / "checkpoints" / f"{name}.json"
        with contextlib.suppress(UserError):  # none, or damaged: a report can do without
            facts: _Facts = read_json(_Facts, path, "facts of a checkpoint", "")
            return facts
    return _Facts()
