"""What a trained detector's features and atoms look like: the figures that need the models, not only their scores."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.errors import UserError
from texture_ad.methods.fusion.detector import Detector
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.sparse import omp_spams
from texture_ad.reporting import figures

IMAGES = 32  # that the figures look at, about
PATCHES = 16  # of each class from each image, for t-SNE


def write_feature_figures(config: DictConfig, detector: Detector, data: TextureDataModule, folder: Path) -> None:
    """Writes tsne.png, and atoms.png where atoms are used, into the run folder.

    Args:
        config: of the run; its backbone is made anew, as it was before stage 1.
        detector: after stage 2.
        data: test images for t-SNE, training images for the atoms.
        folder: of the run.
    """
    pretrained = None if config.backbone.weights == "none" else instantiate(config.backbone)
    try:
        features, labels = sample_features(pretrained, detector, data, config.seed)
        unit = "patches" if data.has_masks else "images"
        figures.tsne(features, labels, folder / "tsne.png", data.source_name, unit, seed=config.seed)
    except UserError as error:
        print(f"warning: no t-SNE, {error}", flush=True)
    if detector.settings["nonzeros"] > 0:
        figures.atoms(*atom_patches(detector, data), folder / "atoms.png", data.source_name)


def _evenly(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, IMAGES))})


def patch_labels(masks: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches are sure to be normal or anomalous.

    Args:
        masks: bool (B, H, W), True = defect.
        labels: (B,) 0 normal, 1 anomalous.
        grid: patches (h, w) of an image.

    Returns:
        (B, h, w): 0 where a patch's cell holds no pixel of a defect; 1 where half of it is a defect, or more of it
        than of any other cell of the image; -1 elsewhere, and all over an anomalous image without a mask.
    """
    share = F.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0]
    most = share.amax((1, 2), keepdim=True)
    anomalous = (share >= 0.5) | ((share == most) & (most > 0))
    found = torch.where(anomalous, 1, torch.where(share > 0, -1, 0))
    found[(labels == 1) & (most.flatten() == 0)] = -1
    return found


@torch.no_grad()
def sample_features(
    pretrained: Backbone | None, detector: Detector, data: TextureDataModule, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Patch features of the test images before and after each learnt step.

    Returns:
        A step's name to features (N, C) of the same N patches, and their labels (N,). Without masks the patches of
        an image are averaged and take the image's label.
    """
    generator = torch.Generator().manual_seed(seed)
    device = detector.threshold.device
    backbones = {"after the pretext": detector.backbone}
    if pretrained is not None:
        backbones = {"pretrained backbone": pretrained.to(device).eval()} | backbones
    steps = {name: [] for name in (*backbones, "whitened", "after the flow")}
    labels = []
    for i in _evenly(len(data.test_samples)):
        batch = data.test_batch([i])
        image = batch["image"].to(device)
        maps = {name: backbone.extract(image) for name, backbone in backbones.items()}
        found = {name: flatten_patches(one) for name, one in maps.items()}
        found["whitened"] = detector.whitening(found["after the pretext"])
        found["after the flow"] = detector.flow(found["whitened"])[0]
        if data.has_masks:
            known = patch_labels(batch["mask"], batch["label"], maps["after the pretext"].shape[-2:]).flatten()
            drawn = [torch.nonzero(known == label).flatten() for label in (0, 1)]
            chosen = torch.cat([d[torch.randperm(len(d), generator=generator)[:PATCHES]] for d in drawn])
            labels.append(known[chosen])
            chosen = chosen.to(device)
        else:
            labels.append(batch["label"])
        for name, one in found.items():
            steps[name].append(one[chosen] if data.has_masks else one.mean(0, keepdim=True))
    steps = {name: torch.cat(parts) for name, parts in steps.items()}
    if pretrained is not None and torch.equal(steps["pretrained backbone"], steps["after the pretext"]):
        del steps["after the pretext"]  # which left the backbone as it was
    return {name: value.cpu().numpy() for name, value in steps.items()}, torch.cat(labels).numpy()


@torch.no_grad()
def atom_patches(
    detector: Detector, data: TextureDataModule, atoms: int = 64, each: int = 4
) -> tuple[list[np.ndarray], list[int], list[float]]:
    """The most used atoms and the patches of training images whose codes use each most, one patch an image.

    Returns:
        For each atom its patches (m, p, p, 3) uint8, heaviest first, each three cells wide; the atoms' numbers; the
        share of all patches that use each, in [0, 1].
    """
    s = detector.settings
    images = []
    weights = []
    places = []
    used = np.zeros(len(detector.atoms))
    count = 0
    # The dictionary's own batches, whose features a sweep has at hand.
    for batch in data.normal_dataloader():
        patches, grid = detector.patch_features(batch["image"].to(detector.threshold.device))
        features = detector.dictionary_features(patches).cpu()
        codes = abs(omp_spams(features, detector.atoms.cpu(), s["nonzeros"], s["error"]))  # (K, B h w)
        used = used + codes.getnnz(axis=1)
        count = count + codes.shape[1]
        size = grid[0] * grid[1]
        for i, image in enumerate(batch["image"]):
            part = codes[:, i * size : (i + 1) * size].toarray()
            images.append(image.permute(1, 2, 0).numpy())
            weights.append(part.max(1))
            places.append(part.argmax(1))
        if len(images) >= IMAGES:
            break
    weights = np.stack(weights)  # (images, K)
    places = np.stack(places)
    chosen = [int(k) for k in np.argsort(-used, kind="stable")[:atoms] if used[k]]
    side = min(3 * data.size // max(grid), data.size)
    crops = []
    for k in chosen:
        best = [i for i in np.argsort(-weights[:, k], kind="stable")[:each] if weights[i, k] > 0]
        cells = [np.unravel_index(places[i, k], grid) for i in best]
        crops.append(np.stack([_crop(images[i], cell, grid, side) for i, cell in zip(best, cells, strict=True)]))
    return crops, chosen, [float(used[k] / count) for k in chosen]


def _crop(image: np.ndarray, cell: tuple[int, int], grid: tuple[int, int], side: int) -> np.ndarray:
    size = len(image)
    middles = [(c + 0.5) * size / n for c, n in zip(cell, grid, strict=True)]
    top, left = (min(max(round(m - side / 2), 0), size - side) for m in middles)
    return image[top : top + side, left : left + side]
