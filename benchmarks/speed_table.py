"""The table that `update.py` makes: its rows, and how they become files and a picture."""

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import replacing

JAX = "JAX release"
COLORS = {
    "eager": "#9db8d6",
    "bf16": "#c9b6dc",
    "compiled": "#2a6fbb",
    "compiled-bf16": "#7b4fa3",
    "graph": "#2b8a4b",
    JAX: "#e08a2e",
}
"""The modes in the order of the picture's bars."""


class Row(NamedTuple):
    """One method in one mode. Numbers that were not measured are NaN.

    Attributes:
        commit: the code; empty outside a git checkout.
        code: digest of the source files, which decides whether a row is still up to date.
        versions: Python's and the packages'.
        device: ``cpu`` or ``cuda``.
        processor: name of the CPU or GPU.
        threads: CPU threads.
        seconds: least length of a turn of timing.
        method: a file of ``configs/methods``.
        size: paper or quickstart.
        mode: eager, bf16, compiled, compiled-bf16 or graph.
        ms: milliseconds of a whole update, the median (of the turns' medians).
        ms_min: the fastest update's.
        updates_per_second: 1000 / ms.
        gflop: 10^9 floating-point operations of an update, uncompiled.
        gflop_per_second: gflop / ms.
        matmul_gflop_per_second: of the product of two 1536 x 1536 matrices, the best.
        share_of_matmul: of the last two, in [0, 1].
        products_ms: milliseconds of the update's own matrix products without anything else.
        share_of_products: products_ms / ms.
        memory_mb: 10^6 bytes that training takes at its peak: of the process beyond its start and
            its data, compilation included; on a GPU, allocated there.
        compile_seconds: from building the method to the end of the first update.
        jax: version of JAX and commit of the JAX release beside it; empty without.
        jax_ms: its milliseconds per update, the median of its turns' medians.
        jax_ratio: the median over turns of its milliseconds per ours; above 1, ours is faster.
    """

    commit: str
    code: str
    versions: str
    device: str
    processor: str
    threads: int
    seconds: float
    method: str
    size: str
    mode: str
    ms: float
    ms_min: float
    updates_per_second: float
    gflop: float
    gflop_per_second: float
    matmul_gflop_per_second: float
    share_of_matmul: float
    products_ms: float
    share_of_products: float
    memory_mb: float
    compile_seconds: float
    jax: str
    jax_ms: float
    jax_ratio: float

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the row is about; a table has one row of each."""
        return (*self.section, self.method, self.mode)

    @property
    def section(self) -> tuple[str, str, int, str]:
        """What the rows of one table have in common."""
        return self.device, self.processor, self.threads, self.size


def read(path: Path, kind: Any = Row) -> list[Any]:
    """Read the rows of a CSV file; there are none if it does not exist.

    Args:
        path: the file.
        kind: the NamedTuple of a row.

    Raises:
        UserError: it holds something else.
    """
    if not path.exists():
        return []
    types = get_type_hints(kind)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        return [kind(**{n: _parsed(types[n], x) for n, x in line.items()}) for line in lines]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        problem = "holds no table of this program; move it away"
        raise UserError(f"{shown(path, 300)}: {problem}") from error


def _parsed(kind: type, text: str) -> Any:
    return math.nan if kind is float and not text else kind(text)


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write the rows as a CSV file, as markdown, and as a picture."""
    ordered = sorted(rows, key=lambda row: (row.section, row.method, list(COLORS).index(row.mode)))
    write_csv(folder / "speed_table.csv", ordered, Row)
    if ordered:
        with replacing(folder / "speed_table.md") as temporary:
            temporary.write_text(markdown(ordered), encoding="utf-8")
        with replacing(folder / "speed.png") as temporary:
            picture(ordered).savefig(temporary, format="png", dpi=120)


