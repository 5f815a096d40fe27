"""Summarise one metric over several seeds. Imports nothing heavy."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """Hold the mean and the sample standard deviation of a metric, and of how many runs they are."""

    mean: float
    deviation: float | None  # None for a single run
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the sample standard deviation of one value for each seed, at least one."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))
