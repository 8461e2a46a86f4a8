"""What small command lines share: argument types, and one line for every mistake."""

import argparse
import difflib
import os
import signal
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


def _by_name(error: ArgumentError) -> str:
    return f"{error.name} {error.problem}"


def answered(command: Callable[[], int], spoken: Callable[[ArgumentError], str] = _by_name) -> int:
    """Run a command and answer every mistake with one line.

    Args:
        command: what to do; returns the exit code.
        spoken: words an argument that was refused in terms of the command line.

    Returns:
        The command's exit code; 2 for a user's mistake or an unusable file, 130 on Ctrl-C, 141 if
        the reader of the output has left.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output has left, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ArgumentError as error:
        message = spoken(error)
    except (UserError, OSError) as error:  # a full disk, a folder without permission
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"error: {message}", file=sys.stderr)
    return 2


def closest(name: str, known: Sequence[str], count: int = 1) -> str:
    """Return a hint: the most similar names, or all of them if none is similar."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"
