"""Results of the laboratory, as samples on disk, tables and pictures.

The samples are the result; distances, tables and pictures are computed from them, so that a later
run of a few methods joins an earlier one of the others.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from qam_lightning.laboratory.distances import energy_distance, sliced_wasserstein
from qam_lightning.laboratory.optimum import behavior_distance, distances, weighting
from qam_lightning.laboratory.problems import PROBLEMS, Problem, grid
from qam_lightning.laboratory.training import VARIANTS, candidates, recipes, tilt_sample
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import locked, regular, replacing, writing
from qam_lightning.util.provenance import versions_line
from qam_lightning.util.rng import Stream, torch_generator

SAMPLES = "samples.npz"
REPETITIONS = 40
SHOWN = ("qam", "fawac", "dac", "cgql", "fbrac", "fql", "ifql", "rebrac")
"""The methods of the picture that has all problems: of every way to extract a policy, one."""
CONVERGENCE = (5, 10, 20, 50)
"""The T at which QAM's two schemes are compared."""
DENOISER = "qam_denoiser"
_METHOD, _BEHAVIOR, _TILT, _INK = "#0072b2", "#d55e00", "#c4c4c4", "#333333"
TILT, BEHAVIOR = "exact tilt", "behaviour"


class Entry(NamedTuple):
    """Samples of one method's policies for one problem.

    Attributes:
        problem: the problem's name.
        method: the method's name, or that of the behaviour or the tilt itself.
        flow_steps: T, 0 where there is no flow.
        steps: gradient steps.
        values: the hyperparameters, as text.
        samples: (S, n, D), one sample of n points per training seed.
    """

    problem: str
    method: str
    flow_steps: int
    steps: int
    values: str
    samples: Tensor


Entries = dict[tuple[str, str, int], Entry]


class Row(NamedTuple):
    """A line of the table: distances to the exact tilt, means over seeds.

    Attributes:
        problem: the problem's name.
        method: the method's name; of the exact tilt, the line is the sampling floor.
        flow_steps: T.
        steps: gradient steps.
        seeds: training seeds; repetitions for the sampling floor.
        values: hyperparameters.
        w1: (sliced) W1.
        w1_high: the largest over seeds; for the sampling floor its 95% quantile.
        energy: energy distance.
        energy_high: likewise.
        q: mean Q.
    """

    problem: str
    method: str
    flow_steps: int
    steps: int
    seeds: int
    values: str
    w1: float
    w1_high: float
    energy: float
    energy_high: float
    q: float


def load(folder: Path, n: int) -> Entries:
    """Read the results of earlier runs in ``folder``; empty if there are none.

    Raises:
        UserError: the file is no such file, or its samples have other than ``n`` points.
    """
    path = folder / SAMPLES
    entries: Entries = {}
    if not path.exists():
        return entries
    try:
        with np.load(regular(path), allow_pickle=False) as file:
            for name in file.files:
                entry = _entry(json.loads(name), torch.from_numpy(file[name]).float())
                entries[entry[:3]] = entry
    except Exception:  # zipfile, zlib, json and numpy each raise their own
        raise UserError(
            f"{path}: no samples of this laboratory; delete it or name another --out"
        ) from None
    if any(entry.samples.shape[1] != n for entry in entries.values()):
        raise UserError(f"{path}: holds samples of another size; name another --out")
    return entries


def _entry(about: dict[str, Any], samples: Tensor) -> Entry:
    entry = Entry(**about, samples=samples)
    seeds, n, dim = samples.shape
    kinds = [type(value) for value in entry]
    full = seeds * n > 0 and dim == PROBLEMS[entry.problem].dim
    if kinds != [*Entry.__annotations__.values()] or not full:
        raise ValueError(about, samples.shape)
    return entry


def add(folder: Path, entry: Entry) -> Entries:
    """Add a result to those in ``folder``, which another process may have added to meanwhile.

    Returns:
        All results.

    Raises:
        UserError: see `load`, or the file cannot be written.
    """
    path = folder / SAMPLES
    with writing(path), locked(path.with_name(f"{SAMPLES}.lock")):
        entries = load(folder, entry.samples.shape[1]) | {entry[:3]: entry}
        _save(path, entries)
    return entries


