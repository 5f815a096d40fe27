"""Ranges in annotations: what passes, what is refused, and by which words."""

from typing import Annotated, Literal

import pytest

from texture_ad.errors import DivergenceError, ParameterError
from texture_ad.parameters import Count, Fraction, Positive, Range, check, checked


@pytest.mark.parametrize(
    ("value", "annotation", "problem"),
    [
        (0, Count, "expected an integer of at least 1"),
        (1.5, Count, "expected an integer of at least 1"),
        (True, Count, "expected an integer of at least 1"),
        ("2", Count, "expected an integer of at least 1"),
        (0, Positive, "expected a number above 0"),
        (float("nan"), Positive, "expected a number above 0"),
        (float("inf"), Positive, "expected a number above 0"),
        (1.1, Fraction, "expected a number from 0 to 1"),
        (0, Annotated[float, Range(0, 1, above=True)], "expected a number above 0 and at most 1"),
        (-1, Count | None, "expected an integer of at least 1"),
        ("c", Literal["a", "b"], "expected one of a, b"),
        ("no", bool, "expected true or false"),
        (1, bool | None, "expected true or false"),
    ],
)
def test_what_is_out_of_its_range_is_named(value, annotation, problem):
    with pytest.raises(ParameterError) as error:
        check("x", value, annotation)
    assert str(error.value) == f"x={value}: {problem}" and error.value.name == "x"


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, Count),
        (1, Positive),
        (0.5, Fraction),
        (None, Count | None),
        ("a", Literal["a"]),
        (False, bool),
        ("any", str),
        (-1, int),
    ],
)
def test_what_is_in_its_range_passes(value, annotation):
    check("x", value, annotation)


def test_functions_and_classes_are_checked_at_every_call():
    @checked
    def double(x: Count, y: float = 0.0) -> float:
        return 2 * x + y

    @checked
    class Parent:
        def __init__(self, size: Count):
            self.size = size

    class Child(Parent):
        pass

    assert double(2) == 4 and double(x=2, y=-1) == 3 and Child(3).size == 3
    for call in (lambda: double(0), lambda: double(x=0), lambda: Parent(0), lambda: Child(size=-1)):
        with pytest.raises(ParameterError, match="expected an integer of at least 1"):
            call()


def test_the_innermost_group_stands():
    error = ParameterError("blocks", 0, "too few")
    assert str(error.within("flow")) == "flow.blocks=0: too few"
    assert str(error.within("flow").within("method")) == "flow.blocks=0: too few"
    rates = DivergenceError("representation", 3, 1e9, "batch.pt", {"lr": 2.0}).within("representation")
    assert str(rates).endswith("lower representation.lr=2")
