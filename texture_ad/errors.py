"""The exceptions that users are meant to read: one line that says what was wrong, where, and what to do."""


class UserError(Exception):
    """Report bad input.

    Command lines print it as a single line without a traceback and exit with code 2.
    """


class ParameterError(UserError):
    """Report a parameter that is out of its range, by its own name.

    A class knows its parameters, not who sets them. Whoever does (the command line: a group of the configuration) puts
    its name in front with `within` and may add advice.

    Args:
        name: of the parameter.
        value: that it was given.
        problem: what is wrong, and what was expected.
    """

    def __init__(self, name: str, value: object, problem: str):
        super().__init__(name, value, problem)
        self.name = name
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}={self.value}: {self.problem}"

    def within(self, group: str) -> "ParameterError":
        """Return the same error with the group's name in front of the parameter's."""
        return ParameterError(f"{group}.{self.name}" if group else self.name, self.value, self.problem)


def check_number(key, value, least, most=None, *, above=False, whole=False):
    """Check one number (on its way out: ranges move to the annotations of `texture_ad.parameters`)."""
    from typing import Annotated

    from texture_ad.parameters import Range, check

    check(key, value, Annotated[int if whole else float, Range(least, most, above)])
