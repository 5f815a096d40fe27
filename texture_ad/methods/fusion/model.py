"""The model of our method: flow likelihood and dictionary error of whitened patch features, fused.

Loading a detector needs neither Hydra, Lightning nor SPAMS. The order of `measure` is the order of the method: image,
backbone, patch features, whitening, flow and dictionary; then `fuse`, the highest positions, the score.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from texture_ad.evaluation.localization import image_scores
from texture_ad.methods.base import AnomalyDetector, Measurement
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.dictionary import Dictionary
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.slices import in_slices
from texture_ad.models.whitening import Whitening
from texture_ad.parameters import Count, Fraction, checked

SLICE = 2**20  # numbers of the features in a slice


@checked
class FusionModel(AnomalyDetector):
    """Fuse the flow's likelihood and the dictionary's error, each standardised on calibration patches.

    Args:
        backbone: gives the patch features.
        whitening: of those features.
        flow: over the whitened features.
        dictionary: of the whitened features, or of the flow's latent ones.
        fusion: weight of the flow's likelihood in the score; the rest is the dictionary's.
        top: highest positions of the patch map, whose mean is the image score.
        min_distance: between two of them, in positions.
        size: side of the images in pixels that the detector is fitted on.

    Attributes:
        patch_statistics: (2, 2), rows: dictionary, flow; columns: mean and standard deviation over calibration patches.
        feature_cache: looks patch features up, or extracts them by the function that it is given; None extracts always.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "fusion"
    uses_backbone = True
    mixed_precision = True
    several_processes = True
    patch_statistics: Tensor

    def __init__(
        self,
        backbone: Backbone,
        whitening: Whitening,
        flow: Flow,
        dictionary: Dictionary,
        fusion: Fraction,
        top: Count,
        min_distance: Count,
        size: int,
    ):
        super().__init__(
            size=size,
            whitening=whitening.settings,
            flow=flow.settings,
            dictionary=dictionary.settings,
            fusion=fusion,
            top=top,
            min_distance=min_distance,
        )
        self.backbone = backbone
        self.whitening = whitening
        self.flow = flow
        self.dictionary = dictionary
        self.fusion = fusion
        self.top = top
        self.min_distance = min_distance
        self.feature_cache: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None
        self.register_buffer("patch_statistics", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    @classmethod
    def build(cls, make: Callable[..., Any], size: int, **options: Any) -> "FusionModel":
        """Return an untrained detector; see AnomalyDetector.build."""
        backbone = make("backbone")
        whitening = make("whitening", dim=sum(backbone.num_channels))
        flow = make("flow", dim=whitening.length)
        dictionary = make("dictionary", dim=whitening.length)
        return make(
            "score",
            backbone=backbone,
            whitening=whitening,
            flow=flow,
            dictionary=dictionary,
            size=size,
            **options,
        )

    def patch_features(self, images: Tensor) -> Tensor:
        """Return the patch features (B, C, h, w) of images, uint8 (B, 3, H, W)."""
        if self.feature_cache is not None:
            return self.feature_cache(images, self.backbone.extract)
        return self.backbone.extract(images)

    def dictionary_features(self, patches: Tensor) -> Tensor:
        """Return what the dictionary models, (N, c), of the patch features (N, C) of whole images, in order."""
        whitened = self.whitening(patches)
        return self._latent(self.flow(whitened)[0]) if self.dictionary.features == "latent" else whitened

    @staticmethod
    def _latent(t: Tensor) -> Tensor:
        return t / t.shape[1] ** 0.5  # of mean squared length 1, as the whitened ones are

    def patch_scores(self, patches: Tensor) -> Tensor:
        """Return errors ||y - D x|| and negative log-likelihoods, (N, 2), of patch features (N, C) of whole images."""
        whitened = self.whitening(patches)
        return in_slices(self._score_whitened, whitened, SLICE // whitened.shape[1])

    def _score_whitened(self, whitened: Tensor) -> Tensor:
        """Return `patch_scores` of whitened features (N, c)."""
        errors = likelihoods = torch.zeros_like(whitened[:, 0])
        modelled = whitened
        if self.dictionary.features == "latent" or self.fusion > 0:
            t, log_det = self.flow(whitened)
            if self.fusion > 0:
                likelihoods = negative_log_likelihood(t, log_det)
            if self.dictionary.features == "latent":
                modelled = self._latent(t)
        if self.fusion < 1:
            errors = self.dictionary(modelled)
        return torch.stack((errors, likelihoods), 1)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W): a part map for the dictionary, one for the flow."""
        features = self.patch_features(images)
        scores = self.patch_scores(flatten_patches(features))
        # Not len(images): an exported graph would hold it as a constant.
        parts = scores.view(images.shape[0], features.shape[2], features.shape[3], 2).permute(0, 3, 1, 2)
        return Measurement(None, parts)

    def standardise(self, parts: Tensor) -> None:
        """Take mean and standard deviation of both parts from those of all calibration images, (N, 2, h, w).

        Not from training images: the flow and the atoms know those too well, each in its own measure.
        """
        values = parts.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        deviation = (values.square().mean(1) - mean.square()).clamp(min=1e-12).sqrt()
        self.patch_statistics.copy_(torch.stack((mean, deviation), 1))

    def fuse(self, parts: Tensor) -> Tensor:
        """Return the weighted sum (B, h, w) of the standardised parts (B, 2, h, w)."""
        mean, deviation = self.patch_statistics[:, :, None, None].unbind(1)
        error, likelihood = ((parts - mean) / deviation).unbind(1)
        return (1 - self.fusion) * error + self.fusion * likelihood

    def score(self, anomaly_maps: Tensor, top_scores: Tensor) -> Tensor:
        """Return the mean of the highest positions, as Guo, Song, Ma have it."""
        return image_scores(top_scores)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], state: Mapping[str, Tensor], **parts: Any) -> "FusionModel":
        """Return a detector with the settings of a file; see AnomalyDetector.from_settings."""
        own = dict(settings)
        whitening, flow, dictionary = (dict(own.pop(name)) for name in ("whitening", "flow", "dictionary"))
        # Of these parts any number would be made, one by one.
        blocks = len({key.split(".")[2] for key in state if key.startswith("flow.blocks.")})
        if flow["blocks"] != blocks:
            raise ValueError(f"its settings say {flow['blocks']} blocks, its tensors {blocks}")
        parts |= {
            "whitening": Whitening(**whitening),
            "flow": Flow(**flow),
            "dictionary": Dictionary(**dictionary),
        }
        return cls(**parts, **own)
