"""What small command lines share: argument types, and one line for every mistake."""

import argparse
import difflib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from qam_lightning.util.errors import ArgumentError, UserError, shown
from qam_lightning.util.output import tolerant


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_one_line(message)}; see --help\n")


def at_least(bound: int) -> Any:
    """Return an argument type: integers from ``bound`` on."""

    def integer(text: str) -> int:
        value = int(text)
        if value < bound:
            raise argparse.ArgumentTypeError(f"expected at least {bound}, found {value}")
        if value >= 2**63:
            raise argparse.ArgumentTypeError(f"{shown(value)} does not fit into 64 bits")
        return value

    return integer


def path(text: str) -> Path:
    """Return an argument's path, with the home folder for ``~``.

    Raises:
        argparse.ArgumentTypeError: it is no path, or ``~name`` names nobody of this machine.
    """
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a file or folder, found '{text}'")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no user of {text}; is ./{text} meant?")
    return Path(found)


def takes_imports(parser: argparse.ArgumentParser) -> None:
    """Let a command line take ``--import MODULE``, as ``modules``."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module first: one with a method or an environment of your own; a checkpoint "
        "imports nothing by itself; may be repeated",
    )


def _by_name(error: ArgumentError) -> str:
    return f"{error.name} {error.problem}"


def answered(command: Callable[[], int], spoken: Callable[[ArgumentError], str] = _by_name) -> int:
    """Run a command and answer every mistake with one line.

    Output that cannot be written ends nothing, see `output`.

    Args:
        command: what to do; returns the exit code.
        spoken: words an argument that was refused in terms of the command line.

    Returns:
        The command's exit code; 2 for a user's mistake or an unusable file, 1 for an exception that
        nobody foresaw, 130 on Ctrl-C.

    Raises:
        SystemExit: ``--help`` and the like have printed; 141 if the reader of the output has left,
            2 if the output could not be written.
    """
    with tolerant() as output:
        try:
            code = command()
            output.flush()
            if output.failure and not (output.told or isinstance(output.failure, BrokenPipeError)):
                output.told = True
                _tell(f"warning: standard output: {_why(output.failure)}; what it lacks is lost")
            return code
        except SystemExit as done:  # the output is all that such a command has to give
            output.flush()
            if not done.code and isinstance(output.failure, BrokenPipeError):
                raise SystemExit(128 + signal.SIGPIPE) from None
            if not done.code and output.failure:
                _tell(f"error: standard output: {_why(output.failure)}")
                raise SystemExit(2) from None
            raise
        except KeyboardInterrupt:
            _tell("interrupted")
            return 128 + signal.SIGINT
        except Exception as error:
            code, message = _answer(error, spoken)
            _tell(f"error: {message}")
            return code


def _answer(error: Exception, spoken: Callable[[ArgumentError], str]) -> tuple[int, str]:
    """Return the exit code and the words for an exception."""
    if isinstance(error, ArgumentError):
        return 2, spoken(error)
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, OSError):  # a full disk, a folder without permission
        where = f"{shown(error.filename, 300)}: " if error.filename else ""
        return 2, f"{where}{_why(error)}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's
        found = str(error).strip().partition("\n")[0].rstrip(".")
        advice = "lower data.batch_size, model.width or the number of environments"
        return 2, f"out of memory{f': {found}' if found else ''}; {advice}"
    return 1, unforeseen(error)


def unforeseen(error: Exception) -> str:
    """Keep the traceback of an exception that nobody foresaw; return the line that says so."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    what = f"unforeseen: {type(error).__name__}{f': {shown(first, 300)}' if first else ''}"
    name = f"qam-error-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    for path in (Path(name), Path(tempfile.gettempdir()) / name):
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{' '.join(sys.argv)}\n\n")
                traceback.print_exception(error, file=file)
        except OSError:
            continue
        return f"{what}; the traceback is in {path}; please report it"
    return f"{what}; no folder could take its traceback; please report it"


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _one_line(message: str) -> str:
    return shown(message, limit=2000)


def _tell(message: str) -> None:
    print(_one_line(message), file=sys.stderr)


def closest(name: str, known: Sequence[str], count: int = 1) -> str:
    """Return a hint: the most similar names, or all of them if none is similar."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"


def spelled(value: float | str) -> str:
    """Return a setting's value as a person writes it: ``0.5``, ``etd2``."""
    return value if isinstance(value, str) else f"{value:g}"
