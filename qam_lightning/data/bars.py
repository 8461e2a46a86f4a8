"""Progress bars of long work on data."""

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


def steps_bar() -> Progress:
    """A progress bar that counts environment steps."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f}%"),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        _SpeedColumn(),
        TimeRemainingColumn(),
        speed_estimate_period=300,
    )


def bytes_bar() -> Progress:
    """A progress bar that counts bytes."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns)


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} steps/s" if task.speed else "")
