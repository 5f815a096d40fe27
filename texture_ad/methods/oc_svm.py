"""A one-class SVM on deep features.

Andrews, Tanay, Morton, Griffin: Transfer representation-learning for anomaly detection, ICML workshop 2016 (the
reference [38] of Guo, Song, Ma): features of a pretrained network and a one-class SVM (Schoelkopf et al., 2001) with a
Gaussian kernel. The backbone is ours, its deepest layer averaged over the image and standardised.
"""

from typing import Annotated

import torch
from torch import Tensor

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches, deviations, distances, image_features
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Range, checked


@checked
class OneClassSVM(Baseline):
    """Score an image by scikit-learn's one-class SVM, whose decision function is computed by torch.

    Args:
        backbone: pretrained.
        nu: bound on the share of training images outside.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "oc_svm"
    uses_backbone = True
    mean: Tensor  # (C,)
    scale: Tensor  # (C,)
    support: Tensor  # (vectors, C)
    weights: Tensor  # (vectors,)
    offset: Tensor  # ()

    def __init__(self, backbone: Backbone, nu: Annotated[float, Range(0, 1, above=True)]):
        super().__init__()
        self.backbone = backbone
        dim = backbone.num_channels[-1]
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("support", torch.zeros(0, dim))
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("offset", torch.zeros(()))

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Fit the SVM on the training images' standardised features."""
        from sklearn.svm import OneClassSVM as Estimator

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, batch["image"].to(device)) for batch in batches])
        self.mean.copy_(x.mean(0))
        self.scale.copy_(deviations(x))
        standardised = ((x - self.mean) / self.scale).cpu().numpy()
        svm = Estimator(kernel="rbf", gamma=1 / x.shape[1], nu=self.settings["nu"]).fit(standardised)
        for name, value in (("support", svm.support_vectors_), ("weights", svm.dual_coef_[0])):
            setattr(self, name, torch.from_numpy(value).float().to(device))
        self.offset.fill_(float(svm.offset_[0]))

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        x = (image_features(self.backbone, images) - self.mean) / self.scale
        kernel = (-distances(x, self.support).square() / x.shape[1]).exp()
        return Measurement(self.offset - kernel @ self.weights, None)
