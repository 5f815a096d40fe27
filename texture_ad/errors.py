"""The one exception that users are meant to read."""


class UserError(Exception):
    """Bad input: a single line that says what was wrong, where, and what to do.

    Command lines print it without a traceback and exit with code 2.
    """
