"""Trains every method's policy against an exact Q and compares it with the exact tilt.

``python -m qam_lightning.laboratory --help``
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from qam_lightning.util.arguments import Parser, answered, at_least, closest, path
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import writing
from qam_lightning.util.imports import uncollected

PROGRAM = "python -m qam_lightning.laboratory"


def parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog=prog,
        description="Train every method's policy against an exact Q on problems where "
        "π_β exp(τ Q) is known, and report how near its samples come. Results are added to those "
        "in the folder; what has been trained there with the same effort is not trained again.",
    )
    add = parser.add_argument
    add("--methods", nargs="+", default=[], metavar="NAME", help="default: all there are")
    add("--problems", nargs="+", default=[], metavar="NAME", help="default: all there are")
    add("--seeds", type=at_least(1), default=2, metavar="N", help="default: %(default)s")
    add("--steps", type=at_least(1), metavar="N", help="default: 500, with --quick 100")
    add(
        "--flow_steps",
        type=at_least(1),
        default=50,
        metavar="T",
        help="steps of flows and diffusions; the fewer, the farther QAM is from the tilt; "
        "default: %(default)s",
    )
    add("--out", type=path, default=Path("runs/tilt"), metavar="FOLDER")
    add(
        "--quick",
        action="store_true",
        help="a short look: fewer steps, and 500 samples instead of 2000",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command line, which was called ``prog``; return the exit code."""
    options = parse(arguments, prog)
    return answered(lambda: experiment(options))


def chosen(flag: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the given names, or all known names if none is given.

    Raises:
        UserError: a name is unknown.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {name}: no such name; {closest(name, known)}")
    return list(names) or known


def experiment(options: argparse.Namespace) -> int:
    """Train, measure and report, keeping each result at once; return the exit code."""
    # Imported only now, so that --help and mistakes in the command line answer at once.
    with uncollected():
        import torch
        from rich.console import Console

        from qam_lightning.laboratory import report, training
        from qam_lightning.laboratory.problems import PROBLEMS

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # the networks are too small for several threads
    known = training.recipes()
    methods = chosen("--methods", options.methods, known)
    problems = chosen("--problems", options.problems, PROBLEMS)
    for method in methods:
        training.check(method, known[method], PROBLEMS[problems[0]], options.flow_steps)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is a file; name a folder")
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    default_steps, n = (100, 500) if options.quick else (500, 2000)
    steps = options.steps or default_steps
    effort = training.Effort(steps, options.flow_steps, n)
    entries = report.load(options.out, n)
    console = Console()
    for problem in problems:
        for method in methods:
            there = entries.get((problem, method, effort.flow_steps))
            if there and (there.steps, len(there.samples)) == (steps, options.seeds):
                continue
            start = time.perf_counter()
            values, samples = training.best_of(
                method, known[method], PROBLEMS[problem], effort, options.seeds
            )
            text = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
            entry = report.Entry(problem, method, effort.flow_steps, steps, text, samples)
            entries = report.add(options.out, entry)
            row, seconds = report.measure(entry), time.perf_counter() - start
            console.print(f"{problem:<10} {method:<11} W1 {row.w1:.3f}  {seconds:4.0f} s  {text}")
    print("\n" + report.write_all(options.out, entries, effort.flow_steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
