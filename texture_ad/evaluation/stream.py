"""Watch the scores of a stream: does it still look like the calibration images?

As long as the stream shows normal images of their kind, a score's rank among the calibration scores is uniform in
(0, 1), whatever distribution the scores have. So the control charts need no model of them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from texture_ad.evaluation.calibration import FalseAlarms

BLOCK = 50  # images of a point of the chart of shares
WEIGHT = 0.05  # of a new image in the moving average
WIDTH = 3  # standard deviations of a limit from its centre


class Chart(NamedTuple):
    """Hold a control chart, one number for each of n points.

    Attributes:
        number: of the image in the stream, (n,), counted from 1; of a block its last image.
        value: (n,), what is controlled.
        low: (n,), below which a value is out of control.
        high: (n,), above which it is.
        centre: where normal images would be on average.
    """

    number: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: float

    def out(self) -> np.ndarray:
        """Return which points (n,) are out of control."""
        return (self.value < self.low) | (self.value > self.high)


def ranks(scores: ArrayLike, calibration: ArrayLike) -> np.ndarray:
    """Return where scores (n,) lie among those of m calibration images, in (0, 1); of equal scores in the middle."""
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    scores = np.asarray(scores, dtype=np.float64)
    below = np.searchsorted(ordered, scores, "left")
    upto = np.searchsorted(ordered, scores, "right")
    return ((below + upto) / 2 + 0.5) / (len(ordered) + 1)


def rank_chart(scores: ArrayLike, calibration: ArrayLike, first: int = 1) -> Chart:
    """Chart the exponentially weighted moving average of the scores' ranks: a slow drift shows below the threshold.

    Roberts: Control chart tests based on geometric moving averages, Technometrics 1959. A limit holds the average's own
    deviation, and that of the m calibration scores, which all points share.

    Args:
        scores: (n,) of the stream, in order.
        calibration: scores (m,).
        first: number of the first score in the stream.
    """
    values = ranks(scores, calibration)
    average = np.empty_like(values)
    state = 0.5
    for i, value in enumerate(values):
        state += WEIGHT * (value - state)
        average[i] = state
    steps = np.arange(1, len(values) + 1)
    variance = WEIGHT / (2 - WEIGHT) * (1 - (1 - WEIGHT) ** (2 * steps)) / 12 + 1 / (12 * np.size(calibration))
    reach = WIDTH * np.sqrt(variance)
    return Chart(first - 1 + steps, average, np.maximum(0.5 - reach, 0), np.minimum(0.5 + reach, 1), 0.5)


def share_chart(above: ArrayLike, expected: FalseAlarms, first: int = 1) -> Chart:
    """Chart the share of images above the threshold, in blocks of BLOCK images; the last block may be smaller.

    The limits hold the chance of a block and that of the calibration images: together a beta-binomial distribution.

    Args:
        above: (n,) bool, in order.
        expected: share of normal images, and how many images say so.
        first: number of the first image in the stream.
    """
    from scipy.stats import betabinom, norm

    above = np.asarray(above, dtype=bool)
    starts = np.arange(0, len(above), BLOCK)
    sizes = np.minimum(BLOCK, len(above) - starts)
    shares = np.add.reduceat(above, starts) / sizes if len(above) else np.zeros(0)
    hits = expected.expected * (expected.images + 1)
    misses = max(expected.images + 1 - hits, 1e-9)  # none where the threshold is below all calibration scores
    tail = norm.sf(WIDTH)
    low, high = (betabinom.ppf(q, sizes, hits, misses) / sizes for q in (tail, 1 - tail))
    return Chart(first - 1 + starts + sizes, shares, low, high, expected.expected)