def _save(path: Path, entries: Entries) -> None:
    """Write all samples, at half precision."""
    arrays: dict[str, Any] = {
        json.dumps(
            {k: v for k, v in e._asdict().items() if k != "samples"}
        ): e.samples.half().numpy()
        for _, e in sorted(entries.items())
    }
    with replacing(path, alone=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def measure(entry: Entry, high: Callable[[list[float]], float] = max) -> Row:
    """Compare an entry's samples with the exact tilt's; ``high`` sums up the seeds' worst."""
    problem = PROBLEMS[entry.problem]
    target = tilt_sample(problem, entry.samples.shape[1])
    w1 = [sliced_wasserstein(x, target) for x in entry.samples]
    energy = [energy_distance(x, target) for x in entry.samples]
    q = problem.q(entry.samples.flatten(0, 1)).mean().item()
    of_seeds = (float(np.mean(w1)), high(w1), float(np.mean(energy)), high(energy), q)
    return Row(*entry[:4], len(w1), entry.values, *of_seeds)


def floor(name: str, n: int) -> Row:
    """Compare exact samples of n points with each other: the error of sampling alone."""
    exact = [tilt_sample(PROBLEMS[name], n, number) for number in range(1, REPETITIONS + 1)]
    entry = Entry(name, TILT, 0, 0, "", torch.stack(exact))
    return measure(entry, high=lambda distances: float(np.quantile(distances, 0.95)))


def behavior(name: str, n: int) -> Entry:
    """Return a sample of n points of the behaviour itself."""
    sample = PROBLEMS[name].behavior.sample(n, torch_generator(n, Stream.LABORATORY, 4))
    return Entry(name, BEHAVIOR, 0, 0, "", sample[None])


def references(problems: Iterable[str], n: int) -> list[Row]:
    """Return the sampling floor's and the behaviour's line of every problem."""
    return [row for name in problems for row in (floor(name, n), measure(behavior(name, n)))]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all lines, four digits each."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([f"{x:.4f}" if isinstance(x, float) else x for x in row] for row in rows)


def markdown(rows: Sequence[Row], flow_steps: int) -> str:
    """Return the tables of all methods, nearest first, of QAM by T and of FAWAC's weights.

    The first one's last column is the number of settings that a method's were chosen from.

    Args:
        rows: the lines of all problems.
        flow_steps: the T whose lines the first two tables show.
    """
    shown = [row for row in rows if row.flow_steps in (0, flow_steps)]
    cells = {(row.method, row.problem): row for row in shown}
    problems = list(dict.fromkeys(row.problem for row in shown))

    def share(method: str) -> float:
        found = [
            cells[method, p].w1 / cells[BEHAVIOR, p].w1 for p in problems if (method, p) in cells
        ]
        return float(np.mean(found))

    known = recipes()
    methods = sorted({row.method for row in shown}, key=share)
    found = {m: [cells.get((m, p)) for p in problems] for m in methods}
    distances = [
        "| method | "
        + " | ".join(f"{p}: W1" for p in problems)
        + " | mean, % of the behaviour's W1 | values | tried |",
        "|---|" + "---:|" * (len(problems) + 1) + "---|---:|",
    ]
    others = [
        "| method | " + " | ".join(f"{p}: energy | mean Q" for p in problems) + " |",
        "|---|" + "---:|" * (2 * len(problems)),
    ]
    for m, line in found.items():
        w1 = " | ".join(f"{r.w1:.3f}" if r else "–" for r in line)
        values = "; ".join(dict.fromkeys(r.values for r in line if r and r.values))
        tried = len(candidates(m, known[m], 1.0, flow_steps)) if m in known else ""
        distances.append(f"| {m} | {w1} | {share(m):.0%} | {values} | {tried} |")
        rest = " | ".join(f"{r.energy:.3f} | {r.q:.3f}" if r else "– | –" for r in line)
        others.append(f"| {m} | {rest} |")
    tables = distances, others, _convergence(rows), _weights(problems)
    return "\n\n".join("\n".join(table) for table in tables) + "\n"


def _convergence(rows: Sequence[Row]) -> list[str]:
    """Return QAM's distance by T in both schemes: of the behaviour's own ODE, and as trained.

    Of the paper's scheme, the loss's exact minimiser stands between the two.
    """
    cells = {(r.method, r.problem, r.flow_steps): r.w1 for r in rows}
    lines = [
        "| problem | floor | T | behaviour's ODE | exact minimiser | qam "
        "| behaviour's ODE, denoiser | qam_denoiser |",
        "|---|---:|" + "---:|" * 6,
    ]
    for name in dict.fromkeys(row.problem for row in rows):
        line = PROBLEMS[name].dim == 1
        for steps in CONVERGENCE:
            found: list[float | None] = [
                *(_minimiser(name, steps) if line else (None, None)),
                cells.get(("qam", name, steps)),
                _behavior_ode(name, steps) if line else None,
                cells.get((DENOISER, name, steps)),
            ]
            told = " | ".join("–" if x is None else f"{x:.3f}" for x in found)
            lines.append(f"| {name} | {cells[TILT, name, 0]:.3f} | {steps} | {told} |")
    return lines


@cache
def _behavior_ode(name: str, steps: int) -> float:
    settings = VARIANTS[DENOISER][1]
    return behavior_distance(PROBLEMS[name], steps, settings["sampler"], settings["grid_power"])


@cache
def _minimiser(name: str, steps: int) -> tuple[float, float]:
    return distances(PROBLEMS[name], steps)


def _weights(problems: Sequence[str]) -> list[str]:
    """Return the table of weighted regression on each problem, from its weights alone."""
    lines = [
        "| problem | effective share of samples | tilt clipped | W1 of FAWAC's exact minimiser |",
        "|---|---:|---:|---:|",
    ]
    for name in problems:
        found = weighting(PROBLEMS[name])
        w1 = "–" if found.w1 is None else f"{found.w1:.3f}"
        lines.append(f"| {name} | {found.effective:.4f} | {found.clipped:.2f} | {w1} |")
    return lines


def draw_overview(path: Path, cells: dict[tuple[str, str], tuple[Entry, Row]]) -> None:
    """Draw the densities of :data:`SHOWN`, a row per problem.

    Args:
        path: the PNG file to write.
        cells: (problem, method) to its samples and its line of the table.
    """
    columns = {(m,): m for m in SHOWN if any(m == method for _, method in cells)}
    if columns:
        _draw_grid(path, cells, columns, "method", 9)


def draw_schemes(path: Path, cells: dict[tuple[str, str, int], tuple[Entry, Row]]) -> None:
    """Draw the densities of QAM in both schemes by T, a row per problem.

    Args:
        path: the PNG file to write.
        cells: (problem, method, T) to its samples and its line of the table.
    """
    schemes = {"qam": "paper's", DENOISER: "denoiser"}
    columns = {
        (method, t): f"T {t}, {scheme}"
        for t in CONVERGENCE
        for method, scheme in schemes.items()
        if any(key[1:] == (method, t) for key in cells)
    }
    if len({method for method, _ in columns}) == 2:
        _draw_grid(path, cells, columns, "QAM", 8)


def _draw_grid(
    path: Path,
    cells: Mapping[Any, tuple[Entry, Row]],
    columns: Mapping[Any, str],
    blue: str,
    fontsize: int,
) -> None:
    """Draw densities, a row per problem.

    Args:
        path: the PNG file to write.
        cells: (problem, ...) to its samples and its line of the table.
        columns: the rest of a cell's key, and what its title begins with.
        blue: what the blue densities are of.
        fontsize: of the titles.
    """
    problems = [p for p in PROBLEMS if any((p, *key) in cells for key in columns)]
    size = (1.75 * len(columns), 1.55 * len(problems) + 0.7)
    figure = Figure(figsize=size, dpi=140, layout="constrained", facecolor="white")
    axes = figure.subplots(len(problems), len(columns), squeeze=False)
    figure.suptitle(
        f"grey or outlined: exact tilt, dashed: behaviour, blue: {blue}; numbers: (sliced) W1",
        x=0.01, ha="left", color=_INK, fontsize=10,
    )  # fmt: skip
    for line, name in zip(axes, problems, strict=True):
        panel = _panel_1d if PROBLEMS[name].dim == 1 else _panel_2d
        for cell, (key, title) in zip(line, columns.items(), strict=True):
            if (name, *key) not in cells:
                cell.set_axis_off()
                continue
            entry, row = cells[name, *key]
            panel(cell, PROBLEMS[name], entry.samples[0])
            text = f"{title}  {row.w1:.3f}"
            cell.set_title(text, fontsize=fontsize, color=_INK, loc="left", pad=3)
        line[0].set_ylabel(name, fontsize=10, color=_INK)
    figure.savefig(path)


def draw_densities(path: Path, name: str, entries: Sequence[Entry], rows: Sequence[Row]) -> None:
    """Draw every method's density for one problem beside the exact tilt's, nearest first.

    Args:
        path: the PNG file to write.
        name: the problem.
        entries: one per method.
        rows: their lines of the table, in the same order.
    """
    problem = PROBLEMS[name]
    order = sorted(range(len(rows)), key=lambda i: rows[i].w1)
    panel, extra = (_panel_1d, 0) if problem.dim == 1 else (_panel_2d, 2)
    count = len(order) + extra
    across = min(6, count)
    down = -(-count // across)
    size = (1.9 * across, (1.65 if problem.dim == 1 else 2.1) * down + 0.8)
    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    figure.suptitle(problem.title + _legend(problem), x=0.01, ha="left", color=_INK, fontsize=10)
    shown = [(f"{rows[i].method}  {rows[i].w1:.3f}", entries[i].samples[0]) for i in order]
    if extra:
        n = 2000
        shown = [(TILT, tilt_sample(problem, n)), (BEHAVIOR, behavior(name, n).samples[0]), *shown]
    for cell, (title, sample) in zip(axes, shown, strict=False):
        panel(cell, problem, sample)
        cell.set_title(title, fontsize=8, color=_INK, loc="left", pad=3)
    for cell in axes[len(shown) :]:
        cell.set_axis_off()
    figure.savefig(path)


def _legend(problem: Problem) -> str:
    if problem.dim == 1:
        return " — grey: exact tilt, dashed: behaviour, blue: method; numbers: W1"
    return " — outlined: half and a tenth of the exact tilt's peak; numbers: sliced W1"


def _panel_1d(cell: Axes, problem: Problem, sample: Tensor) -> None:
    a = grid(1, 400)
    tilt, x = problem.tilt_density(a), a[:, 0].numpy()
    cell.fill_between(x, tilt.numpy(), color=_TILT, lw=0)
    cell.plot(x, problem.behavior.density(a).numpy(), color=_BEHAVIOR, lw=1, ls=(0, (3, 2)))
    heights, edges = np.histogram(sample[:, 0].numpy(), bins=60, range=(-1, 1), density=True)
    cell.stairs(heights, edges, color=_METHOD, lw=1.2)
    cell.set(xlim=(-1, 1), ylim=(0, 1.35 * tilt.max().item()), yticks=[], xticks=[-1, 0, 1])
    cell.tick_params(labelsize=6, colors=_INK, length=2)
    cell.spines[["top", "left", "right"]].set_visible(False)


def _panel_2d(cell: Axes, problem: Problem, sample: Tensor) -> None:
    points = 120
    tilt = problem.tilt_density(grid(2, points)).view(points, points).T
    x = grid(1, points)[:, 0].numpy()
    edges = np.linspace(-1.0, 1.0, 45)
    first, second = sample.T.numpy()
    counts, *_ = np.histogram2d(first, second, bins=[edges, edges], density=True)
    top = tilt.max().item()
    cell.imshow(
        counts.T, extent=(-1, 1, -1, 1), origin="lower", cmap="Blues", vmin=0, vmax=top,
        interpolation="bilinear",
    )  # fmt: skip
    levels = [0.1 * top, 0.5 * top]
    cell.contour(x, x, tilt.numpy(), levels=levels, colors=_BEHAVIOR, linewidths=0.6)
    cell.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-0.85, 0.85))
    cell.spines[:].set_color("#dddddd")


