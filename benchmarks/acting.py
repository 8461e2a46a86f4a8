"""What acting costs on a CPU: milliseconds per chunk, and environment steps per second.

python benchmarks/acting.py                     all methods, both sizes, and evaluations of QAM
python benchmarks/acting.py --methods qam fql --sizes quickstart --num_envs
python benchmarks/acting.py --methods --num_envs 1 2 4 8 16

Both are measured of the policy as it is and of the compiled one. These take turns, and medians are
reported. A call of the policy gives a chunk to each of its states; its time is divided by their
number. Evaluations simulate as many environments at once as asked for, in as many processes as
there are cores. Networks are of the dimensions of cube-triple or of the environment, and untrained.
Writes <out>.csv (a row per number) and <out>.md, after every method.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from workload import CUBE_TRIPLE, KNOWN, SIZES, build

from qam_lightning.data.spaces import Spaces
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import RolloutPool
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.util.arguments import Parser, answered, at_least, path
from qam_lightning.util.devices import available_cores
from qam_lightning.util.provenance import hardware, versions_line

BATCHES = (1, 8, 50)
ENVIRONMENTS = ("cube-single", "Pendulum-v1")  # with a physics simulator, and without
WARM_UP = 3  # calls that are not timed
MODES = {"eager": False, "compiled": True}


class Row(NamedTuple):
    """One number.

    Attributes:
        what: ``"ms per chunk"`` or ``"steps per second"``.
        name: of the method, or of the environment.
        size: of the networks.
        count: states of a call, or environments at once.
        mode: one of `MODES`.
        value: the number.
        software: versions, with the commit.
        machine: processor, cores and threads.
    """

    what: str
    name: str
    size: str
    count: int
    mode: str
    value: float
    software: str
    machine: str


def by_turns(measured: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Return the median of what each returns; a machine that is busy slows them alike."""
    rounds = [[measure() for measure in measured] for _ in range(repeats)]
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


def chunks(method: Method, count: int, repeats: int) -> list[float]:
    """Return the milliseconds per chunk in each mode, for ``count`` states at once."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((count, method.spaces.obs_dim), np.float32)

    def timed(compiled: bool) -> Callable[[], float]:
        policy, episodes = EpisodePolicy(method, 0, compiled=compiled), list(range(count))

        def call() -> float:
            start = time.perf_counter()
            policy(states, episodes)
            return 1e3 * (time.perf_counter() - start) / count

        for _ in range(WARM_UP):
            call()
        return call

    return by_turns([timed(compiled) for compiled in MODES.values()], repeats)


def steps(env: str, count: int, repeats: int) -> list[float]:
    """Return an evaluation's environment steps per second in each mode."""
    made = make_env(env, 1)
    assert made.observation_space.shape and made.action_space.shape
    spaces = Spaces(
        made.observation_space.shape[0], made.action_space.shape[0], CUBE_TRIPLE.horizon
    )
    method = build("qam", "quickstart", spaces)
    with RolloutPool(env, 1, num_envs=count) as pool:

        def timed(compiled: bool) -> Callable[[], float]:
            def evaluate() -> float:
                policy, start = EpisodePolicy(method, 0, compiled=compiled), time.perf_counter()
                done = sum(episode.length for episode in pool.run(policy, count, seed=0))
                return done / (time.perf_counter() - start)

            evaluate()  # starts the processes, and compiles
            return evaluate

        return by_turns([timed(compiled) for compiled in MODES.values()], repeats)


def measure(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Yield the rows of one method, or of one environment, after another."""
    machine = f"{hardware()}, {available_cores()} cores, torch on {options.threads}"
    software = versions_line()

    def rows(what: str, name: str, size: str, count: int, values: list[float]) -> list[Row]:
        pairs = zip(MODES, values, strict=True)
        return [Row(what, name, size, count, m, x, software, machine) for m, x in pairs]

    for size in options.sizes:
        for name in options.methods:
            method, found = build(name, size), list[Row]()
            for count in BATCHES:
                values = chunks(method, count, options.repeats)
                found += rows("ms per chunk", name, size, count, values)
            yield found
    for env in ENVIRONMENTS if options.num_envs else ():
        found = []
        for count in options.num_envs:
            values = steps(env, count, options.rounds)
            found += rows("steps per second", env, "quickstart", count, values)
        yield found


def write(out: Path, rows: Sequence[Row]) -> None:
    """Write the numbers as CSV, and as markdown tables."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Row._fields)
        table.writerows(rows)
    about = "; ".join(dict.fromkeys(f"{row.machine}; {row.software}" for row in rows))
    lines = ["# What acting costs", "", f"`python benchmarks/acting.py` on {about}.", ""]
    for size in SIZES:
        taken = [row for row in rows if row.what == "ms per chunk" and row.size == size]
        if taken:
            lines += [f"## Milliseconds per chunk, {size} size", "", *by_method(taken), ""]
    if taken := [row for row in rows if row.what == "steps per second"]:
        title = "## Environment steps per second of an evaluation, QAM of the quickstart's size"
        lines += [title, "", *by_environments(taken), ""]
    out.with_suffix(".md").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


def by_method(rows: Sequence[Row]) -> list[str]:
    """Return a table with a line per method, and columns for the states of a call."""
    counts = sorted({row.count for row in rows})
    heads = [f"{mode}, {count} at once" for count in counts for mode in MODES]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in dict.fromkeys(row.name for row in rows):
        values = {(row.count, row.mode): row.value for row in rows if row.name == name}
        cells = [f"{values[count, mode]:.3g}" for count in counts for mode in MODES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def by_environments(rows: Sequence[Row]) -> list[str]:
    """Return a table with a line per environment and number of environments at once."""
    lines = [f"| environment | `num_envs` | {' | '.join(MODES)} |", "|---|---:|---:|---:|"]
    for name, count in dict.fromkeys((row.name, row.count) for row in rows):
        values = {row.mode: row.value for row in rows if (row.name, row.count) == (name, count)}
        cells = " | ".join(f"{values[mode]:.0f}" for mode in MODES)
        lines.append(f"| `{name}` | {count} | {cells} |")
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--methods", nargs="*", default=KNOWN, choices=KNOWN, metavar="METHOD", help="or none")
    add("--sizes", nargs="+", default=[*SIZES], choices=SIZES, metavar="SIZE", help="of networks")
    add(
        "--num_envs", nargs="*", type=at_least(1), default=[1, 2, 4, 8], metavar="N", help="or none"
    )
    add("--repeats", type=at_least(1), default=30, help="timed calls; default: %(default)s")
    add("--rounds", type=at_least(1), default=3, help="timed evaluations; default: %(default)s")
    add("--threads", type=at_least(1), default=1, help="of torch; default: %(default)s, as in eval")
    add("--out", type=path, default=Path("docs/acting_table"), help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    return answered(lambda: benchmark(parse(arguments)))


def benchmark(options: argparse.Namespace) -> int:
    """Measure, print and write; return the exit code."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for found in measure(options):
        rows += found
        write(options.out, rows)
        for row in found:
            print(f"{row.name}, {row.size}, {row.count}, {row.mode}: {row.value:.4g} {row.what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
