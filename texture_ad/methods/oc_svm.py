"""A one-class SVM on deep features.

Andrews, Tanay, Morton, Griffin: Transfer representation-learning for anomaly detection, ICML workshop 2016 (the
paper's [38]): features of a pretrained network and a one-class SVM (Schoelkopf et al., 2001) with a Gaussian kernel.
The backbone is ours, its deepest layer averaged over the image and standardised.
"""

import torch
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.base import Baseline, feature_dims, image_features
from texture_ad.models.backbone import Backbone


class OneClassSVM(Baseline):
    """scikit-learn's, whose decision function is computed by torch.

    Args:
        backbone: pretrained.
        size: see Baseline.
        nu: bound on the share of training images outside, in (0, 1].

    Raises:
        UserError: a parameter out of its range.
    """

    name = "oc_svm"
    uses_backbone = True

    def __init__(self, backbone: Backbone, size: int = 256, nu: float = 0.1):
        super().__init__(size=size, nu=nu)
        check_number("method.nu", nu, 0, 1, above=True)
        self.backbone = backbone
        dim = feature_dims(backbone)[-1]
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("support", torch.zeros(0, dim))
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("offset", torch.zeros(()))

    @torch.no_grad()
    def fit(self, loader) -> None:
        from sklearn.svm import OneClassSVM as Estimator

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, batch["image"].to(device)) for batch in loader])
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0).clamp(min=1e-6))
        x = ((x - self.mean) / self.scale).cpu().numpy()
        svm = Estimator(kernel="rbf", gamma=1 / x.shape[1], nu=self.settings["nu"]).fit(x)
        for name, value in (("support", svm.support_vectors_), ("weights", svm.dual_coef_[0])):
            setattr(self, name, torch.from_numpy(value).float().to(device))
        self.offset.fill_(float(svm.offset_[0]))

    def score(self, images: Tensor) -> tuple[Tensor, None]:
        x = (image_features(self.backbone, images) - self.mean) / self.scale
        kernel = (-torch.cdist(x, self.support).square() / x.shape[1]).exp()
        return self.offset - kernel @ self.weights, None
