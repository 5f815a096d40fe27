"""A detector as modules that torch.export can trace: nothing in them looks at a value."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from texture_ad.data.geometry import Shape
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.localization import separate_positions
from texture_ad.methods.base import AnomalyDetector, Measurement
from texture_ad.models.resizing import linear_weights

MAX_BATCH = 4096  # images
SIDES = (4, 32768)  # pixels of an image's side


def byte_weights(inside: int, outside: int) -> Tensor:
    """Return `linear_weights` as torchvision's resizing of bytes has them.

    They are whole multiples of a power of a half, the largest of them below 2^15 of it: halves come up at common
    ratios, and would else be rounded otherwise.
    """
    weights = linear_weights(inside, outside)
    units = 2.0 ** torch.arange(23)
    unit = torch.where((weights.max() * units + 0.5).floor() < 2**15, units, 1).max()
    return (weights * unit + 0.5).floor() / unit


def resize_images(images: Tensor, size: Shape) -> Tensor:
    """Return images, uint8 (B, 3, H, W), at another size, uint8 (B, 3, h, w), as `data.images.resize` does.

    Where images become many times smaller, sums have more digits than a float, and a few pixels in 100 000 differ by 1.
    """
    height, width = size
    rows = _rounded(images.float() @ byte_weights(images.shape[3], width).T)
    return _rounded(byte_weights(images.shape[2], height) @ rows).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    """Return the nearest bytes, halves upwards, as in torchvision's resizing of bytes."""
    return (values + 0.5).floor().clamp(0, 255)


class MeasuringGraph(nn.Module):
    """Turn images of the detector's size into what it measures of them: scores, part maps, or both."""

    def __init__(self, detector: AnomalyDetector):
        super().__init__()
        self.detector = detector

    @staticmethod
    def names(measured: Measurement) -> tuple[str, ...]:
        """Return the names of the outputs of a detector that measures this."""
        return tuple(name for name, value in measured._asdict().items() if value is not None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the scores (B,) and parts (B, P, h, w) that there are of images uint8 (B, 3, H, W)."""
        return tuple(value for value in self.detector.measure(images) if value is not None)


class DecidingGraph(nn.Module):
    """Turn photographs of any size into scores and labels, and of a method with maps into anomaly maps and masks.

    Args:
        detector: its own `geometry` says to which size photographs are brought.
        decision: thresholds of images and pixels.
    """

    def __init__(self, detector: AnomalyDetector, decision: Decision):
        super().__init__()
        self.detector = detector
        self.size = detector.geometry.size
        self.decision = decision

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return scores (B,) and labels (B,), and maps and masks (B, h, w), of photographs uint8 (B, 3, H, W)."""
        measured = self.detector.measure(self.detector.fill(resize_images(images, self.size)))
        scores, maps, *_ = self.detector.predict(measured, self.size, separate_positions)
        return tuple(decided(scores, maps, self.decision).values())


def decided(scores: Tensor, maps: Tensor | None, decision: Decision) -> dict[str, Tensor]:
    """Return scores (B,) and labels (B,), and of a method with maps (B, h, w) these and masks, by their names."""
    labels = (scores > decision.threshold).to(torch.uint8)
    found = {"scores": scores, "labels": labels}
    if maps is None:
        return found
    threshold = float("nan") if decision.pixel_threshold is None else decision.pixel_threshold
    return found | {"anomaly_maps": maps, "masks": labels[:, None, None] * (maps > threshold)}


@torch.no_grad()
def trace(graph: MeasuringGraph | DecidingGraph, size: Sequence[int]) -> ExportedProgram:
    """Return a graph as a program for batches of 1 to MAX_BATCH images.

    Args:
        graph: of a detector on the CPU. A DecidingGraph takes images of any size.
        size: (H, W) of the example's images in pixels.
    """
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, *size, dtype=torch.uint8)
    graph(example)  # a region of interest finds what it needs once, outside of the graph
    dynamic = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if isinstance(graph, DecidingGraph):
        low, high = SIDES
        dynamic |= {2: Dim("height", min=low, max=high), 3: Dim("width", min=low, max=high)}
    return torch.export.export(graph.eval(), (example,), dynamic_shapes=(dynamic,))
