"""A trial of bad inputs: ``python -m tests.fuzz --cases 3000 --seed 1``."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.case import Group

if TYPE_CHECKING:
    from tests.fuzz.harness import Result

GROUPS = ("configurations", "data", "stores", "runs", "commands")


def group_of(name: str) -> Group:
    """Return a group with all its kinds."""
    group: Group = importlib.import_module(f"tests.fuzz.{name}").GROUP
    return group


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--cases", type=int, default=300, help="inputs in all groups together")
    add("--seed", type=int, default=0)
    add("--group", choices=GROUPS, action="append", help="this one only; may be repeated")
    add("--case", type=int, help="this input of the group only")
    add("--kind", help="inputs of this kind only")
    add("--table", type=Path, help="write the table to this file, in Markdown")
    add("--serve", action="store_true", help="answer lines of group, seed and number, for pytest")
    add("--verbose", action="store_true", help="print every input")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch
    from tests.fuzz.harness import Result, prepare, run, summary, warm

    groups = {name: group_of(name) for name in options.group or GROUPS}
    warm()
    results: list[Result] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base)
        if options.serve:
            for line in sys.stdin:
                name, seed, number = line.split()
                result = run(groups[name], int(seed), int(number), base)
                print(json.dumps([result.problem, result.report()]), flush=True)
            return 0
        for group in groups.values():
            every = range(options.cases // len(groups))
            for number in every if options.case is None else [options.case]:
                if options.kind in (None, group.kind_of(options.seed, number)):
                    results.append(run(group, options.seed, number, base))
                    if options.verbose or options.case is not None:
                        print(results[-1].report(), flush=True)
    if options.case is None and not options.verbose:
        print(summary(results))
    text = table(results, options.seed, options.cases)
    print(text)
    print(f"{time.monotonic() - start:.0f} s")
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    return 1 if any(result.problem for result in results) else 0


def table(results: Sequence["Result"], seed: int, cases: int) -> str:
    """Return the figures of a trial in Markdown."""
    from qam_lightning.util.provenance import versions

    total = Counter(result.case.group for result in results)
    well = Counter(result.case.group for result in results if not result.problem)
    refused = Counter(r.case.group for r in results if not r.problem and r.outcome.code == 2)
    kinds = {group: len({r.case.kind for r in results if r.case.group == group}) for group in total}
    rows = [
        f"| {group} | {kinds[group]} | {total[group]:,} | {refused[group]:,} | "
        f"{well[group] - refused[group]:,} | **{well[group]:,} of {total[group]:,}** |"
        for group in total
    ]
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""# Bad inputs, counted

`python -m tests.fuzz --cases {cases} --seed {seed}`:
**{well.total():,} of {total.total():,}** inputs end well ([what that means](bad_input.md)).

| group | kinds | inputs | refused in one line | a right result | well |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{software}.
"""


if __name__ == "__main__":
    sys.exit(main())
