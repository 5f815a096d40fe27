"""The detector: what is saved, deployed and asked for a score. One file, images in, scores and maps out.

Loading needs neither Hydra nor Lightning. The order of `forward` is the order of the method: image, backbone,
patch features, whitening, dictionary and flow, anomaly map, five positions, score.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import image_scores, separate_positions, top_positions
from texture_ad.files import save_atomic
from texture_ad.methods.saved import load_detector
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.slices import in_slices
from texture_ad.models.sparse import residuals
from texture_ad.models.whitening import Whitening

FORMAT = "texture_ad.detector"
VERSION = 3
SLICE = 2**20  # numbers of the features in a slice


def backbone_settings(backbone: Backbone) -> dict:
    """What makes the same backbone again, but for its weights."""
    return {
        "name": backbone.name,
        "layers": list(backbone.layers),
        "neighborhood": backbone.neighborhood,
        "min_size": backbone.min_size,
    }


class Prediction(NamedTuple):
    """scores (B,), anomaly_maps (B, H, W) at the input's size, positions (B, top, 2) on the patches' grid.

    The last two are None for a method that has no map.
    """

    scores: Tensor
    anomaly_maps: Tensor | None
    positions: Tensor | None


class Detector(nn.Module):
    """Backbone, whitening, flow and dictionary with the statistics that bring their scores to one scale.

    Args:
        backbone, whitening, flow: from stage 1.
        atoms: number of atoms K, at least 1.
        features: what the dictionary models: "backbone" (the whitened patch features) or "latent" (the flow's).
        nonzeros: OMP's limit, 0 to the features' length; 0 leaves the length of the feature vector, a Gaussian's Mahalanobis
            distance. error: OMP's bound on the squared error, 0 for none.
        fusion: weight of the flow's likelihood in the score, in [0, 1]; both are standardised on calibration
            patches first.
        coder: "auto", "spams" or "torch" (see sparse.residuals).
        top, min_distance: of the image score (see evaluation.localization).
        size: side of the images in pixels that the detector was trained on.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        whitening: Whitening,
        flow: Flow,
        atoms: int = 256,
        features: str = "backbone",
        nonzeros: int = 2,
        error: float = 0.0,
        fusion: float = 0.5,
        coder: str = "auto",
        top: int = 5,
        min_distance: int = 1,
        size: int = 256,
    ):
        super().__init__()
        length = whitening.length
        check_number("dictionary.atoms", atoms, 1, whole=True)
        check_number("dictionary.nonzeros", nonzeros, 0, length, whole=True)
        check_number("dictionary.error", error, 0)
        check_number("dictionary.fusion", fusion, 0, 1)
        check_number("dictionary.top", top, 1, whole=True)
        check_number("dictionary.min_distance", min_distance, 1, whole=True)
        for key, value, allowed in (
            ("features", features, ("backbone", "latent")),
            ("coder", coder, ("auto", "spams", "torch")),
        ):
            if value not in allowed:
                raise UserError(f"dictionary.{key}={value}: expected one of {', '.join(allowed)}")
        self.backbone = backbone
        self.whitening = whitening
        self.flow = flow
        self.settings = {
            "atoms": atoms,
            "features": features,
            "nonzeros": nonzeros,
            "error": error,
            "fusion": fusion,
            "coder": coder,
            "top": top,
            "min_distance": min_distance,
            "size": size,
        }
        self.meta: dict = {}
        self.register_buffer("atoms", F.normalize(torch.ones(atoms, length), dim=1))
        self.register_buffer("gram", self.atoms @ self.atoms.T, persistent=False)
        self.register_load_state_dict_post_hook(lambda self, _: self.set_atoms(self.atoms))
        # Rows: dictionary, flow. Columns: mean and standard deviation over calibration patches.
        self.register_buffer("patch_statistics", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("threshold", torch.tensor(float("nan")))

    def set_atoms(self, atoms: Tensor) -> None:
        """Takes over atoms (K, C) of unit norm, with their Gram matrix, which is computed here alone."""
        self.atoms.copy_(atoms)
        self.gram.copy_(self.atoms @ self.atoms.T)

    def dictionary_features(self, patches: Tensor) -> Tensor:
        """Patch features (N, C) of whole images, in order, to what the dictionary models, (N, c)."""
        features = self.whitening(patches)
        return self.flow(features)[0] / features.shape[1] ** 0.5 if self.settings["features"] == "latent" else features

    def patch_scores(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction errors ||y - D x|| and negative log-likelihoods of patches (N, C), each (N,)."""
        features = self.whitening(patches)
        return in_slices(self.whitened_scores, features, SLICE // features.shape[1])

    def whitened_scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`patch_scores` of features (N, c)."""
        s = self.settings
        t = log_det = None
        if s["features"] == "latent" or s["fusion"] > 0:
            t, log_det = self.flow(features)
        if s["features"] == "latent":
            features = t / t.shape[1] ** 0.5
        if s["fusion"] == 1:
            errors = features.new_zeros(len(features))
        else:
            errors = residuals(features, self.atoms, s["nonzeros"], s["error"], s["coder"], self.gram).sqrt()
        nll = negative_log_likelihood(t, log_det) if s["fusion"] > 0 else torch.zeros_like(errors)
        return errors, nll

    def patch_features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (B, 3, H, W) to patch features (B h w, C) and (h, w)."""
        maps = self.backbone.extract(images)
        return flatten_patches(maps), tuple(maps.shape[-2:])

    def grid(self) -> tuple[int, int]:
        """Patches (h, w) of an image of the detector's size."""
        size = self.settings["size"]
        return self.patch_features(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.threshold.device))[1]

    def patch_map(self, images: Tensor) -> Tensor:
        """Fused patch scores, (B, h, w)."""
        patches, grid = self.patch_features(images)
        # Not len(images): an exported graph would hold it as a constant.
        mean = self.patch_statistics[:, :1]
        deviation = self.patch_statistics[:, 1:]
        z = (torch.stack(self.patch_scores(patches)) - mean) / deviation
        w = self.settings["fusion"]
        return ((1 - w) * z[0] + w * z[1]).view(images.shape[0], *grid)

    def scores_and_maps(self, images: Tensor, peaks: Callable = separate_positions) -> Prediction:
        """`forward` as one graph: nothing in it looks at a value."""
        maps = self.patch_map(images)
        positions, top = peaks(maps, self.settings["top"], self.settings["min_distance"])
        full = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(image_scores(top), full, positions)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Scores images, uint8 (B, 3, H, W).

        Raises:
            UserError: scores that are not finite.
        """
        return self.scores_and_maps(images, top_positions)

    def read(self, *paths: Path) -> Tensor:
        """Photographs as this detector wants them: uint8 (B, 3, size, size) on its device.

        Raises:
            UserError: a file that can't be read as an image.
        """
        from texture_ad.data.images import read_image, resize

        images = [resize(read_image(path), self.settings["size"]) for path in paths]
        return torch.stack(images).to(self.threshold.device)

    def save(self, path: Path) -> None:
        """Writes one file of tensors and plain values, whole or not at all."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "meta": self.meta,
            "backbone": backbone_settings(self.backbone),
            "whitening": dict(self.whitening.settings),
            "flow": dict(self.flow.settings),
            "state": self.state_dict(),
        }
        save_atomic(path, content)

    @classmethod
    def from_content(cls, content: dict) -> "Detector":
        """What `save` wrote, read by models.saved; its sizes are held to its tensors before anything of them is made.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError: not written by `save`.
        """
        state, settings, whitening, flow = (content[key] for key in ("state", "settings", "whitening", "flow"))
        blocks = {key.split(".")[2] for key in state if key.startswith("flow.blocks.")}
        dim, length = state["whitening.basis"].shape
        sizes = (settings["atoms"], whitening["dim"], flow["dim"], flow["blocks"], flow["hidden"])
        stored = (len(state["atoms"]), dim, length, len(blocks), len(state["flow.blocks.0.second.hidden.bias"]))
        if sizes != stored:
            raise ValueError(f"its settings say {sizes}, its tensors {stored}")
        if state["whitening.matrix"].shape != (len(state["whitening.center"]), length, length):
            raise ValueError("its whitening fits no position")
        check_number("size", settings["size"], 32, 8192, whole=True)
        backbone = Backbone(weights="none", **content["backbone"])
        detector = cls(backbone, Whitening(**whitening), Flow(**flow), **settings)
        detector.load_state_dict(state)
        return detector

    @staticmethod
    def load(path: Path, device: str = "cpu", coder: str | None = None) -> "Detector":
        """Reads a detector; see models.saved.load_detector."""
        return load_detector(path, device, coder)
