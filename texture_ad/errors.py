"""The one exception that users are meant to read, and the check of a number's range that raises it."""

import math


class UserError(Exception):
    """Bad input: a single line that says what was wrong, where, and what to do.

    Command lines print it without a traceback and exit with code 2.
    """


def check_number(
    key: str, value: object, least: float, most: float | None = None, *, above: bool = False, whole: bool = False
) -> None:
    """Holds a parameter to its range.

    Args:
        key: the parameter's name as it is given on the command line.
        value: anything; only finite numbers pass, and True and False are none.
        least, most: the range, both ends included.
        above: `least` itself is outside.
        whole: only integers pass.

    Raises:
        UserError: names the key, the value and the allowed range.

    Example:
        >>> check_number("dictionary.atoms", 0, 1, whole=True)
        Traceback (most recent call last):
        texture_ad.errors.UserError: dictionary.atoms=0: expected an integer of at least 1
    """
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if right and (value > least or (value == least and not above)) and (most is None or value <= most):
        return
    if most is None:
        bounds = f"above {least:g}" if above else f"of at least {least:g}"
    else:
        bounds = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    raise UserError(f"{key}={value}: expected {'an integer' if whole else 'a number'} {bounds}")
