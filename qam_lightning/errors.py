"""The one exception that means "the user can fix this"."""

import errno
from pathlib import Path


class UserError(Exception):
    """A mistake in input, configuration or files, worded for the person who can mend it.

    The message is one line and says what was wrong, where, and what to do. Entry points print it as
    ``error: <message>`` to standard error, without a traceback, and exit with code 2.
    """


def cannot_write(path: Path, error: OSError, option: str) -> UserError:
    """What to say where data cannot be written: why, and what to do.

    Args:
        path: What was to be written.
        error: Why it was not.
        option: Setting that chooses another folder.
    """
    advice = f"choose another folder with --data.{option}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = f"free some space and repeat: it goes on where it stopped; or {advice}"
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise a UserError that names a model hyperparameter, unless ``holds``."""
    if not holds:
        raise UserError(f"model.init_args.{name} is {value}, expected {expected}")
