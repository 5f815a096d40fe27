"""The detector: what is saved, deployed and asked for a score. One file, images in, scores and maps out.

Loading needs neither Hydra nor Lightning. The order of `forward` is the order of the method: image, backbone,
patch features, dictionary and flow, anomaly map, five locations, score.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import image_scores, separate_peaks, top_locations_batch
from texture_ad.files import save_whole
from texture_ad.models.backbone import Backbone, in_slices
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.saved import load_detector
from texture_ad.models.sparse import residuals

RIDGE = 0.1  # of whitening, times the features' mean variance
PRIOR = 8  # images: how much the statistics of all positions weigh at each single one
FORMAT, VERSION = "texture_ad.detector", 1


def backbone_settings(backbone: Backbone) -> dict:
    """What makes the same backbone again, but for its weights."""
    return {"name": backbone.name, "layers": list(backbone.layers), "neighborhood": backbone.neighborhood,
            "min_size": backbone.min_size}  # fmt: skip


class Prediction(NamedTuple):
    """scores (B,), anomaly_maps (B, H, W) at the input's size, locations (B, top, 2) on the patches' grid.

    The last two are None for a method that has no map.
    """

    scores: Tensor
    anomaly_maps: Tensor | None
    locations: Tensor | None


class Detector(nn.Module):
    """Backbone, flow and dictionary with the statistics that bring their scores to one scale.

    Args:
        backbone, flow: from stage 1.
        atoms: number of atoms K, at least 1.
        features: "backbone" (whitened patch features) or "latent" (the flow's).
        whiten: with features="backbone", decorrelate and scale them by the training set's covariance: "position", that
            of the same place of the image; "global", that of all places; or "none".
        components: directions that whitening keeps, of most variance; at least 1.
        nonzeros: OMP's limit, 0 to C, where 0 leaves the length of the whitened signal, a Gaussian's Mahalanobis
            distance; error: OMP's bound on the squared error, 0 for none.
        fusion: weight of the flow's likelihood in the score, in [0, 1]; both are standardised on training patches
            first.
        coder: "auto", "spams" or "torch" (see sparse.residuals).
        top, min_distance: of the image score (see evaluation.localization).
        size: side of the images in pixels that the detector was trained on.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, backbone: Backbone, flow: Flow, atoms: int = 1024, features: str = "backbone",
                 whiten: str = "position", components: int = 192, nonzeros: int = 4, error: float = 0.0,
                 fusion: float = 0.5, coder: str = "auto", top: int = 5, min_distance: int = 1,
                 size: int = 256):  # fmt: skip
        super().__init__()
        dim = len(flow.center)
        check_number("dictionary.atoms", atoms, 1, whole=True)
        check_number("dictionary.components", components, 1, whole=True)
        length = dim if features == "latent" or whiten == "none" else min(components, dim)
        check_number("dictionary.nonzeros", nonzeros, 0, length, whole=True)
        check_number("dictionary.error", error, 0)
        check_number("dictionary.fusion", fusion, 0, 1)
        check_number("dictionary.top", top, 1, whole=True)
        check_number("dictionary.min_distance", min_distance, 1, whole=True)
        for key, value, allowed in (("features", features, ("backbone", "latent")),
                                    ("whiten", whiten, ("position", "global", "none")),
                                    ("coder", coder, ("auto", "spams", "torch"))):  # fmt: skip
            if value not in allowed:
                raise UserError(f"dictionary.{key}={value}: expected one of {', '.join(allowed)}")
        self.backbone, self.flow = backbone, flow
        self.settings = {
            "atoms": atoms, "features": features, "whiten": whiten, "components": components, "nonzeros": nonzeros,
            "error": error, "fusion": fusion, "coder": coder, "top": top, "min_distance": min_distance, "size": size,
        }  # fmt: skip
        self.meta: dict = {}
        self.register_buffer("atoms", F.normalize(torch.ones(atoms, length), dim=1))
        self.register_buffer("gram", self.atoms @ self.atoms.T, persistent=False)
        self.register_load_state_dict_post_hook(lambda self, _: self.set_atoms(self.atoms))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim, length))
        # For all positions together, or, after set_position_whitening, for each by itself.
        self.register_buffer("center", torch.zeros(1, length))
        self.register_buffer("whitening", torch.eye(length)[None])
        # Rows: dictionary, flow. Columns: mean and standard deviation over the training patches.
        self.register_buffer("patch_statistics", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("threshold", torch.tensor(float("nan")))

    def set_atoms(self, atoms: Tensor) -> None:
        """Takes over atoms (K, C) of unit norm, with their Gram matrix, which is computed here alone."""
        self.atoms.copy_(atoms)
        self.gram.copy_(self.atoms @ self.atoms.T)

    def set_whitening(self, mean: Tensor, covariance: Tensor) -> None:
        """From the training patches' mean (C,) and covariance (C, C), which are not changed.

        Signals then have a mean squared length of 1, so that `lambda1` means the same for every backbone. Whitening
        keeps the `components` directions of most variance and scales each by its standard deviation, RIDGE of the mean
        variance added: features of a normal texture have many directions of almost no variance, whose noise would else
        drown the rest.
        """
        self.mean.copy_(mean)
        if self.settings["whiten"] == "none":
            self.whitening.copy_(torch.eye(len(mean)) / covariance.trace().clamp(min=1e-12).sqrt())
            return
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0)[-self.basis.shape[1] :]
        scale = (values + RIDGE * values.mean()).rsqrt()
        self.basis.copy_(vectors[:, -self.basis.shape[1] :])
        self.whitening.copy_(torch.diag(scale / (values * scale.square()).sum().clamp(min=1e-12).sqrt()))

    def set_position_whitening(self, mean: Tensor, covariance: Tensor, images: int) -> None:
        """After `set_whitening`, whitens every position by itself, as PaDiM does (Defard et al., ICPR 2021).

        A position's statistics are drawn towards those of all, as if PRIOR more images had shown the latter.

        Args:
            mean, covariance: of the training patches on the basis, at each of the P positions, (P, c) and (P, c, c).
            images: how many were seen.
        """
        own = images / (images + PRIOR)
        overall = covariance.mean(0) + mean.T @ mean / len(mean)
        covariance = torch.lerp(overall.expand_as(covariance), covariance, own)
        identity = torch.eye(len(overall), device=mean.device)
        factor = torch.linalg.cholesky(covariance + RIDGE * overall.diagonal().mean() * identity)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).transpose(1, 2)
        energy = (whitening * (covariance @ whitening)).sum((1, 2)).mean()
        self.center, self.whitening = own * mean, (whitening / energy.clamp(min=1e-12).sqrt()).contiguous()

    def take_shapes(self, state: dict[str, Tensor]) -> None:
        """Makes room for a state's whitening, which may be that of one position or of many."""
        self.center, self.whitening = torch.empty_like(state["center"]), torch.empty_like(state["whitening"])

    def project(self, patches: Tensor) -> Tensor:
        """Patch features (N, C) of whole images on the basis of the whitening, (N, c)."""
        return (patches - self.mean) @ self.basis

    def dictionary_features(self, patches: Tensor) -> Tensor:
        """Patch features (N, C) of whole images, in order, to the signals that the dictionary models, (N, c)."""
        if self.settings["features"] == "latent":
            return self.flow(patches)[0] / patches.shape[1] ** 0.5
        positions, c = self.center.shape
        signals = self.project(patches).view(-1, positions, c).transpose(0, 1) - self.center[:, None]
        return (signals @ self.whitening).transpose(0, 1).reshape(-1, c)

    def patch_scores(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction errors ||y - D x|| and negative log-likelihoods of patches (N, C), each (N,)."""
        s = self.settings
        t = log_det = None
        if s["features"] == "latent" or s["fusion"] > 0:
            t, log_det = self.flow(patches)
        signals = t / t.shape[1] ** 0.5 if s["features"] == "latent" else self.dictionary_features(patches)
        if s["fusion"] == 1:
            errors = patches.new_zeros(len(patches))
        else:
            errors = residuals(signals, self.atoms, s["nonzeros"], s["error"], s["coder"], self.gram).sqrt()
        nll = negative_log_likelihood(t, log_det) if s["fusion"] > 0 else torch.zeros_like(errors)
        return errors, nll

    def patch_features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (B, 3, H, W) to patch features (B h w, C) and (h, w)."""
        maps = in_slices(lambda part: self.backbone.patch_features(self.backbone(part)), self.backbone, images)
        return maps.permute(0, 2, 3, 1).flatten(0, 2).float(), tuple(maps.shape[-2:])

    def grid(self) -> tuple[int, int]:
        """Patches (h, w) of an image of the detector's size."""
        size = self.settings["size"]
        return self.patch_features(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.threshold.device))[1]

    def patch_map(self, images: Tensor) -> Tensor:
        """Fused patch scores, (B, h, w)."""
        patches, grid = self.patch_features(images)
        # Not len(images): an exported graph would hold it as a constant.
        mean, deviation = self.patch_statistics[:, :1], self.patch_statistics[:, 1:]
        z = (torch.stack(self.patch_scores(patches)) - mean) / deviation
        w = self.settings["fusion"]
        return ((1 - w) * z[0] + w * z[1]).view(images.shape[0], *grid)

    def scores_and_maps(self, images: Tensor, peaks: Callable = separate_peaks) -> Prediction:
        """`forward` as one graph: nothing in it looks at a value."""
        maps = self.patch_map(images)
        locations, top = peaks(maps, self.settings["top"], self.settings["min_distance"])
        full = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(image_scores(top), full, locations)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Scores images, uint8 (B, 3, H, W).

        Raises:
            UserError: scores that are not finite.
        """
        return self.scores_and_maps(images, top_locations_batch)

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
            "format": FORMAT, "version": VERSION, "settings": self.settings, "meta": self.meta,
            "backbone": backbone_settings(self.backbone), "flow": dict(self.flow.settings),
            "state": self.state_dict(),
        }  # fmt: skip
        save_whole(path, content)

    @classmethod
    def from_content(cls, content: dict) -> "Detector":
        """What `save` wrote, read by models.saved; its sizes are held to its tensors before anything of them is made.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError: not written by `save`.
        """
        state, settings, flow = content["state"], content["settings"], content["flow"]
        blocks = {key.split(".")[2] for key in state if key.startswith("flow.blocks.")}
        dim, length = state["basis"].shape
        sizes = (settings["atoms"], flow["dim"], flow["blocks"], flow["hidden"])
        stored = (len(state["atoms"]), dim, len(blocks), len(state["flow.blocks.0.second.net.0.bias"]))
        if sizes != stored:
            raise ValueError(f"its settings say {sizes}, its tensors {stored}")
        if state["whitening"].shape != (len(state["center"]), length, length):
            raise ValueError("its whitening fits no position")
        check_number("size", settings["size"], 32, 8192, whole=True)
        detector = cls(Backbone(weights="none", **content["backbone"]), Flow(**flow), **settings)
        detector.take_shapes(state)
        detector.load_state_dict(state)
        return detector

    @staticmethod
    def load(path: Path, device: str = "cpu", coder: str | None = None) -> "Detector":
        """Reads a detector; see models.saved.load_detector."""
        return load_detector(path, device, coder)
