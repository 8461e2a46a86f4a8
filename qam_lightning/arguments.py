"""What the small command lines share: mistakes are answered in one line."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from qam_lightning.util.errors import UserError


class Parser(argparse.ArgumentParser):
    """Answers mistakes with one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def at_least(bound: int) -> Any:
    """Give an argument type: integers from ``bound`` on."""

    def integer(text: str) -> int:
        value = int(text)
        if value < bound:
            raise argparse.ArgumentTypeError(f"expected at least {bound}, found {value}")
        return value

    return integer


def run(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake of the user's, 130 on Ctrl-C."""
    try:
        command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
