"""1-NN on deep features: the distance to the nearest normal image.

Nazare, de Mello, Ponti: Are pre-trained CNNs good feature extractors for anomaly detection in surveillance videos?,
2018 (reference [40] of Guo, Song, Ma). As there: features of a pretrained network, each standardised, reduced by PCA,
and the distance to the nearest training feature. The backbone is ours, its deepest layer averaged over the image.
"""

import torch
from torch import Tensor

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches, deviations, image_features, nearest
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Count, checked


@checked
class OneNN(Baseline):
    """Score an image by the distance of its features to the nearest training image's.

    Args:
        backbone: pretrained.
        components: kept by PCA; fewer where there are fewer images or features.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "one_nn"
    uses_backbone = True
    mean: Tensor  # (C,)
    projection: Tensor  # (components, C), standardises and reduces
    normals: Tensor  # (images, C)

    def __init__(self, backbone: Backbone, components: Count):
        super().__init__()
        self.backbone = backbone
        dim = backbone.num_channels[-1]
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("projection", torch.zeros(0, dim))
        self.register_buffer("normals", torch.zeros(0, dim))

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Fit PCA and keep the training images' features."""
        from sklearn.decomposition import PCA

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, batch["image"].to(device)).cpu() for batch in batches])
        mean = x.mean(0)
        scale = deviations(x)
        directions = torch.eye(x.shape[1])
        if len(x) > 1:  # a single image varies in no direction
            pca = PCA(min(self.settings["components"], *x.shape), svd_solver="full").fit(((x - mean) / scale).numpy())
            directions = torch.from_numpy(pca.components_).to(x.dtype)
        self.mean.copy_(mean)
        self.projection = (directions / scale).to(device)
        self.normals = x.to(device)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        found = image_features(self.backbone, images)
        x, normals = ((f - self.mean) @ self.projection.T for f in (found, self.normals))
        return Measurement(nearest(x, normals)[0][:, 0], None)
