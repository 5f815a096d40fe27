"""What the systems that the paper compares with share: how they are fitted, asked for scores, saved and loaded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from texture_ad.errors import check_number
from texture_ad.evaluation.localization import TOP, top_positions
from texture_ad.files import save_atomic
from texture_ad.methods.fusion.detector import Detector, Prediction, backbone_settings
from texture_ad.models.backbone import Backbone

BASELINE_FORMAT = "texture_ad.baseline"
BASELINE_VERSION = 2
MIN_DISTANCE = 2  # between the five positions that are drawn, in patches


def feature_dims(backbone: Backbone) -> list[int]:
    """Channels of each of the backbone's layers, found by a small image."""
    with torch.no_grad():
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=backbone.mean.device)
        return [m.shape[1] for m in backbone.eval()(probe)]


def image_features(backbone: Backbone, images: Tensor) -> Tensor:
    """The deepest layer averaged over all positions, uint8 (B, 3, H, W) to (B, C)."""
    return backbone.in_slices(lambda part: backbone(part)[-1].float().mean((2, 3)), images)


def nearest(x: Tensor, bank: Tensor, count: int = 1, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Euclidean distances and indices of the nearest rows of `bank` (M, C) to each row of `x` (N, C).

    Returns:
        Distances, ascending, and indices, both (N, min(count, M)).
    """
    distances = []
    indices = []
    for part in x.split(chunk):
        index = torch.cdist(part, bank).topk(min(count, len(bank)), largest=False).indices
        # Again from the difference: cdist's products lose half the digits of a small distance.
        distances.append((part[:, None] - bank[index]).norm(dim=2))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of maps (B, H, W), `sigma` in pixels."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return gaussian_blur(maps[:, None], [side, side], [sigma, sigma])[:, 0]


class Baseline(nn.Module):
    """A detector by another method, with the main detector's interface.

    A subclass defines `score`, and `fit` where it has something to fit in passes over the images. If it is a
    LightningModule as well, Lightning trains it for `settings["epochs"]` epochs before `fit`.

    Args:
        settings: the subclass's own arguments, all of them, plain values; among them `size`, the side of the images in
            pixels that it was fitted on.

    Attributes:
        name: of the method in conf/method/.
        uses_backbone: its first argument is a Backbone.
        sigma: Gaussian smoothing of the full-size map, in pixels at a size of 224; 0 for none.
    """

    name = ""
    uses_backbone = False
    sigma = 0.0

    def __init__(self, **settings):
        super().__init__()
        check_number("data.size", settings["size"], 32, 8192, whole=True)
        self.settings = settings
        self.meta: dict = {}
        self.register_buffer("threshold", torch.tensor(float("nan")))

    def fit(self, loader) -> None:
        """Fits what no gradient trains.

        Args:
            loader: the normal training images in fixed order, batches as TextureDataModule gives them; any number of
                passes.
        """

    def score(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Scores of uint8 (B, 3, H, W): (B,), None where it is the map's maximum, and maps (B, h, w) or None."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Scores images, uint8 (B, 3, H, W); without a map, `anomaly_maps` and `positions` are None.

        Raises:
            UserError: maps that are not finite.
        """
        scores, maps = self.score(images)
        if maps is None:
            return Prediction(scores, None, None)
        positions, _ = top_positions(maps, TOP, MIN_DISTANCE)
        full = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        if self.sigma:
            full = smooth(full, self.sigma * images.shape[-1] / 224)
        return Prediction(full.amax((1, 2)) if scores is None else scores, full, positions)

    def grid(self) -> tuple[int, int] | None:
        """Patches (h, w) of the map of an image of the detector's size, None without a map."""
        size = self.settings["size"]
        with torch.no_grad():
            maps = self.score(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.threshold.device))[1]
        return None if maps is None else tuple(maps.shape[-2:])

    read = Detector.read

    def save(self, path: Path) -> None:
        """Writes one file of tensors and plain values, whole or not at all."""
        save_atomic(
            path,
            {
                "format": BASELINE_FORMAT,
                "version": BASELINE_VERSION,
                "method": self.name,
                "settings": self.settings,
                "meta": self.meta,
                "backbone": backbone_settings(self.backbone) if self.uses_backbone else None,
                "state": {k: v.contiguous() for k, v in self.state_dict().items()},
            },
        )

    @classmethod
    def from_content(cls, content: dict) -> "Baseline":
        """What `save` wrote, read and checked by models.saved.

        Raises:
            LookupError, TypeError, ValueError, RuntimeError, UserError: it was not written by `save`.
        """
        state = content["state"]
        first = ()
        if cls.uses_backbone:
            first = (Backbone(weights="none", **content["backbone"]),)
        # Nothing of the sizes that the file claims is made: its own tensors take the places.
        with torch.device("meta"):
            baseline = cls(*first, **content["settings"])
        for name, buffer in list(baseline.named_buffers()):
            if buffer.shape[:1] == (0,):  # filled by `fit`, of any length
                setattr(baseline, name, buffer.new_empty(len(state[name]), *buffer.shape[1:]))
        baseline.load_state_dict(state, assign=True)
        return baseline