def write_csv(path: Path, rows: Iterable[Any], kind: Any) -> None:
    """Write rows of a NamedTuple, as `read` reads them."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(kind._fields)
        table.writerows([_rounded(x) for x in row] for row in rows)


def _rounded(x: str | float) -> str | float:
    """Return five digits of a number, an empty text for NaN, and a text as it is."""
    if not isinstance(x, float):
        return x
    return "" if math.isnan(x) else f"{x:.5g}"


COLUMNS = {
    "ms": "ms",
    "least": "ms_min",
    "updates/s": "updates_per_second",
    "GFLOP": "gflop",
    "GFLOP/s": "gflop_per_second",
    "of peak": "share_of_matmul",
    "products": "share_of_products",
    "MB": "memory_mb",
    "first, s": "compile_seconds",
    "JAX ms": "jax_ms",
    "JAX/ours": "jax_ratio",
}
"""Heading -> attribute of a row; a column without numbers is left out."""


def sections(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Return the rows by the title of the table that they belong to."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
        where = row.processor if row.device == "cuda" else f"{row.processor}, {threads}"
        found.setdefault(f"{row.size} size, {where}", []).append(row)
    return found


def texts(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table's headings, and its rows as they are printed."""
    columns = {
        heading: name
        for heading, name in COLUMNS.items()
        if not all(math.isnan(getattr(row, name)) for row in rows)
    }
    found = [["method", "mode", *columns]]
    for row in rows:
        numbers = [_text(name, getattr(row, name)) for name in columns.values()]
        found.append([row.method, row.mode, *numbers])
    return found


def _text(name: str, x: float) -> str:
    if math.isnan(x):
        return ""
    return f"{x:.0%}" if name.startswith("share") else f"{x:.{max(0, 2 - _digits(x))}f}"


def _digits(x: float) -> int:
    """Return the exponent of the first digit."""
    return math.floor(math.log10(x)) if x > 0 else 0


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a page, a table for each section."""
    commits = ", ".join(sorted({row.commit or "not in a git checkout" for row in rows}))
    others = ", ".join(sorted({row.jax for row in rows if row.jax}))
    beside = f" Beside: {others}." if others else ""
    versions = "; ".join(sorted({row.versions for row in rows}))
    lines = ["# The speed of an update", "", f"`benchmarks/update.py`, commit {commits}.{beside}"]
    lines += [f"With {versions}. [How it is measured](speed.md).", ""]
    for title, part in sections(rows).items():
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        head, *body = (f"| {' | '.join(cells)} |" for cells in texts(part))
        lines += [head, f"|---|---|{'---:|' * (head.count('|') - 3)}", *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def show(rows: Iterable[Row]) -> None:
    """Print the rows."""
    for title, part in sections(rows).items():
        head, *body = texts(part)
        table = Table(title=title, box=SIMPLE)
        for i, heading in enumerate(head):
            table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
        for cells in body:
            table.add_row(*cells)
        Console(width=max(Console().width, 120)).print(table)


def picture(rows: Sequence[Row]) -> Figure:
    """Draw milliseconds per update of every method, modes side by side; a panel per section."""
    parts = sections(rows)
    figure = Figure(figsize=(12, 3.4 * len(parts)), layout="constrained")
    for axes, (title, part) in zip(
        figure.subplots(len(parts), squeeze=False)[:, 0], parts.items(), strict=True
    ):
        methods = sorted({row.method for row in part})
        bars = {(row.mode, row.method): row.ms for row in part}
        for method in methods:
            theirs = [row.jax_ms for row in part if row.method == method and row.jax_ms > 0]
            if theirs:
                bars[JAX, method] = statistics.median(theirs)
        shown_modes = [mode for mode in COLORS if any(mode == m for m, _ in bars)]
        width = 0.8 / len(shown_modes)
        for i, mode in enumerate(shown_modes):
            places = [x - 0.4 + width * (i + 0.5) for x in range(len(methods))]
            heights = [bars.get((mode, method), 0.0) for method in methods]
            axes.bar(places, heights, width, label=mode, color=COLORS[mode])
        axes.set_xlim(-0.6, max(len(methods), 8) - 0.4)  # no wider bars where there are few
        axes.margins(y=0.2)  # room for the legend
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
        axes.set(title=title[0].upper() + title[1:], ylabel="ms per update")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(ncols=len(shown_modes), frameon=False, fontsize="small")
    return figure
