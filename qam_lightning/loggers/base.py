"""What the loggers of this project share: rows of a run that may be resumed."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

PREFIX = "evaluation/"
"""Of the names in an evaluation's row."""


class RunLogger(Logger):
    """A Lightning logger of whole rows, which begin and resume at a gradient step.

    `MetricsLogger`, which every method attaches to a trainer with loggers, sends a row per
    ``log_metrics`` call: numbers, the text ``phase`` and ``gradient_step``. Other callbacks of
    Lightning and Lightning itself log single metrics at steps of their own counting; these become
    columns of the next row, unless it has them already.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self._pending: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.run_dir.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        """Write a row, or keep metrics without ``gradient_step`` for the next row of training."""
        if "gradient_step" not in metrics:
            self._pending |= {name: x for name, x in metrics.items() if name != "epoch"}
        elif is_evaluation(metrics):
            self.write(dict(metrics))
        else:
            self.write({**metrics, **{n: x for n, x in self._pending.items() if n not in metrics}})
            self._pending = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's folder holds ``config.yaml``."""

    def check(self) -> None:
        """Check that what is in the folder can be continued; change nothing.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def begin(self, gradient_step: int | None, config: str = "") -> None:
        """Begin to log.

        Args:
            gradient_step: rows after it will be logged again; None begins a run.
            config: the run's resolved configuration, YAML, if there is one.
        """

    @abstractmethod
    def write(self, row: dict[str, Any]) -> None:
        """Write a row of training or, see `is_evaluation`, of an evaluation."""


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Return whether a row holds the results of an evaluation."""
    return any(name.startswith(PREFIX) for name in row)
