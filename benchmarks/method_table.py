"""What each method costs: parameters, and milliseconds per update and per chunk of actions.

python benchmarks/method_table.py                       all methods, the paper's size; writes
                                                        docs/method_table.md, .csv and .png
python benchmarks/method_table.py --size quickstart --methods qam fql --out build/method_table

Updates are timed as by `update.py`, chunks for one state as by `acting.py`; each eager and
compiled. Parameters stand beside those of the paper's Table 6. Rows that are in the table already,
of the same code, versions and settings, are not measured again: the command goes on where it was
interrupted. Measure on an idle machine. docs/speed.md says what the columns mean.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import acting
import numpy as np
import speed_table
import torch
import update
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workload import SIZES, build

from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.util.arguments import Parser, answered, at_least, path
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, writing

MODES = ("eager", "compiled")
OTHERS = ("method_table.py", "acting.py", "speed_table.py")

TABLE_6 = {
    "rebrac": 18_238_534,
    "fbrac": 17_426_989,
    "cgql": 18_275_398,
    "cgql_mse": 18_275_398,
    "cgql_linex": 18_275_398,
    "fql": 18_264_646,
    "dsrl": 27_397_251,
    "fedit": 18_277_472,
    "fawac": 18_243_630,
    "ifql": 18_243_630,
    "dac": 18_509_901,
    "qsm": 18_509_901,
    "qam": 19_941_496,
    "qam_edit": 20_791_979,
    "qam_fql": 20_779_153,
}
"""Parameters of the paper's Table 6, target networks included; it leaves out BAM and RLPD."""


class Row(NamedTuple):
    """One method in one mode. Numbers that were not measured are NaN.

    Attributes:
        commit: the code; empty outside a git checkout.
        code: digest of the source files, which decides whether a row is still up to date.
        versions: Python's and the packages'.
        device: ``cpu`` or ``cuda``.
        processor: name of the CPU or GPU.
        threads: CPU threads.
        seconds: least length of a turn of timing updates.
        method: a file of ``configs/methods``.
        size: paper or quickstart.
        mode: eager or compiled.
        trained: parameters that are trained.
        stored: parameters, target networks included.
        acting: parameters that choosing an action reads.
        update_ms: milliseconds of a whole update, the median.
        chunk_ms: milliseconds of a chunk of actions for one state, the median.
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
    trained: int
    stored: int
    acting: int
    update_ms: float
    chunk_ms: float

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the row is about; a table has one row of each."""
        return self.device, self.processor, self.threads, self.size, self.method, self.mode


class Reads(TorchDispatchMode):
    """Notes the memory that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.places = set[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Pass every operation on."""
        tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
        self.places |= {x.untyped_storage().data_ptr() for x in tensors}
        return func(*args, **(kwargs or {}))


