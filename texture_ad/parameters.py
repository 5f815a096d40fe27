"""Ranges of parameters as part of their annotations, and the one place that checks them.

Examples:
    >>> @checked
    ... class Flow:
    ...     def __init__(self, blocks: Count, clamp: Positive, mode: Literal["fast", "exact"]): ...
    >>> Flow(0, 2.0, "fast")
    Traceback (most recent call last):
    texture_ad.errors.ParameterError: blocks=0: expected an integer of at least 1
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from texture_ad.errors import ParameterError

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """State which numbers a parameter may have; used in `Annotated[int, Range(1)]`.

    Args:
        least: smallest value.
        most: largest value, None for no limit.
        above: whether `least` itself is out of the range.
    """

    least: float
    most: float | None = None
    above: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.least if self.above else value >= self.least
        return over and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"above {self.least:.15g}" if self.above else f"of at least {self.least:.15g}"
        if self.above:
            return f"above {self.least:.15g} and at most {self.most:.15g}"
        return f"from {self.least:.15g} to {self.most:.15g}"


Count = Annotated[int, Range(1)]
Size = Annotated[int, Range(32, 8192)]  # side of an image in pixels
NonNegativeInt = Annotated[int, Range(0)]
Score = Annotated[float, Range(-3e38, 3e38)]  # which float32 holds
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def check(name: str, value: object, annotation: Any) -> None:
    """Check one value against `Annotated[int | float, Range]`, `Literal[...]`, `bool`, or one of them or None.

    Other annotations are not checked. Only finite numbers pass as numbers; True and False are none.

    Raises:
        ParameterError: the value is out of the range; names the parameter, the value and the range.
    """
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        options = get_args(annotation)
        if value is None and type(None) in options:
            return
        (annotation, *more) = [option for option in options if option is not type(None)]
        if not more:
            check(name, value, annotation)
    elif annotation is bool:  # a command line's "no" is a text, and so would count as true
        if not isinstance(value, bool):
            raise ParameterError(name, value, "expected true or false")
    elif origin is Literal:
        allowed = get_args(annotation)
        if value not in allowed:
            raise ParameterError(name, value, f"expected one of {', '.join(map(str, allowed))}")
    elif origin is Annotated:
        kind, *details = get_args(annotation)
        for interval in (detail for detail in details if isinstance(detail, Range)):
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value in interval):  # type: ignore[arg-type, operator]
                raise ParameterError(name, value, f"expected {'an integer' if kind is int else 'a number'} {interval}")


def takes_text(annotation: Any) -> bool:
    """Return whether a parameter takes a text, and no number.

    Examples:
        >>> takes_text(str | None), takes_text(str | int), takes_text(Literal["fast"])
        (True, False, False)
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return str in kinds and int not in kinds


def checked(target: T) -> T:
    """Check the arguments of a function, or of a class's `__init__`, against their annotations at every call.

    An object remembers what it was made with: see `arguments_of`.

    Raises:
        ParameterError: at a call, the first argument that is out of its range.
    """
    if inspect.isclass(target):
        setattr(target, "__init__", checked(_remembering(target.__init__)))  # noqa: B010, mypy refuses to assign it
        return target
    signature = inspect.signature(target)
    annotations = get_type_hints(target, include_extras=True)

    @wraps(target)
    def checking(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in annotations:
                check(name, value, annotations[name])
        return target(*args, **kwargs)

    return checking  # type: ignore[return-value]


def _remembering(initialise: Callable[..., None]) -> Callable[..., None]:
    """Return an `__init__` that notes its arguments before anything else happens."""
    signature = inspect.signature(initialise)

    @wraps(initialise)
    def remember(self: object, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        # Past the object's own __setattr__, which in a torch module does not work yet.
        self.__dict__["_arguments"] = dict(list(bound.arguments.items())[1:])
        initialise(self, *args, **kwargs)

    return remember


def arguments_of(made: object) -> dict[str, Any]:
    """Return the arguments that an object of a `checked` class was made with, by name."""
    return dict(made.__dict__["_arguments"])