def write_all(folder: Path, entries: Entries, flow_steps: int) -> str:
    """Write tilt.csv, tilt.md, tilt.png, tilt_schemes.png and a picture per problem.

    Args:
        folder: where to.
        entries: all results; at least one.
        flow_steps: the T whose results are compared and drawn.

    Returns:
        The markdown.
    """
    problems = [p for p in PROBLEMS if any(e.problem == p for e in entries.values())]
    n = next(iter(entries.values())).samples.shape[1]
    lines = {key: measure(entry) for key, entry in sorted(entries.items())}
    rows = [*references(problems, n), *lines.values()]
    write_csv(folder / "tilt.csv", rows)
    text = f"{versions_line()}\n\n{markdown(rows, flow_steps)}"
    (folder / "tilt.md").write_text(text, encoding="utf-8")
    for name in problems:
        keys = [key for key in lines if key[0] == name and key[2] == flow_steps]
        if keys:
            chosen = [entries[k] for k in keys], [lines[k] for k in keys]
            draw_densities(folder / f"tilt_{name}.png", name, *chosen)
    compared = {k[:2]: (entries[k], row) for k, row in lines.items() if k[2] == flow_steps}
    draw_overview(folder / "tilt.png", compared)
    draw_schemes(folder / "tilt_schemes.png", {key: (entries[key], lines[key]) for key in lines})
    return text
