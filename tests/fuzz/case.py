"""What one input of the trial is, and the kinds of inputs a group has."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Must = Literal["be refused", "be accepted", "end well"]


@dataclass
class Case:
    """A command line beside files that were prepared for it.

    Attributes:
        command: arguments of ``qam_lightning.cli.main``; or a name of `harness.CALLS` with its
            arguments.
        about: the mutation, for a person.
        places: a refusal must hold one of these texts: a file, a key or a flag.
        must: what has to happen; ``"end well"`` leaves both open.
        check: called with the case's folder and the output after exit code 0, or one of ``codes``;
            returns what is wrong with the result, None if nothing is.
        codes: exit codes besides 0 that are results.
        writes: patterns of paths, relative to the case's folder, that a refusal may leave behind.
        endless: the input asks for more work than anybody waits for. Still working in little
            memory counts as well.
        environment: variables that are set; None unsets one.
        kind, group, seed, number: how to make it again; filled in by `make`.
    """

    command: list[str]
    about: str
    places: Sequence[str]
    must: Must = "end well"
    check: Callable[[Path, str], str | None] | None = None
    codes: tuple[int, ...] = ()
    writes: Sequence[str] = ()
    endless: bool = False
    environment: dict[str, str | None] = field(default_factory=dict)
    group: str = ""
    kind: str = ""
    seed: int = 0
    number: int = 0

    @property
    def again(self) -> str:
        """The command that repeats this input alone."""
        return f"python -m tests.fuzz --seed {self.seed} --group {self.group} --case {self.number}"


Maker = Callable[[random.Random, Path], Case]
"""``make(rng, folder) -> Case``; ``folder`` holds copies of the sound files and may be changed."""


class Group:
    """The kinds of inputs of one subject."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._makers: dict[str, Maker] = {}
        self._times: dict[str, int] = {}

    def kind(self, times: int = 1) -> Callable[[Maker], Maker]:
        """Add a kind, named like the function; ``times`` in every round."""

        def add(maker: Maker) -> Maker:
            self._makers[maker.__name__] = maker
            self._times[maker.__name__] = times
            return maker

        return add

    @property
    def kinds(self) -> list[str]:
        """The names of all kinds."""
        return list(self._makers)

    @property
    def round(self) -> int:
        """Inputs until every kind has come."""
        return sum(self._times.values())

    def kind_of(self, seed: int, number: int) -> str:
        """Return the kind of an input."""
        turn, place = divmod(number, self.round)
        order = [name for name, times in self._times.items() for _ in range(times)]
        random.Random(f"{seed}/{self.name}/{turn}").shuffle(order)
        return order[place]

    def make(self, seed: int, number: int, folder: Path) -> Case:
        """Change the sound files in ``folder`` into those of an input, and return it."""
        kind = self.kind_of(seed, number)
        case = self._makers[kind](random.Random(f"{seed}/{self.name}/{number}"), folder)
        case.group, case.kind, case.seed, case.number = self.name, kind, seed, number
        return case
