"""Which image is what: a category's folder in MVTec AD's layout, listed and checked.

Bergmann, Fauser, Sattlegger, Steger: MVTec AD, CVPR 2019.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from texture_ad.data.geometry import Window
from texture_ad.data.images import IMAGE_SUFFIXES, check_size, frames_of, header, read_mask
from texture_ad.errors import UserError

MASK_ENDINGS = ("_mask", "_gt", "_label", "_seg")  # of a mask's name, in any case, after its image's
LISTED = 3  # names in a warning, of all that it counts


@dataclass(frozen=True)
class Sample:
    """Describe one photograph.

    Args:
        path: of its file.
        label: 0 for normal, 1 for anomalous.
        kind: "good", or the name of the defect's folder.
        mask: file of its ground truth, None without one.
        name: that no other photograph of its kind has: the path below the kind's folder; empty for the file's name.
        frame: which one of a file that holds several.
        window: the tile of it that is meant, None for all of it.
    """

    path: Path
    label: int = 0
    kind: str = "good"
    mask: Path | None = None
    name: str = ""
    frame: int = 0
    window: Window | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.name)

    def below(self, folder: Path) -> str:
        """Return the path as text, relative to a folder where it lies below; a frame's number comes after "#"."""
        path = self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path
        return f"{path}#{self.frame + 1}" if self.name.endswith(f"#{self.frame + 1}") else str(path)


@dataclass(frozen=True)
class Layout:
    """List the images of one category.

    Args:
        train: the normal images for training and calibration.
        test: the images of the test folder, normal and anomalous.
        left_out: files of the category's folder that are used for nothing.
    """

    train: list[Sample]
    test: list[Sample]
    left_out: list[Path] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """Return all images."""
        return self.train + self.test

    @property
    def has_masks(self) -> bool:
        """Return whether an anomalous test image has a mask."""
        return any(sample.mask for sample in self.test)


