"""From the scores of calibration images to a decision: thresholds, what they promise, and levels that people can read.

Calibration images are normal ones that the detector has not learnt from, or, where images are few, the detector that
scored each of them. A new normal image is as likely to lie anywhere among them: that alone is what the thresholds rest
on (split conformal prediction; Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005).
"""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from torch import Tensor

from texture_ad.errors import UserError
from texture_ad.parameters import Range, checked

FalseAlarmRate = Annotated[float, Range(0, 0.5, above=True)]

CONFIDENCE = 0.95  # of the interval of a false-alarm rate
UNLIKELY = 0.01  # probability of as many false alarms, below which images are of another kind


class FalseAlarms(NamedTuple):
    """State which share of new normal images lies above a threshold.

    Attributes:
        expected: share, in (0, 1].
        low: end of the interval that holds the share with a probability of CONFIDENCE.
        high: other end.
        images: calibration images that say so.
    """

    expected: float
    low: float
    high: float
    images: int

    def unlikely(self, above: int, images: int) -> bool:
        """Return whether so many of new normal images above the threshold are no chance, if all are of one kind."""
        from scipy.stats import betabinom

        others = (1 - self.expected) * (self.images + 1)
        if others < 0.5:  # all may lie above
            return False
        return bool(betabinom.sf(above - 1, images, self.images + 1 - others, others) < UNLIKELY)

    def __str__(self) -> str:
        return f"{self.expected:.1%} ({CONFIDENCE:.0%} interval {self.low:.1%} to {self.high:.1%})"


@checked
def images_needed(false_alarm_rate: FalseAlarmRate) -> int:
    """Return the number of calibration images from which on a false-alarm rate can be promised.

    Examples:
        >>> images_needed(0.05), images_needed(0.01)
        (19, 99)
    """
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1


@checked
def conformal_threshold(scores: Tensor, false_alarm_rate: FalseAlarmRate) -> float:
    """Return the threshold that new normal images exceed at most at this rate: the ⌈(n + 1)(1 - rate)⌉-th score.

    Fewer images than `images_needed` promise no such rate; of those it is the maximum.

    Args:
        scores: (n,) of calibration images, n at least 1.
        false_alarm_rate: share of normal images above the threshold.

    Raises:
        ParameterError: a rate out of its range.
        UserError: scores that are not finite.
    """
    if not scores.isfinite().all():
        raise UserError("the scores of calibration images are not finite: training diverged; lower the learning rate")
    rank = math.ceil((len(scores) + 1) * (1 - false_alarm_rate) - 1e-9)
    return float(scores.sort().values[min(rank, len(scores)) - 1])


def false_alarms(scores: Tensor, threshold: float) -> FalseAlarms:
    """Return which share of new normal images lies above a threshold, by the scores (n,) of calibration images.

    With m of n scores above it the share has the distribution Beta(m + 1, n - m): exactly where the threshold is one of
    the scores (Vovk, Conditional validity of inductive conformal predictors, 2012), about where it was given.
    """
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    count = len(scores)
    above = int((scores > threshold).sum())
    tail = (1 - CONFIDENCE) / 2
    if above == count:
        return FalseAlarms(1.0, float(betaincinv(count, 1, tail)) if count else 0.0, 1.0, count)
    low, high = betaincinv(above + 1, count - above, (tail, 1 - tail))
    return FalseAlarms((above + 1) / (count + 1), float(low), float(high), count)


@dataclass(frozen=True)
class Decision:
    """State from which scores on an image and a pixel are called anomalous.

    Attributes:
        threshold: an image is called anomalous where its score is greater.
        pixel_threshold: a pixel of such an image is called anomalous where its score is greater; None for a method
            without maps.
        min_area: pixels of the smallest region that counts.
        scale: of scores, by which levels grow away from the threshold.
        false_alarms: what the calibration images say of `threshold`.
        pixel_false_alarms: what they say of `pixel_threshold`: the share of normal images with a pixel above it; None
            for a method without maps.
        false_alarm_rate: that was asked for, None where the threshold itself was.
        pixel_false_alarm_rate: likewise of `pixel_threshold`.
    """

    threshold: float
    pixel_threshold: float | None
    min_area: int
    scale: float
    false_alarms: FalseAlarms
    pixel_false_alarms: FalseAlarms | None
    false_alarm_rate: float | None
    pixel_false_alarm_rate: float | None

    def is_anomalous(self, score: float) -> bool:
        """Return whether an image of this score is called anomalous."""
        return score > self.threshold

    def pixel_threshold_of(self, score: float) -> float:
        """Return the pixel threshold of an image of this score: infinity where it is called normal or there is none."""
        return self.pixel_threshold if self.pixel_threshold is not None and self.is_anomalous(score) else math.inf

    def level(self, score: float) -> float:
        """Return a score on a scale for people: 0.5 at the threshold, rising strictly from 0 to 1.

        x / (1 + |x|) of the distance x from the threshold, in deviations of the calibration scores.
        """
        x = (score - self.threshold) / self.scale
        return 0.5 + 0.5 * x / (1 + abs(x))

    def promise(self) -> str:
        """Return a sentence on the false alarms that are to be expected, and on what is missing for a promise."""
        told = f"of normal images {self.false_alarms} are expected above the threshold"
        if self.pixel_false_alarms is not None:
            told += f", and {self.pixel_false_alarms} to have a pixel above the pixel threshold"
            told += ", which is marked only in images called anomalous"
        told += f"; by {self.false_alarms.images} calibration images"
        if self.images_needed:
            needs = f"a rate of {self.false_alarm_rate:g} needs {self.images_needed} of them"
            told += f"; the threshold is their maximum, since {needs}"
        if self.pixel_images_needed:
            needs = f"a rate of {self.pixel_false_alarm_rate:g} needs {self.pixel_images_needed} of them"
            told += f"; the pixel threshold is their maximum, since {needs}"
        return told

    @property
    def images_needed(self) -> int:
        """Return how many calibration images the false-alarm rate needs where there are fewer, else 0."""
        return _missing(self.false_alarm_rate, self.false_alarms)

    @property
    def pixel_images_needed(self) -> int:
        """Return how many calibration images the pixels' rate needs where there are fewer, else 0."""
        return _missing(self.pixel_false_alarm_rate, self.pixel_false_alarms)


def _missing(rate: float | None, found: FalseAlarms | None) -> int:
    needed = 0 if rate is None else images_needed(rate)
    return needed if found is not None and found.images < needed else 0


def spread_of(scores: Tensor) -> float:
    """Return the scale of `Decision.level`: the deviation of the calibration scores (n,), above 0."""
    if not len(scores):
        return 1.0
    least = max(1e-6, 1e-3 * float(scores.abs().max()))
    return max(float(scores.std(unbiased=False)), least)
