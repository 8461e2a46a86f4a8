import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.__main__ import group_of

SEED = 0

ROUND = {"configurations": 60, "data": 58, "stores": 60, "runs": 67, "commands": 60}
"""Inputs of the long suite."""

SHARE = 2
"""The default suite has one input of every second kind."""


@pytest.fixture(scope="session")
def ends_well() -> Iterator[Callable[[str, int], None]]:
    """``ends_well(group, number)`` runs an input in a process of its own, see `harness`."""
    command = [sys.executable, "-m", "tests.fuzz", "--serve"]
    folder = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=folder, env=environment
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(group: str, number: int) -> None:
            print(group, SEED, number, file=server.stdin, flush=True)
            problem, report = json.loads(server.stdout.readline())
            assert problem is None, report

        yield run
        server.stdin.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with the arguments ``group`` and ``number`` all inputs of all groups."""
    if "number" in metafunc.fixturenames:
        metafunc.parametrize(("group", "number"), [case for name in ROUND for case in cases(name)])


def cases(name: str) -> list[Any]:
    """Return the inputs of a group, all but a few for the long suite alone."""
    group = group_of(name)
    kinds = [group.kind_of(SEED, number) for number in range(ROUND[name])]
    assert {*kinds} == {*group.kinds}
    some = group.kinds[::SHARE]
    return [
        pytest.param(
            name,
            number,
            id=f"{name}-{number}-{kind}",
            marks=[] if kind in some and kind not in kinds[:number] else [pytest.mark.slow],
        )
        for number, kind in enumerate(kinds)
    ]
