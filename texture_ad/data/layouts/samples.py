"""What a layout is: photographs for training, calibration and testing, and what is left out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from texture_ad.data.geometry import Shape, Window
from texture_ad.data.images import check_size, header, headers_of, in_turn, read_mask
from texture_ad.data.layouts.files import listed
from texture_ad.errors import UserError
from texture_ad.files import content_digest


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
        mask_frame: which one of the mask's file.
        window: the tile of it that is meant, None for all of it.
        group: what it shares with others, such as a roll or an item; "" where that is not known.
    """

    path: Path
    label: int = 0
    kind: str = "good"
    mask: Path | None = None
    name: str = ""
    frame: int = 0
    mask_frame: int = 0
    window: Window | None = None
    group: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.name)

    @property
    def picture(self) -> tuple[Path, int]:
        """Return its file and which frame of it."""
        return self.path, self.frame

    def read_mask(self, shape: Shape) -> np.ndarray:
        """Return its ground truth, bool (H, W), of an image of this size (H, W); see `images.read_mask`.

        Raises:
            UserError: it can't be used.
        """
        assert self.mask is not None
        return read_mask(self.mask, shape, self.mask_frame)

    def below(self, folder: Path) -> str:
        """Return the path as text, relative to a folder where it lies below; a frame's number comes after "#"."""
        path = self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path
        return f"{path}#{self.frame + 1}" if self.name.endswith(f"#{self.frame + 1}") else str(path)


@dataclass(frozen=True)
class Layout:
    """List the images of one category.

    Args:
        name: of the layout, as in `data.layouts.LAYOUTS`.
        train: the normal images for training, and for calibration where `calibration` has none.
        test: the images for testing, normal and anomalous.
        calibration: the normal images that the layout keeps for calibration, none where it keeps none.
        left_out: what is used for nothing: a word for it, such as "files", to the files.
        labels: files that told what an image is, beside masks.
        undivided: whether normal images for testing are still to be drawn from those for training.
    """

    name: str
    train: list[Sample]
    test: list[Sample]
    calibration: list[Sample] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)
    undivided: bool = False

    @property
    def sides(self) -> dict[str, list[Sample]]:
        """Return the images by the names of the attributes that hold them."""
        return {"train": self.train, "calibration": self.calibration, "test": self.test}

    @property
    def samples(self) -> list[Sample]:
        """Return all images."""
        return self.train + self.calibration + self.test

    def map_sides(self, change: Callable[[list[Sample]], list[Sample]]) -> "Layout":
        """Return a layout with what `change` returns of the images of each side."""
        return replace(self, train=change(self.train), calibration=change(self.calibration), test=change(self.test))


def with_left_out(layout: Layout, files: Iterable[Path]) -> Layout:
    """Return a layout that also lists, as "files", those of some files which it neither uses nor lists yet."""
    known = {path for sample in layout.samples for path in (sample.path, sample.mask)} | set(layout.labels)
    known.update(path for paths in layout.left_out.values() for path in paths)
    rest = [path for path in files if path not in known]
    return replace(layout, left_out=layout.left_out | {"files": rest}) if rest else layout


def with_frames(layout: Layout) -> Layout:
    """Return a layout in which every image of a file that holds several is a sample of its own, named NAME#NUMBER.

    The mask of each is that with its number; the only one of a file with a single mask is that of all.

    Raises:
        UserError: a file of another number of masks.
    """
    files = (path for sample in layout.samples for path in (sample.path, sample.mask) if path)
    counts = {path: image.frames for (path, _), image in headers_of((path, 0) for path in files).items()}

    def split(sample: Sample) -> list[Sample]:
        count = counts.get(sample.path, 1)
        if count == 1:
            return [sample]
        masks = counts.get(sample.mask, 1) if sample.mask else 1
        if masks not in (1, count):
            raise UserError(f"{sample.mask}: {masks} masks for the {count} images of {sample.path}; save one for each")
        one = replace(sample, group=sample.group or str(sample.path))  # a file's images are alike: all train, or none
        return [
            replace(one, name=f"{sample.name}#{frame + 1}", frame=frame, mask_frame=frame if masks > 1 else 0)
            for frame in range(count)
        ]

    return layout.map_sides(lambda samples: list(chain(*map(split, samples))))


def mask_marks(samples: list[Sample]) -> list[bool]:
    """Return whether each sample has a mask that marks a pixel.

    Raises:
        UserError: masks that can't be used; the message counts and names them.
    """
    marks = read_marks(samples)
    faults = [mark for mark in marks if isinstance(mark, UserError)]
    if faults:
        others = f" ({len(faults)} masks can't be used, also {listed(faults[1:])})" if faults[1:] else ""
        raise UserError(f"{faults[0]}{others}")
    return [mark is True for mark in marks]


def read_marks(samples: Sequence[Sample]) -> list[bool | UserError]:
    """Return of each sample whether it has a mask that marks a pixel, or why its mask can't be used."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_mask_marks, samples))


def _mask_marks(sample: Sample) -> bool | UserError:
    """Return whether a sample has a mask that marks a pixel, or why the mask can't be used."""
    if sample.mask is None:
        return False
    try:
        shape = header(sample.path, sample.frame).shape
        check_size(sample.path, shape)
    except UserError:
        return True  # the image's reader says what is wrong with it
    try:
        with in_turn(sample.mask):
            return bool(sample.read_mask(shape).any())
    except UserError as error:
        return error


def check_masks(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Read the masks of anomalous images, and take from an image the mask that marks no pixel.

    Args:
        samples: of which some have masks.

    Returns:
        The samples, and those of them that are anomalous and without a mask, where any has one.

    Raises:
        UserError: masks that can't be used; the message counts and names them.
    """
    marks = mask_marks(samples)
    checked = [sample if mark else replace(sample, mask=None) for sample, mark in zip(samples, marks, strict=True)]
    without = [sample for sample in checked if sample.label and sample.mask is None]
    return checked, without if any(sample.mask for sample in samples) else []


def fingerprint(layout: Layout, folder: Path, others: Iterable[Path] = ()) -> str:
    """Return 16 hexadecimal digits that stand for all images, what each is used for, and their masks.

    Args:
        layout: the images.
        folder: of the category; names are relative to it.
        others: files whose bytes count as well.
    """
    digest_of = cache(content_digest)  # a file is read once, not once for each of its frames
    total = hashlib.sha256()
    for side, samples in layout.sides.items():
        for sample in samples:
            total.update(os.fsencode(f"{side} {sample.kind} {sample.below(folder)}"))
            for path in filter(None, (sample.path, sample.mask)):
                total.update(digest_of(path))
    for path in others:
        total.update(digest_of(path))
    return total.hexdigest()[:16]
