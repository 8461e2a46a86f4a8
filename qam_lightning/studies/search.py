"""A study that searches: Optuna chooses each run by the results of those before it.

Nothing but the run folders remembers a search. Each has its values in its configuration, its result
in its last evaluation, and whether it was pruned in ``exit.json``. So a search that is continued
tells Optuna what the folders say, and asks for more. Optuna's choices depend on the order in which
runs end: two searches with equal files differ.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from qam_lightning.evaluation.plots import Curve, read_curve
from qam_lightning.studies.begun import values_of, with_values
from qam_lightning.studies.plan import Planned, Refused, plan
from qam_lightning.studies.state import State, state_of, told_state_of
from qam_lightning.studies.study import MOST_RUNS, Range, Run, Search, Study, trial
from qam_lightning.util.errors import UserError, shown

_ATTEMPTS = 100  # to find settings that go together
_STARTUP = 5  # finished trials before one may be pruned


def corners(study: Study) -> list[Run]:
    """Return runs with every value of a list, and both ends of every range, one at a time."""
    assert study.search is not None
    ends = _ends(study.search)
    first = {key: values[0] for key, values in ends.items()}
    return [
        trial(study, "trial", {**first, key: value})
        for key, values in ends.items()
        for value in values
    ]


def _ends(search: Search) -> dict[str, list[Any]]:
    return {
        key: [values.low, values.high] if isinstance(values, Range) else values
        for key, values in search.space.items()
    }


def as_configured(study: Study, tried: Sequence[Planned]) -> Study:
    """Return a search whose lists hold what configurations do: cube-single where cube_single is.

    A trial's configuration then holds values of the lists.

    Args:
        study: one with a search.
        tried: its `corners`, planned.

    Raises:
        UserError: two values of a list are one.
    """
    assert study.search is not None
    configured = (values_of(item.settings, study) for item in tried)
    space = dict(study.search.space)
    for key, ends in _ends(study.search).items():
        found = [next(configured).get(key, value) for value in ends]
        if isinstance(values := space[key], Range):  # 0 is 0.0 where a number need not be whole
            space[key] = values._replace(low=found[0], high=found[1])
            continue
        space[key] = found
        if twice := [value for n, value in enumerate(found) if value in found[:n]]:
            problem = f"search.space.{key} has {shown(twice[0])} twice; write every value once"
            raise UserError(f"{study.path}: {problem}")
    return study._replace(search=study.search._replace(space=space))


class Trials:
    """The runs of a search; a `local.Source`.

    Args:
        study: one with a search, `as_configured`.
        begun: its runs so far, planned.
        any_version: see `plan.plan`.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, study: Study, begun: list[Planned], any_version: bool = False) -> None:
        assert study.search is not None
        self._study, self._search, self._any_version = study, study.search, any_version
        self._optuna = _optuna()
        self._space = {key: self._distribution(x) for key, x in study.search.space.items()}
        # A sampler that is asked again with as many trials must not repeat its choice; nor must
        # one repeat the other's, which equal seeds would do.
        samplers, seed = self._optuna.samplers, len(begun)
        self._learning = samplers.TPESampler(seed=seed, constant_liar=True)
        self._blind = samplers.RandomSampler(seed=MOST_RUNS + 1 + seed)
        self._oracle = self._optuna.create_study(
            direction="maximize",
            pruner=self._optuna.pruners.MedianPruner(n_startup_trials=_STARTUP),
        )
        self._begun: list[Planned] = []  # to be continued
        self._trials: dict[str, Any] = {}
        self._reported: dict[str, int] = {}
        self._numbers = [_number(item.run) for item in begun]
        self._taken = 0
        self._warned = False
        for item in begun:
            self._check_values(item.run)
            if item.state.kind in ("stopped", "failed"):
                self._begun.append(item)
            else:
                self._taken += 1
                self._tell_past(item)

    @property
    def waiting(self) -> int:
        """How many trials are still to come."""
        return max(0, self._search.trials - self._taken)

    def take(self) -> Planned | None:
        """Return a trial to continue, or a new one.

        Raises:
            UserError: settings refuse whatever Optuna chooses, or its folder holds another run.
        """
        if not self.waiting:
            return None
        if self._begun:
            item = self._begun.pop(0)
            self._oracle.enqueue_trial(item.run.axes)
            asked = self._oracle.ask(self._space)
        else:
            asked, item = self._chosen()
            self._numbers.append(_number(item.run))
        self._taken += 1
        self._trials[item.run.name] = asked
        return item

    def _chosen(self) -> tuple[Any, Planned]:
        """Return Optuna's next choice that settings take, and its run.

        Optuna learns nothing from a choice that settings refuse, and could repeat it forever. So
        chance makes the next one.
        """
        number = max(self._numbers, default=0) + 1
        while state_of(self._study.folder / (name := f"trial-{number:04d}")).kind != "new":
            number += 1  # another search has it; no other combination would help
        problem = ""
        for attempt in range(_ATTEMPTS):
            self._oracle.sampler = self._blind if attempt else self._learning
            asked = self._oracle.ask(self._space)
            one = self._study._replace(runs=[trial(self._study, name, asked.params)])
            try:
                (item,) = plan(one, lambda *_: None, self._any_version)
                return asked, item
            except Refused as error:
                self._oracle.tell(asked, state=self._optuna.trial.TrialState.FAIL)
                (problem,) = error.problems
            if not self._warned:
                print(f"left out, and others like it: {problem}", file=sys.stderr)
                self._warned = True
        raise UserError(
            f"{self._study.path}: search.space: {_ATTEMPTS} combinations in a row were refused, "
            f"the last one because {problem}; narrow the space"
        )

    def hopeless(self, item: Planned) -> bool:
        """Whether a trial's best evaluation is below the finished trials' median at its step."""
        if not self._search.prune:
            return False
        asked, curve = self._trials[item.run.name], _curve(item.run)
        for step, success in _points(curve)[self._reported.get(item.run.name, 0) :]:
            asked.report(success, step)
            self._reported[item.run.name] = self._reported.get(item.run.name, 0) + 1
            if asked.should_prune():
                return True
        return False

    def ended(self, item: Planned, state: State) -> None:
        """Tell Optuna how a trial ended."""
        asked, points = self._trials[item.run.name], _points(_curve(item.run))
        states = self._optuna.trial.TrialState
        if state.kind == "finished" and points:
            self._oracle.tell(asked, points[-1][1])
        elif state.kind == "pruned":
            self._oracle.tell(asked, state=states.PRUNED)
        else:
            self._oracle.tell(asked, state=states.FAIL)

    def best(self) -> tuple[Run, float] | None:
        """Return the finished trial with the highest success at its end; None if there is none."""
        ends = {}
        for run in with_values(self._study):
            if told_state_of(run.run_dir).kind == "finished" and (points := _points(_curve(run))):
                ends[run.name] = run, points[-1][1]
        return max(ends.values(), key=lambda end: end[1], default=None)

    def _tell_past(self, item: Planned) -> None:
        """Tell Optuna of a trial that is over; one that runs elsewhere counts as begun."""
        points = dict(_points(_curve(item.run)))
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED}.get(item.state.kind)
        if state is None or not points:
            return
        self._oracle.add_trial(
            self._optuna.trial.create_trial(
                state=state,
                params=item.run.axes,
                distributions=self._space,
                value=list(points.values())[-1],
                intermediate_values=points,
            )
        )

    def _check_values(self, run: Run) -> None:
        """Refuse a trial of another search: its file was changed meanwhile."""
        for key, values in self._search.space.items():
            found = run.axes[key]
            if isinstance(values, Range):
                known = isinstance(found, int | float) and values.low <= found <= values.high
            else:
                known = found in values
            if not known:
                raise UserError(
                    f"{run.run_dir}: {key} is {shown(found)}, which search.space does not hold; "
                    "move it away, or undo the change"
                )

    def _distribution(self, values: Range | list[Any]) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution(values)
        whole = isinstance(values.low, int) and isinstance(values.high, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(*values)


def _number(run: Run) -> int:
    return int(run.run_dir.name.removeprefix("trial-"))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("search: needs Optuna; pip install 'qam_lightning[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _curve(run: Run) -> Curve | None:
    try:
        return read_curve(run.run_dir)
    except UserError:  # no evaluation yet
        return None


def _points(curve: Curve | None) -> list[tuple[int, float]]:
    """Return the steps of all evaluations, with their success."""
    if curve is None:
        return []
    return list(zip(np.asarray(curve.steps).tolist(), curve.success.tolist(), strict=True))
