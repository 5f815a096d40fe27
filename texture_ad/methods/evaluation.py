"""The test of a finished detector, of any method, by Lightning's loop."""

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from texture_ad.training.distributed import gather


class Test(L.LightningModule):
    """Scores every image of the test folder and keeps what the results are made of."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.parts: list[dict[str, Tensor | None]] = []

    def test_step(self, batch: dict[str, Tensor], _: int) -> None:
        scores, maps, positions = self.detector(batch["image"])
        found = {"score": scores, "map": maps, "positions": positions}
        found |= {k: batch[k] for k in ("label", "mask", "index")}
        self.parts.append({k: v if v is None else gather(v).cpu() for k, v in found.items()})

    def predictions(self) -> dict[str, np.ndarray | None]:
        """Of all n images: score (n,), label (n,), index (n,), mask bool (n, H, W), and map (n, H, W) and positions
        (n, k, 2), None for a method without a map."""
        columns = {k: [part[k] for part in self.parts] for k in self.parts[0]}
        return {k: None if v[0] is None else torch.cat(v).numpy() for k, v in columns.items()}
