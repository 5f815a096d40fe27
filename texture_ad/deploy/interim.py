"""What today's detectors lack of the interface of methods/base.py; goes when they have it.

`grid(detector, prediction)` becomes `prediction.grid`, `recorded(detector, name)` `detector.provenance.name`,
`graph(detector)` `detector.graph()`, and `AnomalyDetector` is the class of that name.
"""

from typing import Any

from torch import Tensor, nn

from texture_ad.errors import UserError
from texture_ad.methods.fusion.detector import Detector

AnomalyDetector = Any
Prediction = Any


def grid(detector: AnomalyDetector, prediction: Prediction) -> tuple[int, int]:
    """Return the size (h, w) of the patch map that a prediction's positions refer to."""
    return prediction.grid if hasattr(prediction, "grid") else detector.grid()


def recorded(detector: AnomalyDetector, name: str) -> Any:
    """Return what the detector's file records of its training under this name, or None."""
    return detector.meta.get(name)


class _Graph(nn.Module):
    """A fusion detector from images to scores and anomaly maps, without checks that look at a value."""

    def __init__(self, detector: AnomalyDetector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the scores (B,) and anomaly maps (B, H, W) of images, uint8 (B, 3, H, W)."""
        return self.detector.scores_and_maps(images)[:2]


def graph(detector: AnomalyDetector) -> nn.Module:
    """Return the detector as a module that can be exported.

    Raises:
        UserError: a baseline.
    """
    if not isinstance(detector, Detector):
        raise UserError(f"detector: of method {detector.name}; only the fusion's can be exported")
    return _Graph(detector).eval()
