"""Look into a trained detector: features before and after each learnt step, and crops that use each atom most."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_matrix
from torch import Tensor

from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.sparse import omp_spams

if TYPE_CHECKING:
    from texture_ad.data.datamodule import TextureDataModule

IMAGES = 32  # that are looked at, about
POSITIONS = 16  # of each class from each image, for t-SNE
ATOMS = 64
CROPS = 4  # of each atom
CROP_CELLS = 3  # cells of the patch map that a crop is wide


def patch_labels(masks: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which positions of the patch maps are sure to be normal or anomalous.

    Args:
        masks: bool (B, H, W), True = defect.
        labels: (B,) 0 normal, 1 anomalous.
        grid: (h, w) of the patch map.

    Returns:
        (B, h, w): 0 where a position's cell holds no pixel of a defect; 1 where half of it is a defect, or more of it
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
    pretrained: Backbone | None, detector: FusionDetector, data: "TextureDataModule", seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return patch features of the test images before and after each learnt step.

    Args:
        pretrained: the backbone as it was before stage 1, None where it had no weights.
        detector: after stage 2.
        data: the test images.
        seed: of the choice of positions.

    Returns:
        A step's name to features (N, C) of the same N positions, and their labels (N,). Without masks the patch
        features of an image are averaged and take the image's label.
    """
    generator = torch.Generator().manual_seed(seed)
    backbones = {"after the pretext": detector.backbone}
    if pretrained is not None:
        backbones = {"pretrained backbone": pretrained.to(detector.device).eval()} | backbones
    parts = []
    labels = []
    for number in _evenly(len(data.test_samples)):
        batch = data.test_batch([number])
        found, grid = _features_of_each_step(backbones, detector, batch["image"])
        if data.has_masks:
            chosen, known = _choose(patch_labels(batch["mask"], batch["label"], grid).flatten(), generator)
            parts.append({name: one[chosen.to(one.device)] for name, one in found.items()})
            labels.append(known)
        else:
            parts.append({name: one.mean(0, keepdim=True) for name, one in found.items()})
            labels.append(batch["label"])
    steps = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if pretrained is not None and torch.equal(steps["pretrained backbone"], steps["after the pretext"]):
        del steps["after the pretext"]  # which left the backbone as it was
    return {name: one.cpu().numpy() for name, one in steps.items()}, torch.cat(labels).numpy()


def _evenly(count: int) -> list[int]:
    """Return up to IMAGES numbers below `count`, evenly spaced."""
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, min(count, IMAGES))})


def _features_of_each_step(
    backbones: dict[str, Backbone], detector: FusionDetector, images: Tensor
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return a step's name to the features (B h w, C) of all positions, and (h, w)."""
    quarters = detector.whitening.quarters
    maps = {name: backbone.extract(images.to(detector.device), quarters) for name, backbone in backbones.items()}
    channels = sum(detector.whitening.settings["channels"])
    found = {name: flatten_patches(one[:, -channels:]) for name, one in maps.items()}
    whitened = detector.whitening(flatten_patches(maps["after the pretext"]))
    found["whitened"] = detector.layer_features(whitened)
    found["after the flow"] = detector.flow(detector.flow_features(whitened))[0].reshape(len(whitened), -1)
    height, width = maps["after the pretext"].shape[-2:]
    return found, (height, width)


def _choose(known: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return up to POSITIONS indices of each class among labels (N,), and the labels of these."""
    drawn = [torch.nonzero(known == label).flatten() for label in (0, 1)]
    chosen = torch.cat([one[torch.randperm(len(one), generator=generator)[:POSITIONS]] for one in drawn])
    return chosen, known[chosen]


class AtomCrops(NamedTuple):
    """Hold, for the most used atoms, the crops of training images that use each most."""

    crops: list[np.ndarray]  # for each atom (m, p, p, 3) uint8, the heaviest user first
    ids: list[int]  # numbers of the atoms
    usage: list[float]  # share of all positions whose code uses the atom, in [0, 1]


class _Codes(NamedTuple):
    """Hold how some training images use each of the K atoms."""

    images: list[np.ndarray]  # n images (H, W, 3) uint8
    weights: np.ndarray  # (n, K) largest weight of an atom in an image
    positions: np.ndarray  # (n, K) where on the flat patch map that is
    usage: np.ndarray  # (K,) share of all positions whose code uses an atom
    grid: tuple[int, int]


@torch.no_grad()
def atom_crops(
    detector: FusionDetector, data: "TextureDataModule", num_atoms: int = ATOMS, num_crops: int = CROPS
) -> AtomCrops:
    """Return crops of training images that use the most used atoms most, one crop from an image.

    Args:
        detector: after stage 2.
        data: the training images.
        num_atoms: at most so many.
        num_crops: of an atom at most; each is three cells of the patch map wide.
    """
    codes = _codes(detector, data)
    chosen = [int(k) for k in np.argsort(-codes.usage, kind="stable")[:num_atoms] if codes.usage[k]]
    size = data.geometry.size
    side = min(CROP_CELLS * max(size) // max(codes.grid), *size)
    crops = [_crops(codes, k, num_crops, side) for k in chosen]
    return AtomCrops(crops, chosen, [float(codes.usage[k]) for k in chosen])


def _codes(detector: FusionDetector, data: "TextureDataModule") -> _Codes:
    images: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    used = np.zeros(len(detector.dictionary.atoms))
    count = 0
    # The dictionary's own batches, whose features a sweep has at hand.
    for batch in data.normal_dataloader():
        features = detector.patch_features(batch["image"].to(detector.device))
        grid = (features.shape[2], features.shape[3])
        codes = _absolute_codes(detector, flatten_patches(features))
        used = used + codes.getnnz(axis=1)
        count = count + codes.shape[1]
        size = grid[0] * grid[1]
        for i, image in enumerate(batch["image"]):
            part = codes[:, i * size : (i + 1) * size].toarray()
            images.append(image.permute(1, 2, 0).numpy())
            weights.append(part.max(1))
            positions.append(part.argmax(1))
        if len(images) >= IMAGES:
            break
    return _Codes(images, np.stack(weights), np.stack(positions), used / count, grid)


def _absolute_codes(detector: FusionDetector, patches: Tensor) -> csc_matrix:
    """Return the absolute codes of patch features (N, C), a sparse matrix (K, N)."""
    dictionary = detector.dictionary
    features = detector.dictionary_features(detector.whitening(patches)).cpu()
    return abs(omp_spams(features, dictionary.atoms.cpu(), dictionary.nonzeros, dictionary.error))


def _crops(codes: _Codes, atom: int, count: int, side: int) -> np.ndarray:
    """Return up to `count` crops (m, side, side, 3) uint8 that use an atom most, the heaviest user first."""
    weights = codes.weights[:, atom]
    best = [i for i in np.argsort(-weights, kind="stable")[:count] if weights[i] > 0]
    cells = [divmod(int(codes.positions[i, atom]), codes.grid[1]) for i in best]
    return np.stack([_crop(codes.images[i], cell, codes.grid, side) for i, cell in zip(best, cells, strict=True)])


def _crop(image: np.ndarray, cell: tuple[int, int], grid: tuple[int, int], side: int) -> np.ndarray:
    """Return the part (side, side, 3) of an image round a cell of its patch map."""
    starts = [
        min(max(round((c + 0.5) * size / n - side / 2), 0), size - side)
        for c, n, size in zip(cell, grid, image.shape[:2], strict=True)
    ]
    top, left = starts
    return image[top : top + side, left : left + side]
