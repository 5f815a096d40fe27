"""Which image is what: a category's folder in MVTec AD's layout, listed and checked.

Bergmann, Fauser, Sattlegger, Steger: MVTec AD, CVPR 2019.
"""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from texture_ad.data.geometry import Window
from texture_ad.data.images import IMAGE_SUFFIXES
from texture_ad.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Describe one photograph.

    Args:
        path: of its file.
        label: 0 for normal, 1 for anomalous.
        kind: "good", or the name of the defect's folder.
        mask: file of its ground truth, None without one.
        window: the tile of it that is meant, None for all of it.
    """

    path: Path
    label: int = 0
    kind: str = "good"
    mask: Path | None = None
    window: Window | None = None


@dataclass(frozen=True)
class Layout:
    """List the images of one category.

    Args:
        train: the normal images of train/good.
        test: the images of the test folder, normal and anomalous.
        has_masks: whether the anomalous test images have masks.
    """

    train: list[Sample]
    test: list[Sample]
    has_masks: bool


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds in order of name, without hidden entries."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: can't be read ({error.strerror}); check the path and its permissions") from error


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder in order of name."""
    return [p for p in _entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def _training_samples(folder: Path) -> list[Sample]:
    """Return the images of train/good, and refuse a train folder that holds others."""
    good = folder / "train" / "good"
    if not good.is_dir():
        raise UserError(f"{folder}: has no train/good; put the defect-free training images there")
    for other in _entries(folder / "train"):
        if other.is_dir() and other.name != "good" and _images(other):
            raise UserError(f"{other}: training uses defect-free images only; move these to {folder / 'test'}")
    samples = [Sample(path) for path in _images(good)]
    if len(samples) < 2:
        raise UserError(f"{good}: {len(samples)} images; at least 2 are needed")
    return samples


def _kind_samples(kind: Path, truth: Path) -> list[Sample]:
    """Return the images of one folder test/<kind> with their masks in the folder `truth`, where there are any."""
    label = int(kind.name != "good")
    masks = {p.stem.removesuffix("_mask"): p for p in _images(truth)} if label and truth.is_dir() else {}
    return [Sample(path, label, kind.name, masks.get(path.stem)) for path in _images(kind)]


def _test_samples(folder: Path) -> list[Sample]:
    """Return the images of all folders test/<kind>; an empty list without a test folder."""
    test = folder / "test"
    kinds = [p for p in _entries(test) if p.is_dir()] if test.is_dir() else []
    return [sample for kind in kinds for sample in _kind_samples(kind, folder / "ground_truth" / kind.name)]


def scan(folder: Path) -> Layout:
    """List the images of one category: train/good, test/<kind> and, optionally, ground_truth/<kind>.

    Masks are named <image>_mask.<suffix> or <image>.<suffix>. A test folder may be missing.

    Args:
        folder: of the category.

    Raises:
        UserError: the layout is not as described; the message names the first path that is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one laid out as MVTec AD is")
    train = _training_samples(folder)
    test = _test_samples(folder)
    has_masks = any(s.mask for s in test)
    missing = next((s.path for s in test if s.label and s.mask is None), None)
    if has_masks and missing:
        truth = folder / "ground_truth"
        raise UserError(f"{missing}: has no mask under {truth} while others do; add it, or remove {truth}")
    return Layout(train, test, has_masks)


def duplicates(layout: Layout) -> list[tuple[Path, Path]]:
    """Return all pairs (training file, test file) with identical bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for sample in layout.train:
        by_size[sample.path.stat().st_size].append(sample.path)

    @cache
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return [
        (a, s.path) for s in layout.test for a in by_size.get(s.path.stat().st_size, ()) if digest(a) == digest(s.path)
    ]


def split_calibration(samples: list[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split normal images at random into training and calibration images, at least one each.

    Args:
        samples: at least two normal images.
        fraction: share of the images that are calibration images.
        seed: of the split.

    Returns:
        The training images and the calibration images, both in the order of `samples`.
    """
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(1, round(fraction * len(samples))), len(samples) - 1)
    calibration = [samples[i] for i in sorted(order[:count])]
    return [samples[i] for i in sorted(order[count:])], calibration


def fingerprint(layout: Layout, folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the names and bytes of all training and test images.

    Args:
        layout: the images.
        folder: of the category; names are relative to it.
    """
    total = hashlib.sha256()
    for sample in layout.train + layout.test:
        total.update(os.fsencode(sample.path.relative_to(folder)))
        total.update(hashlib.sha256(sample.path.read_bytes()).digest())
    return total.hexdigest()[:16]
