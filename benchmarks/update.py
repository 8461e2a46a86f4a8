"""The speed of an update: every method, mode and size, in one table.

python benchmarks/update.py --methods qam             a table on the terminal
python benchmarks/update.py --out docs                all of them; writes speed_table.md and .csv,
                                                      and speed.png
python benchmarks/update.py --out docs --jax CHECKOUT --jax_python INTERPRETER
                                                      beside the published JAX implementation

Whole updates of a real training run are timed, with the callbacks of every run and synthetic data
of cube-triple's dimensions, each method in a process of its own. Rows that are in the table
already, of the same code, versions and settings, are not measured again. Measure on an idle
machine. docs/speed.md says what the columns mean.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax_update
import speed_table
import torch
from speed_table import Row
from update_cell import COMPILE, Task
from workload import KNOWN, SIZES

import qam_lightning
from qam_lightning.util.arguments import Parser, answered, at_least, closest, path
from qam_lightning.util.configs import CONFIGS
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import writing
from qam_lightning.util.provenance import git_commit, hardware, versions

FOLDER = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
CORE_COUNT = len(CORES) or os.cpu_count() or 1


class Failed(Exception):
    """A process could not measure."""


class Other(NamedTuple):
    """The JAX implementation beside ours.

    Attributes:
        command: runs `jax_update.py` with its interpreter and checkout.
        name: versions, for the table.
    """

    command: list[str]
    name: str


class Measurement:
    """A process that gets warm, waits, and measures when asked to.

    Args:
        command: the program and its arguments.
        threads: CPU threads; on a CPU it is pinned to as many cores, always the same ones.
        device: ``cpu`` or ``cuda``.
        abreast: how many of them get warm at once.
    """

    def __init__(self, command: list[str], threads: int, device: str, abreast: int = 1) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, CORE_COUNT // abreast)),
            "JAX_PLATFORMS": device,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # beside PyTorch on the same GPU
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        with pinned(threads if device == "cpu" else CORE_COUNT):
            self._process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]

    def answer(self) -> dict[str, Any]:
        """Wait for its next line.

        Raises:
            Failed: it has ended; says why.
        """
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        said = [text.strip() for text in self._log if text.strip()]
        raise Failed(said[-1].removeprefix("error: ") if said else f"ended with code {code}")

    def ask(self, word: str) -> dict[str, Any]:
        """Send a word, and wait for the answer."""
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                file.close()


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Let processes that start inside run on this process's first ``count`` cores only."""
    if CORES:
        os.sched_setaffinity(0, CORES[:count])
    try:
        yield
    finally:
        if CORES:
            os.sched_setaffinity(0, CORES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return answered(lambda: benchmark(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="files of configs/methods; default: all")
    add("--modes", nargs="+", choices=COMPILE, metavar="MODE", help=f"of {', '.join(COMPILE)}")
    add("--sizes", nargs="+", choices=SIZES, metavar="SIZE", help=f"of {', '.join(SIZES)}")
    add("--threads", nargs="+", type=at_least(1), help="CPU threads; default: 1 and 2, on a CPU")
    add("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    add("--seconds", type=seconds, help="of timing per turn; default: 2, on a GPU 1")
    add("--out", type=path, metavar="FOLDER", help="write the table there")
    add("--again", action="store_true", help="measure what the table there has already, too")
    add("--jax", type=path, metavar="CHECKOUT", help="of the published JAX implementation")
    add("--jax_python", type=path, metavar="INTERPRETER", help="one that has JAX")
    add("--turns", type=at_least(2), default=2, help="of ours and of JAX's; default: %(default)s")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.seconds = options.seconds or (1.0 if options.device == "cuda" else 2.0)
    check(options)
    return options


def seconds(text: str) -> float:
    """Read a duration."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {shown(text)}")
    return value


def check(options: argparse.Namespace) -> None:
    """Fill in what was left out.

    Raises:
        UserError: something cannot be measured here.
    """
    for name in options.methods or ():
        if name not in KNOWN:
            raise UserError(f"--methods {shown(name)}: no such method; {closest(name, KNOWN)}")
    gpu = options.device == "cuda"
    if gpu and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    if not gpu and "graph" in (options.modes or ()):
        raise UserError("--modes graph: CUDA graphs need a GPU, and the device is cpu")
    most = CORE_COUNT
    for count in options.threads or ():
        if count > most:
            raise UserError(f"--threads {count}: this process may use {most} core(s)")
    options.methods = options.methods or KNOWN
    options.modes = options.modes or [mode for mode in COMPILE if gpu or mode != "graph"]
    options.sizes = options.sizes or list(SIZES)
    options.threads = options.threads or ([most] if gpu else [n for n in (1, 2) if n <= most])
    if bool(options.jax) != bool(options.jax_python):
        raise UserError("--jax and --jax_python: give both, the checkout and its interpreter")
    options.other = find_other(options) if options.jax else None


def find_other(options: argparse.Namespace) -> Other:
    """Check that the JAX implementation runs.

    Raises:
        UserError: it does not.
    """
    checkout, python = options.jax.resolve(), options.jax_python.absolute()
    if not (checkout / "agents" / "__init__.py").is_file():
        raise UserError(f"--jax {shown(options.jax)}: has no agents/__init__.py")
    command = [str(python), str(FOLDER / "jax_update.py"), str(checkout)]
    try:
        with contextlib.closing(Measurement(command, 1, options.device)) as probe:
            found = probe.answer()
    except (Failed, OSError) as error:
        raise UserError(f"--jax_python {shown(options.jax_python)}: {shown(error)}") from error
    asked = ["git", "-c", "safe.directory=*", "-C", str(checkout), "rev-parse", "HEAD"]
    git = subprocess.run(asked, capture_output=True, text=True)
    commit = f", commit {git.stdout.strip()}" if git.returncode == 0 else ""
    return Other(command, f"JAX {found['jax']}{commit}")


def benchmark(options: argparse.Namespace) -> int:
    """Measure what is missing, and print the table; return the exit code."""
    table: dict[Any, Row] = {}
    if options.out:
        with writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
        table = {row.cell: row for row in speed_table.read(options.out / "speed_table.csv")}
    wanted = blank_rows(options)
    missing = [
        row for row in wanted if options.again or not up_to_date(table.get(row.cell), row, options)
    ]
    failures, start = 0, time.monotonic()
    for number, (row, problem) in enumerate(measured(missing, options), 1):
        left = (time.monotonic() - start) / number * (len(missing) - number) / 60
        told = f"{row.ms:.4g} ms (least {row.ms_min:.4g}), {row.updates_per_second:.3g} updates/s"
        where = f"{row.method}, {row.size}, {row.mode}, {row.threads} thread(s)"
        what = problem if row.ms != row.ms else f"{told}{'; ' if problem else ''}{problem}"
        print(f"[{number}/{len(missing)}] {where}: {what}; {left:.0f} min left", flush=True)
        failures += bool(problem)
        if row.ms == row.ms:
            table[row.cell] = row
            if options.out:
                speed_table.write(options.out, table.values())
    speed_table.show(table[row.cell] for row in wanted if row.cell in table)
    print(wanted[0].versions)
    return 1 if failures else 0


def blank_rows(options: argparse.Namespace) -> list[Row]:
    """Return a row for everything that was asked for, without numbers, in order of measuring."""
    found = versions()
    found.pop("commit", None)
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    empty = {n: math.nan if kind is float else kind() for n, kind in Row.__annotations__.items()}
    blank = Row(**empty)._replace(
        commit=commit(),
        code=digest(),
        versions=names,
        device=options.device,
        processor=hardware(options.device),
        seconds=options.seconds,
    )
    cells = itertools.product(options.threads, options.sizes, options.methods, options.modes)
    rows = [blank._replace(threads=n, size=s, method=m, mode=k) for n, s, m, k in cells]
    if options.device == "cuda":  # those that get warm at once take about equally long
        rows.sort(key=lambda row: (row.threads, row.size, options.modes.index(row.mode)))
    return rows


def up_to_date(row: Row | None, wanted: Row, options: argparse.Namespace) -> bool:
    """Whether a row of the table need not be measured again."""
    if row is None:
        return False
    beside = options.other.name if options.other and row.method in jax_update.AGENTS else row.jax
    same = ("code", "versions", "seconds")
    return row.jax == beside and all(getattr(row, n) == getattr(wanted, n) for n in same)


def measured(rows: Sequence[Row], options: argparse.Namespace) -> Iterator[tuple[Row, str]]:
    """Measure; yield every row, and what went wrong with it.

    On a GPU several processes get warm at once, as many as there are cores: compiling is work of
    the CPU. Then one after the other measures, and the rest wait.
    """
    abreast = CORE_COUNT if options.device == "cuda" and not options.other else 1
    with contextlib.closing(Beside(options.other)) as beside:
        for start in range(0, len(rows), abreast):
            wave = rows[start : start + abreast]
            with contextlib.ExitStack() as stack:
                processes = [
                    stack.enter_context(contextlib.closing(ours(row, abreast))) for row in wave
                ]
                outcomes = [outcome(process) for process in processes]
                for row, process, warm in zip(wave, processes, outcomes, strict=True):
                    try:
                        if isinstance(warm, Failed):
                            raise warm
                        theirs, problem = beside.process(row)
                        done = timed(row._replace(**warm), process, theirs, options)
                        yield done, problem
                    except Failed as failed:
                        yield row, str(failed)
                    process.close()


def ours(row: Row, abreast: int) -> Measurement:
    """Start a process that measures a row."""
    task = Task(row.method, row.size, row.mode, row.device, row.seconds)
    command = [sys.executable, str(FOLDER / "update_cell.py"), json.dumps(task._asdict())]
    return Measurement(command, row.threads, row.device, abreast)


def outcome(process: Measurement) -> dict[str, float] | Failed:
    """Wait until a process is warm."""
    try:
        return process.answer()
    except Failed as failed:
        return failed


class Beside:
    """The JAX implementation of the method at hand, in one process for all our modes.

    Args:
        other: None if it was not asked for.
    """

    def __init__(self, other: Other | None) -> None:
        self._other, self._about = other, None
        self._process: Measurement | None = None
        self._problem = ""

    def process(self, row: Row) -> tuple[Measurement | None, str]:
        """Return the warm process for a row; or None, and what went wrong if it exists there."""
        if not self._other or row.method not in jax_update.AGENTS:
            return None, ""
        if self._about != (about := (row.section, row.method)):
            self.close()
            settings = (row.method, json.dumps(SIZES[row.size]), str(row.seconds))
            command = [*self._other.command, *settings]
            self._about, self._process = about, Measurement(command, row.threads, row.device)
            warm = outcome(self._process)
            self._problem = f"JAX: {warm}" if isinstance(warm, Failed) else ""
        return (None if self._problem else self._process), self._problem

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.close()


def timed(
    row: Row, process: Measurement, theirs: Measurement | None, options: argparse.Namespace
) -> Row:
    """Measure a row with a warm process, in turns with the JAX implementation if it is there.

    Raises:
        Failed: a process ended.
    """
    pairs = [
        (process.ask("go"), theirs.ask("go") if theirs else None)
        for _ in range(options.turns if theirs else 1)
    ]
    rest = process.ask("end")
    ms = statistics.median(mine["ms"] for mine, _ in pairs)
    speed = rest["gflop"] / ms * 1e3
    beside = [(mine["ms"], other["ms"]) for mine, other in pairs if other]
    return row._replace(
        ms=ms,
        ms_min=min(mine["ms_min"] for mine, _ in pairs),
        updates_per_second=1e3 / ms,
        gflop_per_second=speed,
        share_of_matmul=speed / rest["matmul_gflop_per_second"],
        share_of_products=rest["products_ms"] / ms,
        jax=options.other.name if beside else "",
        jax_ms=statistics.median(other for _, other in beside) if beside else math.nan,
        jax_ratio=statistics.median(o / mine for mine, o in beside) if beside else math.nan,
        **rest,
    )


def commit() -> str:
    """Return the commit; files that do not run, such as the table itself, make it no less so."""
    root = Path(qam_lightning.__file__).resolve().parent.parent
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    code = ["--", "qam_lightning", "configs", "benchmarks"]
    found = git_commit() or ""
    if found.endswith("-dirty"):
        unchanged = subprocess.run([*git, "diff", "--quiet", "HEAD", *code]).returncode == 0
        return found.removesuffix("-dirty") if unchanged else found
    return found


def digest(*others: str) -> str:
    """Return a digest of the package, the configurations and this benchmark.

    Args:
        others: names of further files of this folder.
    """
    package = Path(qam_lightning.__file__).resolve().parent
    files = [
        *package.rglob("*.py"),
        *CONFIGS.rglob("*.yaml"),
        *FOLDER.glob("*update*.py"),
        *(FOLDER / name for name in ("workload.py", *others)),
    ]
    content = b"".join(file.read_bytes() for file in sorted(files))
    return hashlib.sha256(content).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
