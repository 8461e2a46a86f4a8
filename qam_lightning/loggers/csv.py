"""Metrics of a run as CSV files that a resumed run continues without gaps or repetitions.

``metrics/train.csv`` has a row every ``log.every_n_steps`` gradient steps, ``metrics/eval.csv``
one per evaluation.
"""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.loggers.base import PREFIX, RunLogger, is_evaluation
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, sync, writing
from qam_lightning.util.metrics_csv import read_metrics

Row = dict[str, Any]


class CsvLogger(RunLogger):
    """Appends rows to ``metrics/train.csv`` and ``metrics/eval.csv`` in a run's folder.

    Lightning's ``CSVLogger`` holds all rows in memory, and starts another file when a run resumes.

    Args:
        run_dir: folder of the run.
    """

    @property
    def train_csv(self) -> Path:
        """The file of training metrics."""
        return self.run_dir / "metrics" / "train.csv"

    @property
    def eval_csv(self) -> Path:
        """The file of evaluation results; its columns have no prefix."""
        return self.run_dir / "metrics" / "eval.csv"

    @rank_zero_only
    def begin(self, gradient_step: int | None, config: str = "") -> None:
        """Drop the rows after ``gradient_step``: the resumed run writes them again."""
        if gradient_step is not None:
            for path in (self.train_csv, self.eval_csv):
                rewind(path, gradient_step)

    def check(self) -> None:
        """Check that the files, if any, can be continued; change nothing.

        Raises:
            UserError: one of them is not a file of metrics.
        """
        for path in (self.train_csv, self.eval_csv):
            if path.parent.exists() and not path.parent.is_dir():
                raise UserError(f"{path.parent}: is a file, expected a folder; move it away")
            if path.exists():
                read_metrics(path)

    def write(self, row: Row) -> None:
        """Append a row to the file it belongs to.

        Raises:
            UserError: it cannot be written.
        """
        path = self.eval_csv if is_evaluation(row) else self.train_csv
        append(path, {name.removeprefix(PREFIX): value for name, value in row.items()})

    @rank_zero_only
    def save(self) -> None:
        """Wait until all rows are on disk.

        Raises:
            UserError: they cannot be written.
        """
        for path in (self.train_csv, self.eval_csv):
            if path.exists():
                with writing(path):
                    sync(path)


def append(path: Path, row: Row) -> None:
    """Append a row; a new column is added to the file, and stays empty in the earlier rows."""
    with writing(path):
        columns = _columns(path)
        if set(row) <= set(columns):
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerow(row)
            return
        rows = read_metrics(path)[1] if columns else []
        _replace(path, columns + [name for name in row if name not in columns], [*rows, row])


def rewind(path: Path, gradient_step: int) -> None:
    """Drop the rows after ``gradient_step``."""
    if not path.exists():
        return
    with writing(path):
        columns, rows = read_metrics(path)
        kept = [row for row in rows if gradient_step >= int(row["gradient_step"])]
        if kept:
            _replace(path, columns, kept)
        else:
            path.unlink()


def _columns(path: Path) -> list[str]:
    """The columns of a file, none if it does not exist; only its first line is read."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), [])


def _replace(path: Path, columns: list[str], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path, alone=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
