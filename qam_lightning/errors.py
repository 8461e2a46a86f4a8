"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in input, configuration or files, worded for the person who can mend it.

    The message is one line and says what was wrong, where, and what to do. Entry points print it as
    ``error: <message>`` to standard error, without a traceback, and exit with code 2.
    """


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise a UserError that names a model hyperparameter, unless ``holds``."""
    if not holds:
        raise UserError(f"model.init_args.{name} is {value}, expected {expected}")
