"""The evaluation of a finished detector, of any method, by Lightning's loop."""

from collections.abc import Sequence
from typing import Any, cast, overload

import lightning as L
import numpy as np
import torch
from torch import Tensor

from texture_ad.evaluation.metrics import Predictions
from texture_ad.methods.base import AnomalyDetector, Measurement, Prediction
from texture_ad.training.distributed import gather


class AnomalyMaps(Sequence[np.ndarray]):
    """Give anomaly maps (H, W) one by one, without holding them all.

    Args:
        detector: that made them.
        rows: of n images, the maps (n, H, W), or what was measured of them (n, P, h, w), which becomes a map when it is
            asked for.
    """

    def __init__(self, detector: AnomalyDetector, rows: Tensor):
        self.detector = detector
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, row: slice) -> "AnomalyMaps": ...

    @torch.no_grad()
    def __getitem__(self, row: int | slice) -> "np.ndarray | AnomalyMaps":
        """Return the map of an image, or some of them."""
        found = self.rows[row]
        if isinstance(row, slice):
            return AnomalyMaps(self.detector, found)
        if found.ndim == 2:
            return found.numpy()
        measured = Measurement(None, found[None].to(self.detector.device))
        maps = self.detector.predict(measured, self.detector.geometry.size).anomaly_maps
        assert maps is not None
        return maps[0].cpu().numpy()


class Evaluation(L.LightningModule):
    """Score every test image and keep what the results are made of: of maps, what makes them where that is smaller.

    Args:
        detector: fitted and calibrated.
    """

    def __init__(self, detector: AnomalyDetector):
        super().__init__()
        self.detector = detector
        self.grid: tuple[int, int] | None = None
        self._batches: list[dict[str, Tensor | None]] = []

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Score a batch."""
        measured = self.detector.measure_all(batch["image"])
        prediction = Prediction.cat([self.detector.conclude(*one) for one in measured])
        self.grid = prediction.grid
        maps = prediction.anomaly_maps
        parts = None if self.detector.geometry.tiled else measured[0][0].parts
        if maps is not None and parts is not None and parts.numel() < maps.numel():
            maps = parts
        found = {"score": prediction.scores, "anomaly_maps": maps, "positions": prediction.positions}
        found |= {name: batch[name] for name in ("label", "index")}
        self._batches.append({name: value if value is None else gather(value).cpu() for name, value in found.items()})

    def predictions(self) -> Predictions:
        """Return what was found of all test images."""
        found: dict[str, Any] = {"grid": self.grid}
        for name in self._batches[0]:
            values = [batch[name] for batch in self._batches]
            found[name] = None if values[0] is None else torch.cat(values).numpy()  # type: ignore[arg-type]
        if found["anomaly_maps"] is not None:
            found["anomaly_maps"] = AnomalyMaps(self.detector, torch.from_numpy(found["anomaly_maps"]))
        return cast(Predictions, found)
