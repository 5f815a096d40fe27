"""The exceptions that users are meant to read: one line that says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a question that names the known name most like the one given, or nothing if none is like it.

    Examples:
        >>> did_you_mean("metod", ["data", "method"])
        'did you mean method? '
    """
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f"did you mean {close[0]}? " if close else ""


def first_line(error: BaseException) -> str:
    r"""Return what an error says first, in one line that is not long.

    Examples:
        >>> first_line(RuntimeError("Error(s) in loading state_dict for Chain:\n\tMissing key(s)"))
        'Missing key(s)'
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    # What torch says first of a state dict that doesn't fit is only that more follows.
    return shorten(more[0] if more and first.endswith(":") else first, 160, placeholder=" …")


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
        """Return the same error with a group's name in front of the parameter's; the innermost group stands."""
        return self if "." in self.name else ParameterError(f"{group}.{self.name}", self.value, self.problem)


class DivergenceError(UserError):
    """Report a loss that is not finite or far too large.

    Args:
        part: what was trained.
        step: of the optimiser.
        loss: its value.
        path: of the batch that was saved.
        rates: name of each learning rate to its value.
    """

    def __init__(self, part: str, step: int, loss: float, path: Path, rates: Mapping[str, float]):
        super().__init__(part, step, loss, path, rates)
        self.part = part
        self.step = step
        self.loss = loss
        self.path = path
        self.rates = rates

    def __str__(self) -> str:
        rates = " or ".join(f"{name}={value:g}" for name, value in self.rates.items())
        return f"stage 1, step {self.step}: the loss is {self.loss:g}; the batch is saved in {self.path}; lower {rates}"

    def within(self, group: str) -> "DivergenceError":
        """Return the same error with the group's name in front of the learning rates'."""
        rates = {f"{group}.{name}": value for name, value in self.rates.items()}
        return DivergenceError(self.part, self.step, self.loss, self.path, rates)
