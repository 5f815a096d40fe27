"""The evaluation of a finished detector, of any method, by Lightning's loop."""

from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from texture_ad.evaluation.metrics import Predictions
from texture_ad.methods.base import AnomalyDetector
from texture_ad.training.distributed import gather


class Evaluation(L.LightningModule):
    """Score every test image and keep what the results are made of.

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
        prediction = self.detector(batch["image"])
        self.grid = prediction.grid
        found = {
            "score": prediction.scores,
            "anomaly_maps": prediction.anomaly_maps,
            "positions": prediction.positions,
        }
        found |= {name: batch[name] for name in ("label", "mask", "index")}
        self._batches.append({name: value if value is None else gather(value).cpu() for name, value in found.items()})

    def predictions(self) -> Predictions:
        """Return what was found of all test images."""
        found: dict[str, Any] = {"grid": self.grid}
        for name in self._batches[0]:
            values = [batch[name] for batch in self._batches]
            found[name] = None if values[0] is None else torch.cat(values).numpy()  # type: ignore[arg-type]
        return cast(Predictions, found)
