"""The exceptions that mean "the user can fix this".

Messages are one line and follow one grammar: what, what was found, what was expected, what to do.
Library code speaks of arguments; the command line translates them to its keys.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """A mistake in input, configuration or files, worded for the person who can mend it.

    Entry points print ``error: <message>`` to standard error, without a traceback, and exit with
    code 2.
    """


class ArgumentError(UserError):
    """An argument whose value a class or a function refuses.

    Args:
        owner: the class or function that takes the argument.
        name: the argument.
        problem: what was found and what is expected, e.g. ``"is -1, expected at least 0"``.
    """

    def __init__(self, owner: type | str, name: str, problem: str) -> None:
        self.owner, self.name, self.problem = owner, name, problem
        spelled = owner if isinstance(owner, str) else owner.__name__
        super().__init__(f"{spelled}: {name} {problem}")

    def __reduce__(self) -> tuple[type, tuple[type | str, str, str]]:
        """Tell how to send it to another process: an exception's own way knows one argument."""
        return type(self), (self.owner, self.name, self.problem)


def shown(value: object, limit: int = 200) -> str:
    """Return a user's text for a message: on one line, and not too long.

    Args:
        value: text, or anything else as `str` spells it.
        limit: characters that are kept; ``…`` stands for the rest.

    Returns:
        The text with line breaks, NUL and everything else that cannot be printed escaped as in a
        string of Python's.
    """
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a bottomless list
        text = f"<{type(value).__name__}>"
    if len(text) > limit:
        text = f"{text[:limit]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: object) -> str:
    """Return what an error of another library says, or its class: on one line, not too long.

    Args:
        error: the exception, or its text.
    """
    return shown(" ".join(str(error).split()) or type(error).__name__, 400)


@contextlib.contextmanager
def explaining(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever another library raises into a `UserError`.

    For libraries that read files from elsewhere: their exceptions have no common class.

    Args:
        problem: what was found, before the library's reason.
        advice: what to do, after it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        end = f"; {advice}" if advice else ""
        raise UserError(f"{problem}: {reason_of(error)}{end}") from None


@contextlib.contextmanager
def reading(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an `OSError` into a `UserError` that names ``path``, and ends with ``advice``."""
    try:
        yield
    except OSError as error:
        end = f"; {advice}" if advice else ""
        raise UserError(f"{path}: cannot be read: {error.strerror or error}{end}") from None


def require(holds: bool, owner: type | str, name: str, value: object, expected: str) -> None:
    """Raise an `ArgumentError` unless ``holds``."""
    if not holds:
        raise ArgumentError(owner, name, f"is {shown(value)}, expected {expected}")
