"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in input, configuration or files, worded for the person who can mend it.

    The message is one line and says what was wrong, where, and what to do. Entry points print it as
    ``error: <message>`` to standard error, without a traceback, and exit with code 2.
    """
