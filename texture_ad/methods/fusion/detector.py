"""Our method as a detector: what four parts say of whitened patch features, fused.

Loading a detector needs neither Hydra, Lightning nor SPAMS. The order of `measure` is the order of the method: image,
backbone, patch features, whitening, Gaussian, head, flow and dictionary; then `fuse`, the highest positions, the score.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from texture_ad.data.geometry import Geometry
from texture_ad.errors import ParameterError
from texture_ad.evaluation.localization import image_scores, raise_areas
from texture_ad.methods.base import AnomalyDetector, Fitting, Measurement
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.dictionary import Dictionary
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.head import QuadraticHead
from texture_ad.models.slices import in_slices
from texture_ad.models.whitening import QUARTERS, Whitening
from texture_ad.parameters import Count, NonNegative, checked

SLICE = 2**18  # numbers of the features in a slice
PARTS = ("gaussian", "head", "flow", "dictionary")  # of the score, in this order
FLOW = PARTS.index("flow")
RARE = 0.01  # share of normal images whose flow map's mean lies beyond the limit, were means normally distributed
EXCESS = 0.5  # of the flow's weight, for what lies beyond
TYPICAL = 0.1  # quantile of calibration maps' peaks, above which a wide area is anomalous
RAISED = 0.3  # how far above the pixel threshold it is raised, of the threshold's distance from there


@checked
class FusionDetector(AnomalyDetector):
    """Fuse what a Gaussian, a self-supervised head, a flow and a dictionary say of whitened patch features.

    Each part's score is standardised on calibration patches and compressed. Their weighted sum is the patch map. Head,
    flow and dictionary learn from the training images what the Gaussian doesn't say; from few images they learn little,
    so their weights grow with the number of training images n as n / (n + trust), and the Gaussian's falls likewise.

    Args:
        backbone: gives the patch features.
        whitening: of those features.
        head: taught by CutPaste, of the whitened features.
        flow: over the whitened features of the finest layers, or of all. Of the quarters of a position, the least
            likely one counts.
        dictionary: of the whitened features of the deepest layers, or of the flow's latent ones.
        gaussian_weight: of the whitened features' squared length.
        head_weight: of the head's score.
        flow_weight: of the flow's likelihood.
        flow_centred: subtract the mean of each image's flow map, so that it says where an image is unlike the rest of
            itself. What all positions share, such as exposure and focus, then counts in the image's score alone, and
            only as far as it goes beyond what calibration images share.
        dictionary_weight: of the dictionary's error.
        trust: training images at which head, flow and dictionary have half of their weight; 0 gives them all of it,
            and the Gaussian none unless it is alone.
        top: highest positions of the patch map, whose mean makes the image score.
        min_distance: between two of them, in positions.
        sigma: Gaussian smoothing of the anomaly map, in pixels at a shorter side of 224; 0 for none.
        raise_areas: raise wide areas of the anomaly map above the pixel threshold where they lie above what the peaks
            of nearly all calibration maps reach. Compressed, centred maps are highest at a large defect's border.

    Attributes:
        patch_statistics: (4, 2), a row for each of PARTS: mean and standard deviation over calibration patches.
        learnt: (), n / (n + trust).
        shared_limit: (), up to where the mean of an image's flow map is normal; infinity where it can't be told.
        area_limits: (2,), from where positions of wide areas are raised, and to where; the same twice for nowhere.
        feature_cache: looks patch features up, or extracts them by the function that it is given; None extracts always.

    Raises:
        ParameterError: a parameter out of its range, or a dictionary of what only some layers' flow gives.
    """

    name = "fusion"
    uses_backbone = True
    mixed_precision = True
    several_processes = True
    upsampling = "bicubic"
    patch_statistics: Tensor
    learnt: Tensor
    shared_limit: Tensor
    area_limits: Tensor

    def __init__(
        self,
        backbone: Backbone,
        whitening: Whitening,
        head: QuadraticHead,
        flow: Flow,
        dictionary: Dictionary,
        gaussian_weight: NonNegative,
        head_weight: NonNegative,
        flow_weight: NonNegative,
        flow_centred: bool,
        dictionary_weight: NonNegative,
        trust: NonNegative,
        top: Count,
        min_distance: Count,
        sigma: NonNegative,
        raise_areas: bool,
    ):
        super().__init__()
        if gaussian_weight + head_weight + flow_weight + dictionary_weight == 0:
            raise ParameterError(
                "gaussian_weight", gaussian_weight, "expected a weight above 0 for at least one part of the score"
            )
        if dictionary.features == "latent" and flow.dim != whitening.length:
            problem = "a dictionary of latent features needs a flow of all layers; add flow.first=0"
            raise ParameterError("dictionary.features", "latent", problem)
        self.backbone = backbone
        self.whitening = whitening
        self.head = head
        self.flow = flow
        self.dictionary = dictionary
        self.weights = (gaussian_weight, head_weight, flow_weight, dictionary_weight)
        self.flow_centred = flow_centred
        self.trust = trust
        self.top = top
        self.min_distance = min_distance
        self.sigma = sigma
        self.raise_areas = raise_areas
        self.feature_cache: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None
        self.register_buffer("patch_statistics", torch.tensor([[0.0, 1.0]] * len(PARTS)))
        self.register_buffer("learnt", torch.tensor(1.0))
        self.register_buffer("shared_limit", torch.tensor(math.inf))
        self.register_buffer("area_limits", torch.zeros(2))

    def set_geometry(self, geometry: Geometry) -> None:
        """Set what the detector sees of a photograph, and how patch features of tiles are whitened.

        Raises:
            ParameterError: whitening by position where the images are tiles, and not those of a strip.
        """
        if not geometry.keeps_places:
            self.whitening.ignore_positions()
        super().set_geometry(geometry)

    def fit_memory(self) -> tuple[int, int]:
        """Return the bytes of the statistics of all positions, kept and while they are fitted."""
        return self.whitening.memory(math.prod(self.backbone.grid_of(self.geometry.size)))

    @classmethod
    def assemble(cls, make: Callable[..., Any], **options: Any) -> "FusionDetector":
        """Return an untrained detector; see AnomalyDetector.assemble."""
        backbone = make("backbone")
        channels = backbone.num_channels
        # Whether quarters are whitened too is known from the flow, whose own size comes from the layers' lengths.
        lengths = make("whitening", channels=channels).lengths
        parts = {name: make(name, channels=lengths) for name in ("flow", "dictionary")}
        parts["head"] = make("head", dim=sum(lengths))
        quarters = parts["flow"].first == 1 and backbone.has_quarters
        parts["whitening"] = make("whitening", channels=channels, quarters=quarters)
        return make("score", backbone=backbone, **parts, **options)

    def fit(self, fitting: Fitting) -> dict[str, float]:
        """Train stage 1, the representation, then stage 2, the dictionary."""
        # Here, since using a detector needs neither Lightning nor SPAMS.
        from texture_ad.methods.fusion.stages import fit_stages

        return fit_stages(self, fitting)

    @property
    def uses_spams(self) -> bool:  # type: ignore[override]
        """Return whether SPAMS learns its dictionary."""
        return self.weight("dictionary") > 0

    @property
    def uses_positions(self) -> bool:  # type: ignore[override]
        """Return whether every position of an image is whitened by itself."""
        return self.whitening.mode == "position"

    def weight(self, part: str) -> float:
        """Return the weight of one of PARTS before the number of training images is known."""
        return self.weights[PARTS.index(part)]

    def set_trust(self, num_images: int) -> None:
        """Set the share of their weight that head, flow and dictionary get, by the number of training images."""
        self.learnt.fill_(num_images / (num_images + self.trust))

    def patch_features(self, images: Tensor) -> Tensor:
        """Return the patch features (B, C, h, w) of images, uint8 (B, 3, H, W)."""
        extract = partial(self.backbone.extract, quarters=self.whitening.quarters)
        return extract(images) if self.feature_cache is None else self.feature_cache(images, extract)

    def dictionary_features(self, whitened: Tensor) -> Tensor:
        """Return what the dictionary models, (N, C), of whitened features (N, c)."""
        if self.dictionary.features == "latent":
            return in_slices(self._latent, whitened, SLICE // whitened.shape[1])
        share = self.dictionary.dim / self.whitening.length
        return whitened[:, -self.dictionary.dim :] / share**0.5  # of mean squared length 1 again

    def layer_features(self, whitened: Tensor) -> Tensor:
        """Return the layers' features, (N, C), of whitened features (N, c)."""
        return whitened[:, -self.whitening.length :]

    def flow_features(self, whitened: Tensor) -> Tensor:
        """Return what the flow models of whitened features (N, c): (N, C), or (4 N, C) of the quarters."""
        if self.whitening.quarters:
            return whitened[:, : QUARTERS * self.flow.dim].reshape(-1, self.flow.dim)
        return whitened[:, : self.flow.dim]

    def _latent(self, whitened: Tensor) -> Tensor:
        return self.flow(whitened)[0] / self.flow.dim**0.5  # of mean squared length 1, as the whitened ones are

    def patch_scores(self, patches: Tensor) -> Tensor:
        """Return the scores (N, 4) of PARTS, 0 for one without weight, of patch features (N, C) of whole images."""
        whitened = self.whitening(patches)
        scores = in_slices(self._score_whitened, whitened, SLICE // whitened.shape[1])
        dictionary = torch.zeros_like(scores[:, 0])
        if self.weight("dictionary"):
            dictionary = self.dictionary(self.dictionary_features(whitened))
        return torch.cat((scores, dictionary[:, None]), 1)

    def _score_whitened(self, whitened: Tensor) -> Tensor:
        """Return the scores (N, 3) of all parts but the dictionary, of whitened features (N, c)."""
        layers = self.layer_features(whitened)
        gaussian = layers.square().sum(1)
        head = flow = torch.zeros_like(gaussian)
        if self.weight("head"):
            head = self.head(layers)
        if self.weight("flow"):
            flow = negative_log_likelihood(*self.flow(self.flow_features(whitened)))
            if self.whitening.quarters:
                flow = flow.view(-1, QUARTERS).amax(1)
        return torch.stack((gaussian, head, flow), 1)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W): a part map for each of PARTS."""
        features = self.patch_features(images)
        grid = (features.shape[2], features.shape[3])
        scores = self.patch_scores(flatten_patches(features))
        # Not len(images): an exported graph would hold it as a constant.
        return Measurement(None, scores.view(images.shape[0], *grid, len(PARTS)).permute(0, 3, 1, 2))

    def check_updatable(self) -> None:
        """Check that the whitening can grow."""
        self.whitening.check_updatable()

    def update(self, images: Iterable[Tensor]) -> None:
        """Add further normal images to the whitening; head, flow, dictionary and their trust stay as they are."""
        maps = (self.patch_features(batch.to(self.device)) for batch in images)
        self.whitening.update(flatten_patches(m).unflatten(0, (len(m), -1)) for m in maps)

    def standardise(self, parts: Tensor) -> None:
        """Take mean and standard deviation of the parts from those of all calibration images, (N, 4, h, w).

        Not from training images: the parts know those too well, each in its own measure.
        """
        values = parts.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        deviation = (values.square().mean(1) - mean.square()).clamp(min=1e-12).sqrt()
        self.patch_statistics.copy_(torch.stack((mean, deviation), 1))
        self.area_limits.zero_()  # those of another scale

    def _compressed(self, parts: Tensor) -> Tensor:
        """Return the parts (B, 4, h, w), each standardised and compressed.

        The inverse hyperbolic sine is linear near what is normal and logarithmic far from it: the flow's likelihood
        falls exponentially there, and would outvote all others.
        """
        mean, deviation = self.patch_statistics[:, :, None, None].unbind(1)
        return torch.asinh((parts - mean) / deviation)

    def standardised(self, parts: Tensor) -> Tensor:
        """Return the parts (B, 4, h, w) on the scale on which they are summed, the flow's centred where it is to be."""
        found = self._compressed(parts)
        if self.flow_centred:
            gaussian, head, flow, dictionary = found.unbind(1)
            found = torch.stack((gaussian, head, flow - flow.mean((1, 2), keepdim=True), dictionary), 1)
        return found

    def shared(self, parts: Tensor) -> Tensor:
        """Return the mean of each image's standardised flow map, (B,)."""
        return self._compressed(parts)[:, FLOW].mean((1, 2))

    def limit_shared(self, levels: Tensor) -> None:
        """Set up to where these means are normal, by those of the calibration images, (n,).

        That is the upper end of Student's prediction interval for one more. Of one image it can't be told, and a map
        that is not centred lacks nothing.
        """
        from scipy.special import stdtrit

        count = len(levels)
        self.shared_limit.fill_(math.inf)
        if self.flow_centred and count > 1:
            reach = stdtrit(count - 1, 1 - RARE) * math.sqrt(1 + 1 / count)
            self.shared_limit.copy_(levels.mean() + reach * levels.std())

    def fuse(self, parts: Tensor) -> Tensor:
        """Return the weighted sum (B, h, w) of the standardised parts (B, 4, h, w)."""
        gaussian, head, flow, dictionary = self.standardised(parts).unbind(1)
        w = self.weights
        taught = w[1] * head + w[2] * flow + w[3] * dictionary
        # Without parts that learn nothing takes weight from the Gaussian.
        rest = 1 - self.learnt if any(w[1:]) else torch.ones_like(self.learnt)
        return rest * w[0] * gaussian + self.learnt * taught

    def limit_areas(self, peaks: Tensor) -> bool:
        """Set from where wide areas are raised, and to where; see AnomalyDetector.limit_areas."""
        if self.raise_areas:
            lower = peaks.quantile(TYPICAL)
            self.area_limits.copy_(torch.stack((lower, torch.lerp(lower, self.pixel_threshold, 1 + RAISED))))
        return self.raise_areas

    def raised(self, patch_maps: Tensor) -> Tensor:
        """Return patch maps (B, h, w) with their wide areas raised."""
        return raise_areas(patch_maps, *self.area_limits) if self.raise_areas else patch_maps

    def excess(self, parts: Tensor) -> Tensor:
        """Return what centring took from each image's flow map beyond what is normal, as far as it counts, (B,)."""
        return EXCESS * (self.shared(parts) - self.shared_limit).clamp(min=0)

    def score(self, anomaly_maps: Tensor, top_scores: Tensor, parts: Tensor) -> Tensor:
        """Return the mean of the highest positions, as Guo, Song, Ma have it, and what the flow map lacks.

        A centred map is lower, not higher, in an image that is abnormal all over: far from normal, its values are
        compressed alike.
        """
        return image_scores(top_scores) + self.learnt * self.weight("flow") * self.excess(parts)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], state: Mapping[str, Tensor], **parts: Any) -> "FusionDetector":
        """Return a detector with the settings of a file; see AnomalyDetector.from_settings."""
        own = dict(settings)
        kinds = {"whitening": Whitening, "head": QuadraticHead, "flow": Flow, "dictionary": Dictionary}
        found = {name: dict(own.pop(name)) for name in kinds}
        # Of these parts any number would be made, one by one.
        blocks = len({key.split(".")[2] for key in state if key.startswith("flow.blocks.")})
        if found["flow"]["blocks"] != blocks:
            raise ValueError(f"its settings say {found['flow']['blocks']} blocks, its tensors {blocks}")
        return cls(**parts, **{name: kind(**found[name]) for name, kind in kinds.items()}, **own)
