"""An example of a plugin: a position's score is the distance of its features from their mean in training."""

import torch
from torch import Tensor

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import NonNegative, checked


@checked
class MeanDistance(Baseline):
    """Score a position by the distance of its patch feature from the mean of all of training.

    Args:
        backbone: pretrained.
        sigma: of the smoothing of anomaly maps, pixels at a size of 224.
    """

    name = "mean_distance"
    uses_backbone = True
    mean: Tensor  # (C,)

    def __init__(self, backbone: Backbone, sigma: NonNegative):
        super().__init__()
        self.backbone = backbone
        self.sigma = sigma
        self.register_buffer("mean", torch.zeros(sum(backbone.num_channels)))

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Take the mean of the patch features of all training images."""
        means = [self.backbone.extract(batch["image"].to(self.device)).mean((2, 3)) for batch in batches]
        self.mean.copy_(torch.cat(means).mean(0))

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W): a patch map of distances, (B, 1, h, w)."""
        distances = (self.backbone.extract(images) - self.mean[:, None, None]).norm(dim=1, keepdim=True)
        return Measurement(None, distances)
