"""CutPaste: the baseline of Guo, Song, Ma in their Table 1.

Li, Sohn, Yoon, Pfister: CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021 (their
[20]). As there: a network tells normal images from pasted ones (binary, scar or 3-way), its learning rate under a
cosine, then a Gaussian density of the averaged deepest layer scores images, and GradCAM of that score makes the map.
The backbone is ours, pretrained, its batch normalisation fixed, and it trains for far fewer steps: by AdamW, since SGD
with the 0.03 given there diverges on it.
"""

from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from texture_ad.data.cutpaste import TASKS, pretext_batch
from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches, image_features
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Count, NonNegative, Positive, checked


@checked
class CutPaste(Baseline, L.LightningModule):
    """Score an image by a Gaussian density of features that tell normal images from pasted ones.

    Args:
        backbone: pretrained.
        task: which pasted images the network tells from normal ones.
        lr: of AdamW, peak of a cosine schedule.
        weight_decay: of AdamW.
        epochs: passes over the training images.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "cutpaste"
    uses_backbone = True
    sigma = 4.0
    mean: Tensor  # (C,)
    precision: Tensor  # (C, C)

    def __init__(
        self,
        backbone: Backbone,
        task: Literal["binary", "scar", "3way"],
        lr: Positive,
        weight_decay: NonNegative,
        epochs: Count,
    ):
        super().__init__()
        self.backbone = backbone
        dim = backbone.num_channels[-1]
        classes = 1 + len(TASKS[task])
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("precision", torch.eye(dim))

    def train(self, mode: bool = True) -> "CutPaste":
        """Set the mode of all but the backbone, whose batch normalisation is fixed."""
        super().train(mode)
        self.backbone.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW and its cosine schedule."""
        s = self.settings
        tuned = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(tuned, s["lr"], weight_decay=s["weight_decay"])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the cross-entropy of telling normal images from pasted ones."""
        images, classes, _masks = pretext_batch(batch["image"].float() / 255, self.settings["task"])
        loss = F.cross_entropy(self.head(image_features(self.backbone, images * 255)), classes)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Fit the Gaussian density of the training images' features."""
        from sklearn.covariance import LedoitWolf

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, b["image"].to(device)) for b in batches]).cpu().numpy()
        self.mean.copy_(torch.from_numpy(x.mean(0)))
        if len(x) > 1:  # of a single image the precision would be 0, and with it every score
            # Shrunk, for there may be fewer images than features.
            self.precision.copy_(torch.from_numpy(LedoitWolf().fit(x).precision_))

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        deepest = self.backbone.in_slices(lambda part: self.backbone(part)[-1].float(), images)
        off = deepest.mean((2, 3)) - self.mean
        gradient = off @ self.precision
        scores = (gradient * off).sum(1) / 2
        # GradCAM: the score's gradient with respect to each channel's mean weighs the channel's activations.
        maps = torch.einsum("bc,bchw->bhw", gradient, deepest - self.mean[:, None, None]).relu()
        return Measurement(scores, maps[:, None])
