"""What is said of one photograph, the same everywhere: in files, in the watched folder, in the service, in Python."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from texture_ad.data.roi import Roi
from texture_ad.errors import UserError
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.regions import Region, locate_regions
from texture_ad.methods.base import Prediction

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Result:
    """Say what a detector finds in one photograph.

    Attributes:
        name: of the photograph.
        score: of the image, higher is more anomalous; None where it can't be read.
        level: the score on a scale for people, 0.5 at the threshold; None without a score.
        anomalous: whether the score is above the threshold; None without a score.
        size: (H, W) of the photograph in pixels; None where it can't be read.
        regions: of the pixels above the pixel threshold, the highest peak first; none where the score is not above its
            threshold.
        anomaly_map: (h, w) float32 at the detector's resolution, None for a method without maps.
        mask: (H, W) bool in pixels of the photograph, True where a region is; None for a method without maps.
        warning: how the photograph differs from the training images, "" where it doesn't.
        unsure: whether it differs so that neither verdict is given.
        error: why it can't be read, "" where it can.
        path: of its file, None where it came otherwise.
        write_panel: writes its panel to a file, None where maps were not kept or there are none.
        roi: the region of interest, None for whole photographs.
    """

    name: str
    score: float | None = None
    level: float | None = None
    anomalous: bool | None = None
    size: tuple[int, int] | None = None
    regions: tuple[Region, ...] = ()
    anomaly_map: np.ndarray | None = field(default=None, repr=False)
    mask: np.ndarray | None = field(default=None, repr=False)
    warning: str = ""
    unsure: bool = False
    error: str = ""
    path: Path | None = None
    write_panel: Callable[[Path], object] | None = field(default=None, repr=False)
    roi: Roi | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Return "anomalous", "normal" or "unsure", or "" where the photograph can't be read."""
        if self.anomalous is None:
            return ""
        return "unsure" if self.unsure else "anomalous" if self.anomalous else "normal"

    @property
    def area(self) -> float:
        """Return the share of the photograph's pixels that lie in regions, in [0, 1]."""
        return sum(region.area for region in self.regions) / (self.size[0] * self.size[1]) if self.size else 0.0

    def save(self, path: Path | str) -> None:
        """Write its panel, the photograph beside its anomaly map and its regions, as the suffix says.

        Raises:
            UserError: there is nothing to draw.
        """
        if self.write_panel is None:
            reason = self.error or "no map was kept, or its method has none"
            raise UserError(f"{self.name}: can't be drawn: {reason}")
        self.write_panel(Path(path))

    def draw(self) -> "Image":
        """Return its panel as a picture; see `save`."""
        from PIL import Image

        return Image.open(BytesIO(self._png()))

    def _repr_png_(self) -> bytes | None:
        """Return its panel as a notebook shows it, or None where there is none."""
        return None if self.write_panel is None else self._png()

    def _png(self) -> bytes:
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "panel.png")
            return (Path(folder) / "panel.png").read_bytes()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without map and mask."""
        return {
            "name": self.name,
            "label": self.label,
            "anomalous": self.anomalous,
            "score": self.score,
            "level": self.level,
            "size": self.size,
            "regions": [region.to_dict() for region in self.regions],
            "warning": self.warning,
            "error": self.error,
        }


def message(result: Result, decision: Decision) -> dict[str, Any]:
    """Return what other programs are told of a result, as plain values for JSON."""
    return result.to_dict() | {"threshold": decision.threshold}


def decide(
    prediction: Prediction,
    decision: Decision,
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    warnings: Sequence[str],
    roi: Roi | None = None,
) -> Iterator[Result]:
    """Yield the result of each photograph of a batch, one at a time, since masks can be large.

    Args:
        prediction: of B images.
        decision: thresholds and smallest area.
        names: B of them.
        sizes: (H, W) of each photograph, in whose pixels masks and regions are.
        warnings: B of them, "" for none.
        roi: the region of interest, None for whole photographs.
    """
    scores = prediction.scores.tolist()
    for i, (name, score, size, warning) in enumerate(zip(names, scores, sizes, warnings, strict=True)):
        anomaly_map = mask = None
        regions: tuple[Region, ...] = ()
        if prediction.anomaly_maps is not None:
            anomaly_map = prediction.anomaly_maps[i].float().cpu().numpy()
            threshold = decision.pixel_threshold_of(score)
            mask, regions = locate_regions(anomaly_map, size, threshold, decision.min_area, roi)
        yield Result(
            name,
            score,
            decision.level(score),
            decision.is_anomalous(score),
            size,
            regions,
            anomaly_map,
            mask,
            warning,
            roi=roi,
        )