def listed(names: Sequence[object]) -> str:
    """Return the first names of a list as text, with dots where there are more.

    Examples:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d"])
        ('a, b', 'a, b, c, ...')
    """
    return ", ".join([*map(str, names[:LISTED]), *(["..."] if len(names) > LISTED else [])])


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds in order of name, without hidden entries."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: can't be read ({error.strerror}); check the path and its permissions") from error


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder and of its sub-folders in order of name, without hidden ones.

    Links are followed, but for those that lead back to a folder already seen, or above `folder`.
    """
    seen = {folder.resolve(), *folder.resolve().parents}
    found: list[Path] = []
    rest = [folder]
    while rest:
        for entry in _entries(rest.pop()):
            if not entry.is_dir():
                found.append(entry)
            elif entry.resolve() not in seen:
                seen.add(entry.resolve())
                rest.append(entry)
    return sorted(found)


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and of its sub-folders in order of name."""
    return [p for p in files_below(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def require_images(folder: Path, count: int = 2) -> list[Path]:
    """Return the images of a folder and of its sub-folders, at least `count`.

    Raises:
        UserError: fewer; the message names files of formats that can't be read.
    """
    images = images_below(folder)
    if len(images) < count:
        others = sorted({p.suffix or p.name for p in files_below(folder)} - {p.suffix for p in images})
        unread = f"; it also holds files of formats that can't be read: {listed(others)}" if others else ""
        raise UserError(f"{folder}: {len(images)} images; at least {count} are needed{unread}")
    return images


def mask_key(path: Path, folder: Path) -> str:
    """Return what an image and its mask have in common: the path below their folders without suffix and mask's ending.

    Examples:
        >>> mask_key(Path("masks/hole/b1/7_mask.png"), Path("masks/hole"))
        'b1/7'
    """
    name = path.relative_to(folder).with_suffix("").as_posix()
    ending = next((ending for ending in MASK_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def kind_samples(kind: Path, truth: Path | None, label: int, name: str) -> list[Sample]:
    """Return the images of one kind with their masks.

    A mask has its image's path below the folder, or its image's name where no other mask has it.

    Args:
        kind: folder of the images.
        truth: folder of the masks, None or missing for none.
        label: 0 for normal, 1 for anomalous.
        name: of the kind.
    """
    masks = {mask_key(p, truth): p for p in images_below(truth)} if label and truth and truth.is_dir() else {}
    by_name = {key.rpartition("/")[2]: path for key, path in masks.items()}
    alone = len(by_name) == len(masks)
    samples = []
    for path in images_below(kind):
        below = path.relative_to(kind)
        key = below.with_suffix("").as_posix()
        mask = masks.get(key) or (by_name.get(path.stem) if alone else None)
        samples.append(Sample(path, label, name, mask, below.as_posix()))
    return samples


def _training_samples(folder: Path) -> list[Sample]:
    """Return the images of train/good, and refuse a train folder that holds others."""
    good = folder / "train" / "good"
    if not good.is_dir():
        raise UserError(f"{folder}: has no train/good; put the defect-free training images there")
    for other in _entries(folder / "train"):
        if other.is_dir() and other.name != "good" and images_below(other):
            raise UserError(f"{other}: training uses defect-free images only; move these to {folder / 'test'}")
    require_images(good)
    return kind_samples(good, None, 0, "good")


def _test_samples(folder: Path) -> list[Sample]:
    """Return the images of all folders test/<kind>; an empty list without a test folder."""
    test = folder / "test"
    kinds = [p for p in _entries(test) if p.is_dir()] if test.is_dir() else []
    return [
        sample
        for kind in kinds
        for sample in kind_samples(kind, folder / "ground_truth" / kind.name, int(kind.name != "good"), kind.name)
    ]


def scan(folder: Path) -> Layout:
    """List the images of one category: train/good, test/<kind> and, optionally, ground_truth/<kind>.

    All sub-folders are searched. Masks are named <image>_mask.<suffix> or <image>.<suffix>. A test folder and masks
    may be missing.

    Args:
        folder: of the category.

    Raises:
        UserError: the layout is not as described; the message names the first path that is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one laid out as MVTec AD is")
    return with_left_out(folder, Layout(_training_samples(folder), _test_samples(folder)))


def with_left_out(folder: Path, layout: Layout) -> Layout:
    """Return a layout that lists the files of a folder which it uses for nothing."""
    used = {path for sample in layout.samples for path in (sample.path, sample.mask)}
    return replace(layout, left_out=[path for path in files_below(folder) if path not in used])


def with_frames(layout: Layout) -> Layout:
    """Return a layout in which every image of a file that holds several is a sample of its own, named NAME#NUMBER."""
    counts = frames_of(sample.path for sample in layout.samples)

    def split(samples: list[Sample]) -> list[Sample]:
        return [
            replace(sample, name=f"{sample.name}#{frame + 1}", frame=frame) if counts[sample.path] > 1 else sample
            for sample in samples
            for frame in range(counts[sample.path])
        ]

    return replace(layout, train=split(layout.train), test=split(layout.test))


def check_masks(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Read the masks of anomalous images, and take from an image the mask that marks no pixel.

    Args:
        samples: of which some have masks.

    Returns:
        The samples, and those of them that are anomalous and without a mask, where any has one.

    Raises:
        UserError: masks that can't be used; the message counts and names them.
    """
    with ThreadPoolExecutor() as pool:
        marks = list(pool.map(_mask_marks, samples))
    faults = [mark for mark in marks if isinstance(mark, UserError)]
    if faults:
        others = f" ({len(faults)} masks can't be used, also {listed(faults[1:])})" if faults[1:] else ""
        raise UserError(f"{faults[0]}{others}")
    checked = [sample if mark else replace(sample, mask=None) for sample, mark in zip(samples, marks, strict=True)]
    without = [sample for sample in checked if sample.label and sample.mask is None]
    return checked, without if any(sample.mask for sample in samples) else []


def _mask_marks(sample: Sample) -> bool | UserError:
    """Return whether a sample has a mask that marks a pixel, or why the mask can't be used."""
    if sample.mask is None:
        return False
    try:
        width, height, _ = header(sample.path)
        check_size(sample.path, width, height)
    except UserError:
        return True  # the image's reader says what is wrong with it
    try:
        return bool(read_mask(sample.mask, (height, width)).any())
    except UserError as error:
        return error


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


def calibration_folds(samples: list[Sample], fraction: float, seed: int) -> list[list[Sample]]:
    """Cut normal images into folds as large as the calibration images of `split_calibration`, which are the first fold.

    Args:
        samples: at least two normal images.
        fraction: share of the images in a fold; the last one holds what is left.
        seed: of the split.
    """
    rest, fold = split_calibration(samples, fraction, seed)
    folds = [fold]
    size = len(fold)
    while len(rest) > size:
        rest, fold = split_calibration(rest, size / len(rest), seed)
        folds.append(fold)
    return [*folds, rest]


def fingerprint(layout: Layout, folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the names and bytes of all training and test images.

    Args:
        layout: the images.
        folder: of the category; names are relative to it.
    """
    total = hashlib.sha256()
    for sample in layout.samples:
        total.update(os.fsencode(sample.below(folder)))
        total.update(hashlib.sha256(sample.path.read_bytes()).digest())
    return total.hexdigest()[:16]
