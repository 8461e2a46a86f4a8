"""A picture of a dataset: visited positions, seen from above, and returns of trajectories."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw_dataset(
    path: Path,
    title: str,
    positions: Mapping[str, np.ndarray],
    walls: tuple[np.ndarray, float, float] | None,
    returns: Mapping[int, np.ndarray],
) -> None:
    """Draws a dataset.

    Args:
        path: Image to write.
        title: Heading.
        positions: Points from above by name, (points, 2).
        walls: A maze's walls (rows, columns), the size of a cell and the offset of the first.
        returns: Returns of all trajectories by task.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    above, sums = figure.subplots(1, 2)
    figure.suptitle(title, fontsize="medium")
    if walls is not None:
        cells, unit, offset = walls
        # Cell (i, j) is centred on x = j unit - offset, y = i unit - offset.
        left, right, low, high = (
            n * unit - offset - unit / 2 for n in (0, cells.shape[1], 0, cells.shape[0])
        )
        extent = (left, right, low, high)
        above.imshow(cells, cmap="Greys", extent=extent, origin="lower", alpha=0.6, vmax=1.5)
    for name, points in positions.items():
        above.plot(*points.T, ".", markersize=1, alpha=0.3, label=name, rasterized=True)
    above.set_aspect("equal" if walls is not None else "auto")
    above.set(xlabel="x", ylabel="y", title="from above")
    if len(positions) > 1:
        above.legend(markerscale=10)
    for task, values in returns.items():
        sums.hist(values, bins=30, histtype="step", label=f"task {task}")
    sums.set(xlabel="return of a trajectory", ylabel="trajectories", title="returns")
    sums.legend()
    figure.savefig(path, dpi=120)
