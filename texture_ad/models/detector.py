"""The detector: what is saved, deployed and asked for a score. One file, images in, scores and maps out.

Loading needs neither Hydra nor Lightning. The order of `forward` is the order of the method: image, backbone,
patch features, dictionary and flow, anomaly map, five locations, score.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import UserError
from texture_ad.evaluation.localization import image_scores, top_locations_batch
from texture_ad.models.backbone import Backbone
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.sparse import residuals

FORMAT, VERSION = "texture_ad.detector", 1


class Prediction(NamedTuple):
    """scores (B,), anomaly_maps (B, H, W) at the input's size, locations (B, top, 2) on the patches' grid."""

    scores: Tensor
    anomaly_maps: Tensor
    locations: Tensor


class Detector(nn.Module):
    """Backbone, flow and dictionary with the statistics that bring their scores to one scale.

    Args:
        backbone, flow: from stage 1.
        atoms: number of atoms K, at least 1.
        features: "backbone" (whitened patch features) or "latent" (the flow's).
        whiten: with features="backbone", decorrelate and scale them by the training set's covariance.
        nonzeros: OMP's limit, 1 to C; error: OMP's bound on the squared error, 0 for none.
        fusion: weight of the flow's likelihood in the score, in [0, 1]; both are standardised on held-out
            normal patches first.
        coder: "auto" (spams on a CPU, torch elsewhere), "spams" or "torch".
        top, min_distance: of the image score.
        size: side of the images in pixels that the detector was trained on.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, backbone: Backbone, flow: Flow, atoms: int = 256, features: str = "backbone",
                 whiten: bool = True, nonzeros: int = 8, error: float = 0.0, fusion: float = 0.5,
                 coder: str = "auto", top: int = 5, min_distance: int = 2, size: int = 256):  # fmt: skip
        super().__init__()
        dim = len(flow.center)
        if atoms < 1:
            raise UserError(f"dictionary.atoms={atoms}: expected at least 1")
        if not 1 <= nonzeros <= dim:
            raise UserError(f"dictionary.nonzeros={nonzeros}: expected 1 to {dim}, the number of features")
        if error < 0:
            raise UserError(f"dictionary.error={error}: expected a number of at least 0")
        if not 0 <= fusion <= 1:
            raise UserError(f"dictionary.fusion={fusion}: expected a number from 0 to 1")
        for key, value, allowed in (("features", features, ("backbone", "latent")),
                                    ("coder", coder, ("auto", "spams", "torch"))):  # fmt: skip
            if value not in allowed:
                raise UserError(f"dictionary.{key}={value}: expected one of {', '.join(allowed)}")
        if top < 1 or min_distance < 1:
            raise UserError(f"dictionary.top={top}, min_distance={min_distance}: expected at least 1 each")
        self.backbone, self.flow = backbone, flow
        self.settings = {"atoms": atoms, "features": features, "whiten": whiten, "nonzeros": nonzeros, "error": error,
                         "fusion": fusion, "coder": coder, "top": top, "min_distance": min_distance, "size": size}  # fmt: skip
        self.meta: dict = {}
        self.register_buffer("atoms", F.normalize(torch.ones(atoms, dim), dim=1))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        # Rows: dictionary, flow. Columns: mean and standard deviation over held-out normal patches.
        self.register_buffer("patch_statistics", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("threshold", torch.tensor(float("nan")))

    def set_whitening(self, mean: Tensor, covariance: Tensor) -> None:
        """From the training patches' mean (C,) and covariance (C, C); a ridge of 1e-4 of its mean diagonal."""
        dim = len(mean)
        ridge = 1e-4 * covariance.trace() / dim
        values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(dim, dtype=covariance.dtype))
        self.mean.copy_(mean)
        self.whitening.copy_(vectors * values.rsqrt())

    def dictionary_features(self, patches: Tensor) -> Tensor:
        """Patch features (N, C) to what the dictionary models, (N, C)."""
        if self.settings["features"] == "latent":
            return self.flow(patches)[0]
        return (patches - self.mean) @ self.whitening if self.settings["whiten"] else patches

    def patch_scores(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction errors ||y - D x|| and negative log-likelihoods of patches (N, C), each (N,)."""
        s = self.settings
        coder = s["coder"]
        if coder == "auto":
            coder = "spams" if patches.device.type == "cpu" else "torch"
        t = log_det = None
        if s["features"] == "latent" or s["fusion"] > 0:
            t, log_det = self.flow(patches)
        signals = t if s["features"] == "latent" else self.dictionary_features(patches)
        if s["fusion"] == 1:
            errors = patches.new_zeros(len(patches))
        else:
            errors = residuals(signals, self.atoms, s["nonzeros"], s["error"], coder).sqrt()
        nll = negative_log_likelihood(t, log_det) if s["fusion"] > 0 else torch.zeros_like(errors)
        return errors, nll

    def patch_features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (B, 3, H, W) to patch features (B h w, C) and (h, w)."""
        maps = self.backbone.patch_features(self.backbone(images))
        return maps.permute(0, 2, 3, 1).flatten(0, 2).float(), tuple(maps.shape[-2:])

    def patch_map(self, images: Tensor) -> Tensor:
        """Fused patch scores, (B, h, w)."""
        patches, grid = self.patch_features(images)
        scores = torch.stack(self.patch_scores(patches))
        center, scale = self.patch_statistics[:, :1], self.patch_statistics[:, 1:]
        z = (scores - center) / scale
        w = self.settings["fusion"]
        return ((1 - w) * z[0] + w * z[1]).view(len(images), *grid)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Scores images, uint8 (B, 3, H, W)."""
        maps = self.patch_map(images)
        locations, top = top_locations_batch(maps, self.settings["top"], self.settings["min_distance"])
        full = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(image_scores(top), full, locations)

    def save(self, path: Path) -> None:
        """Writes one file of tensors and plain values, whole or not at all."""
        b = self.backbone
        content = {
            "format": FORMAT, "version": VERSION, "settings": self.settings, "meta": self.meta,
            "backbone": {"name": b.name, "layers": list(b.layers), "neighborhood": b.neighborhood},
            "flow": dict(self.flow.settings), "state": self.state_dict(),
        }  # fmt: skip
        temporary = Path(f"{path}.partial")
        torch.save(content, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Detector":
        """Reads a detector; a file that holds code is refused, not run.

        Raises:
            UserError: missing, no detector, of another version, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"detector={path}: no such file; give the detector.pt of a finished run")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            right = content["format"] == FORMAT
        except Exception as error:
            raise UserError(f"detector={path}: not a detector file, or damaged; give a run's detector.pt") from error
        if not right or content["version"] != VERSION:
            raise UserError(
                f"detector={path}: format {content['format']} version {content['version']}, expected {FORMAT} "
                f"version {VERSION}; train it again with this version"
            )
        try:
            detector = cls(
                Backbone(weights="none", **content["backbone"]), Flow(**content["flow"]), **content["settings"]
            )
            detector.load_state_dict(content["state"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"detector={path}: damaged ({str(error).splitlines()[0]}); train it again") from error
        detector.meta = content["meta"]
        return detector.eval().requires_grad_(False).to(device)
