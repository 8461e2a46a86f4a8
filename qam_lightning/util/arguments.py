"""What small command lines share: argument types, and one line for every mistake."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qam_lightning.util.errors import ArgumentError, UserError


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def at_least(bound: int) -> Any:
    """Return an argument type: integers from ``bound`` on."""

    def integer(text: str) -> int:
        value = int(text)
        if value < bound:
            raise argparse.ArgumentTypeError(f"expected at least {bound}, found {value}")
        return value

    return integer


def run(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command; return the exit code: 0, 2 for a user's mistake, 130 on Ctrl-C."""
    try:
        command(options)
    except ArgumentError as error:
        print(f"error: {error.name} {error.problem}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def closest(name: str, known: Sequence[str], count: int = 1) -> str:
    """Return a hint: the most similar names, or all of them if none is similar."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