def parameters(method: Method) -> dict[str, int]:
    """Count a method's parameters; see `Row` for the names."""
    with Reads() as reads:
        EpisodePolicy(method, 0)(np.zeros((1, method.spaces.obs_dim), np.float32), [0])
    found = list(method.parameters())
    return {
        "trained": sum(p.numel() for p in found if p.requires_grad),
        "stored": sum(p.numel() for p in found),
        "acting": sum(p.numel() for p in found if p.untyped_storage().data_ptr() in reads.places),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    return answered(lambda: benchmark(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is left out is as `update.parse` has it."""
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="files of configs/methods; default: all")
    add("--size", choices=SIZES, default="paper", help="of networks; default: %(default)s")
    add("--threads", type=at_least(1), help="of the CPU; default: 1, with a GPU all")
    add("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    add("--seconds", type=update.seconds, help="of timing updates; default: 2, on a GPU 1")
    add("--repeats", type=at_least(1), default=30, help="timed chunks; default: %(default)s")
    add("--out", type=path, default=Path("docs/method_table"), help="default: %(default)s")
    own = parser.parse_args(arguments)
    own.out = own.out.with_suffix("")
    given = ["--modes", *MODES, "--sizes", own.size]
    for name in ("methods", "device", "seconds"):
        value = getattr(own, name)
        if value is not None:
            given += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    options = update.parse([*given, *(["--threads", str(own.threads)] if own.threads else [])])
    options.threads = options.threads[:1]
    return argparse.Namespace(**{**vars(options), "repeats": own.repeats, "out": own.out})


def benchmark(options: argparse.Namespace) -> int:
    """Measure what is missing, and print the table; return the exit code."""
    with writing(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
    table = {row.cell: row for row in speed_table.read(options.out.with_suffix(".csv"), Row)}
    wanted = {blank_row(row).cell: blank_row(row) for row in update.blank_rows(options)}
    missing = [row for row in update.blank_rows(options) if not up_to_date(table, blank_row(row))]
    chunks: dict[str, dict[str, float]] = {}
    failures = 0
    for number, (row, problem) in enumerate(update.measured(missing, options), 1):
        found = blank_row(row)
        if not problem:
            try:
                if row.method not in chunks:
                    chunks[row.method] = chunk_times(row, options)
                method = build(row.method, row.size)
                found = found._replace(chunk_ms=chunks[row.method][row.mode], **parameters(method))
            except UserError as error:
                problem = str(error)
        told = problem or f"{row.ms:.4g} ms per update, {found.chunk_ms:.3g} ms per chunk"
        print(f"[{number}/{len(missing)}] {row.method}, {row.size}, {row.mode}: {told}", flush=True)
        failures += bool(problem)
        if not problem:
            table[found.cell] = found
            write(options.out, table.values())
    print(markdown([table[cell] for cell in wanted if cell in table]), end="")
    return 1 if failures else 0


def blank_row(row: speed_table.Row) -> Row:
    """Return the row for one of `update.py`, with its time."""
    kept = {name: getattr(row, name) for name in Row._fields if name in row._fields}
    counts = dict.fromkeys(("trained", "stored", "acting"), 0)
    code = update.digest(*OTHERS)
    return Row(**{**kept, "code": code}, **counts, update_ms=row.ms, chunk_ms=math.nan)


def up_to_date(table: dict[Any, Row], wanted: Row) -> bool:
    """Whether a row need not be measured again."""
    row, same = table.get(wanted.cell), ("code", "versions", "seconds")
    return row is not None and all(getattr(row, n) == getattr(wanted, n) for n in same)


def chunk_times(row: speed_table.Row, options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of a chunk for one state in each mode."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(row.threads)
    with update.pinned(row.threads if row.device == "cpu" else update.CORE_COUNT):
        method = build(row.method, row.size).to(row.device)
        return dict(zip(acting.MODES, acting.chunks(method, 1, options.repeats), strict=True))


def write(out: Path, rows: Iterable[Row]) -> None:
    """Write the rows as CSV, as markdown, and as a picture."""
    ordered = sorted(rows, key=lambda row: (*row.cell[:-1], MODES.index(row.mode)))
    speed_table.write_csv(out.with_suffix(".csv"), ordered, Row)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(ordered), encoding="utf-8")
    with replacing(out.with_suffix(".png")) as temporary:
        picture(ordered).savefig(temporary, format="png", dpi=120)


def by_method(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return method -> mode -> row."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.method, {})[row.mode] = row
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a page, a table for each size and processor."""
    commits = ", ".join(sorted({row.commit or "not in a git checkout" for row in rows}))
    versions = "; ".join(sorted({row.versions for row in rows}))
    lines = ["# What each method costs", "", f"`benchmarks/method_table.py`, commit {commits}."]
    lines += [f"With {versions}. [What the columns mean](speed.md#every-method-in-one-table).", ""]
    for title, part in speed_table.sections(rows).items():
        paper = part[0].size == "paper"
        heads = ["method", "trained", "stored", *(["Table 6"] if paper else []), "read to act"]
        heads += [f"{what}, {mode}" for what in ("ms per update", "ms per chunk") for mode in MODES]
        lines += [f"## {title[0].upper()}{title[1:]}", "", f"| {' | '.join(heads)} |"]
        lines += [f"|---|{'---:|' * (len(heads) - 1)}"]
        for name, modes in by_method(part).items():
            row = next(iter(modes.values()))
            reported = [f"{TABLE_6[name]:,}" if name in TABLE_6 else ""] if paper else []
            cells = [name, f"{row.trained:,}", f"{row.stored:,}", *reported, f"{row.acting:,}"]
            for what in ("update_ms", "chunk_ms"):
                cells += [digits(getattr(modes[m], what)) if m in modes else "" for m in MODES]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def digits(milliseconds: float) -> str:
    """Return three digits, and all of a number that has more before the point."""
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def picture(rows: Sequence[Row]) -> Figure:
    """Draw parameters and times of every method; a row of three panels per size and processor."""
    parts = speed_table.sections(rows)
    figure = Figure(figsize=(13, 1.2 + 4.4 * len(parts)), layout="constrained")
    grids = figure.subfigures(len(parts), squeeze=False)[:, 0]
    for grid, (title, part) in zip(grids, parts.items(), strict=True):
        grid.suptitle(title[0].upper() + title[1:], fontsize=12)
        methods = by_method(part)
        one = [next(iter(modes.values())) for modes in methods.values()]
        counts = {
            "trained": ([row.trained / 1e6 for row in one], "#5f6a72"),
            "read to act": ([row.acting / 1e6 for row in one], "#e08a2e"),
        }
        panels = [("parameters, millions", counts)]
        for heading, name in (("ms per update", "update_ms"), ("ms per chunk", "chunk_ms")):
            bars = {
                mode: (
                    [
                        getattr(modes[mode], name) if mode in modes else 0
                        for modes in methods.values()
                    ],
                    speed_table.COLORS[mode],
                )
                for mode in MODES
            }
            panels.append((heading, bars))
        for axes, (heading, bars) in zip(grid.subplots(1, 3, sharey=True), panels, strict=True):
            for i, (label, (lengths, colour)) in enumerate(bars.items()):
                places = [y - 0.2 + 0.4 * i for y in range(len(methods))]
                axes.barh(places, lengths, 0.38, label=label, color=colour)
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(max(len(methods), 6) - 0.4, -0.6)  # the first on top
            axes.set(xlabel=heading)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(
                frameon=False, fontsize="small", ncols=2, bbox_to_anchor=(1, 1), loc="lower right"
            )
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
