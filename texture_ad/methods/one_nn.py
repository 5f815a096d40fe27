"""1-NN on deep features: the distance to the nearest normal image.

Nazare, de Mello, Ponti: Are pre-trained CNNs good feature extractors for anomaly detection in surveillance videos?,
2018 (the paper's [40]). As there: features of a pretrained network, each standardised, reduced by PCA, and the distance
to the nearest training feature. The backbone is ours, its deepest layer averaged over the image.
"""

import torch
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.base import Baseline, feature_dims, image_features, nearest
from texture_ad.models.backbone import Backbone


class OneNN(Baseline):
    """
    Args:
        backbone: pretrained.
        size: see Baseline.
        components: kept by PCA, at least 1; fewer where there are fewer images or features.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "one_nn"
    uses_backbone = True

    def __init__(self, backbone: Backbone, size: int = 256, components: int = 64):
        super().__init__(size=size, components=components)
        check_number("method.components", components, 1, whole=True)
        self.backbone = backbone
        dim = feature_dims(backbone)[-1]
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("projection", torch.zeros(0, dim))  # standardises and reduces
        self.register_buffer("normals", torch.zeros(0, dim))

    @torch.no_grad()
    def fit(self, loader) -> None:
        from sklearn.decomposition import PCA

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, batch["image"].to(device)).cpu() for batch in loader])
        mean = x.mean(0)
        scale = x.std(0).clamp(min=1e-6)
        pca = PCA(min(self.settings["components"], *x.shape), svd_solver="full").fit(((x - mean) / scale).numpy())
        self.mean.copy_(mean)
        self.projection = (torch.from_numpy(pca.components_).to(x.dtype) / scale).to(device)
        self.normals = x.to(device)

    def score(self, images: Tensor) -> tuple[Tensor, None]:
        found = image_features(self.backbone, images)
        x, normals = ((f - self.mean) @ self.projection.T for f in (found, self.normals))
        return nearest(x, normals)[0][:, 0], None
