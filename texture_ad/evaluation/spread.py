"""Summarise one metric over several seeds or textures. Imports nothing heavy."""

from collections.abc import Sequence
from math import isnan, nan
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


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Return the rank of each setting, averaged over textures; NaN for one without a value on some texture.

    Rank 1 has the highest value; equal ones share the mean of their ranks.

    Args:
        values: of each texture, those of the settings.
    """
    ranks = [[nan if isnan(a) else sum(b > a for b in row) + (row.count(a) + 1) / 2 for a in row] for row in values]
    return [fmean(column) for column in zip(*ranks, strict=True)]
