"""The threshold of image scores, from calibration images: held-out normal ones."""

from typing import Annotated

from torch import Tensor

from texture_ad.errors import UserError
from texture_ad.parameters import Range, checked


@checked
def threshold(scores: Tensor, quantile: Annotated[float, Range(0, 1, above=True)]) -> Tensor:
    """Return the quantile () of the calibration images' scores (N,), above which an image is called anomalous.

    Raises:
        ParameterError: a quantile outside (0, 1].
        UserError: scores that are not finite.
    """
    if not scores.isfinite().all():
        raise UserError("the scores of calibration images are not finite: training diverged; lower the learning rate")
    return scores.quantile(quantile)
