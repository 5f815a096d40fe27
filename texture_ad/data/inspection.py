"""What a folder holds before anything is trained: sizes, modes, copies, and what is wrong with single files."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from texture_ad.data.images import Frames, Reading, header, in_turn, read_image
from texture_ad.data.layouts import Layout, copies, listed, with_frames
from texture_ad.data.pictures import rounded
from texture_ad.data.roi import Roi, one_colour
from texture_ad.errors import UserError

HASH_SIDE = 16  # of a perceptual hash; it has as many bits as its square
# Share of the bits in which near-duplicates differ, at most. Of 4 real textures two photographs of other places differ
# in 22 % at least, a copy that is scaled and brighter in 4 % at most.
NEAR = 0.1
ROWS = 1024  # hashes that are compared with all at a time


@dataclass(frozen=True)
class File:
    """Describe one image file.

    Args:
        path: of the file.
        frame: which one of a file that holds several.
        shape: (height, width) in pixels, None where it can't be read.
        mode: Pillow's name of its mode, and its depth where that doesn't tell it, "" where it can't be read.
        hash: bits of its perceptual hash, None where it can't be read or no hash was asked for.
        problem: why a run would refuse it, "" where it wouldn't.
    """

    path: Path
    frame: int = 0
    shape: tuple[int, int] | None = None
    mode: str = ""
    hash: np.ndarray | None = field(default=None, repr=False, compare=False)
    problem: str = ""


def can_hash() -> bool:
    """Return whether the package that makes perceptual hashes is installed."""
    return find_spec("imagehash") is not None


def inspect_files(
    pictures: Iterable[tuple[Path, int]],
    reading: Reading,
    varied: bool = False,
    roi: Roi | None = None,
    hashed: bool = True,
) -> list[File]:
    """Decode images and return what they are, each once.

    Args:
        pictures: files, and which frame of each.
        reading: how they are read.
        varied: refuse an image of one colour, from which nothing can be learnt.
        roi: the region of interest, in which it has to vary.
        hashed: find perceptual hashes, where their package is installed.
    """
    hashed = hashed and can_hash()

    def inspect(picture: tuple[Path, int]) -> File:
        with in_turn(picture[0]):
            return _decoded(*picture, reading, varied, roi, hashed)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(inspect, dict.fromkeys(pictures)))


def _decoded(path: Path, frame: int, reading: Reading, varied: bool, roi: Roi | None, hashed: bool) -> File:
    try:
        image = header(path, frame)
        values = read_image(path, reading, frame)
    except UserError as error:
        return File(path, frame, problem=str(error))
    deeper = " of more than 8 bits" if image.deep and image.mode in ("L", "LA", "RGB", "RGBA") else ""
    pixels = rounded(values)
    # Without levels from the training images, dark ones of more than 8 bits may be rounded to one colour.
    told = values if reading.levels is None else pixels
    told = told.reshape(-1, 3) if roi is None else told[roi.at(image.shape).numpy()]
    problem = one_colour(path, roi) if varied and (told == told[:1]).all() else ""
    # Frames of one file are as a rule near-duplicates of each other, of which there is nothing to tell.
    bits = perceptual_hash(pixels) if hashed and not frame else None
    return File(path, frame, image.shape, image.mode + deeper, bits, problem)


def without_unusable(layout: Layout, frames: Frames, roi: Roi | None = None) -> Layout:
    """Return a layout without the images for which a run would be refused; they are left out.

    Args:
        layout: the images, whose files are all decoded.
        frames: which are read of a file that holds several; one that can't be used spoils its file.
        roi: the region of interest, in which normal images have to vary.
    """
    reading = Reading(frames=frames)
    read = with_frames(layout) if frames == "all" else layout
    normal = (sample.picture for sample in read.train + read.calibration)
    found = inspect_files(normal, reading, True, roi, hashed=False)
    found += inspect_files((sample.picture for sample in read.test), reading, hashed=False)
    unusable = dict.fromkeys(file.path for file in found if file.problem)
    if not unusable:
        return layout
    kept = layout.map_sides(lambda samples: [sample for sample in samples if sample.path not in unusable])
    return replace(kept, left_out=layout.left_out | {"unusable images": list(unusable)})


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """Return the bits (HASH_SIDE²,) of an image's coarse frequencies, pixels uint8 (H, W, 3); see imagehash.phash."""
    import imagehash

    return imagehash.phash(Image.fromarray(pixels), HASH_SIDE).hash.ravel()


def near_duplicates(files: Iterable[File]) -> list[list[Path]]:
    """Return the groups of files whose hashes differ in few bits, by links from one to the next; copies among them."""
    hashed = [file for file in files if file.hash is not None]
    if not hashed:
        return []
    # Of signs, the product counts bits that agree less those that don't.
    signs = np.array([file.hash for file in hashed], np.float32).reshape(len(hashed), -1) * 2 - 1
    bits = signs.shape[1]
    everyone = first = np.arange(len(hashed))  # of each file, the first in its group
    for start in range(0, len(signs), ROWS):
        near, other = np.nonzero((bits - signs[start : start + ROWS] @ signs.T) / 2 <= NEAR * bits)
        links = np.concatenate((near + start, everyone)), np.concatenate((other, first))
        graph = coo_array((np.ones(len(links[0]), bool), links), shape=(len(hashed), len(hashed)))
        group = connected_components(graph, directed=False)[1]
        first = np.unique(group, return_index=True)[1][group]
    groups: dict[int, list[Path]] = defaultdict(list)
    for file, leader in zip(hashed, first.tolist(), strict=True):
        groups[leader].append(file.path)
    return [group for group in groups.values() if len(group) > 1]


def described(files: Sequence[File]) -> str:
    """Return sizes and modes of files as text, the commonest first, each with its number where there are several.

    Examples:
        >>> described([File(Path("a"), 0, (4, 8), "L"), File(Path("b"), 0, (4, 8), "RGB")])
        '8 x 4 px; L (1), RGB (1)'
    """
    sizes = Counter("{1} x {0} px".format(*file.shape) for file in files if file.shape)
    modes = Counter(file.mode for file in files if file.mode)
    return "; ".join(part for part in map(_counted, (sizes, modes)) if part)


def _counted(counts: Counter[str]) -> str:
    if len(counts) < 2:
        return "".join(counts)
    return listed([f"{name} ({count})" for name, count in counts.most_common()])


def copy_lines(sides: dict[str, list[File]], folder: Path) -> Iterator[str]:
    """Yield a line about groups of copies, and one about near-duplicates, for the sides that share some.

    Args:
        sides: "training" and the like, to their files.
        folder: that names are relative to.
    """
    side_of = {file.path: side for side, files in sides.items() for file in files}
    # Frames of one file may lie on several sides.
    files = {file.path: file for group in sides.values() for file in group if file.shape and not file.frame}.values()
    same = copies(file.path for file in files)
    one_content = [set(group) for group in same]
    near = [group for group in near_duplicates(files) if not any(set(group) <= content for content in one_content)]
    for what, groups in (("copies", same), ("near-duplicates", near)):
        by_sides: dict[tuple[str, ...], list[list[Path]]] = defaultdict(list)
        for group in groups:
            by_sides[tuple(dict.fromkeys(side_of[path] for path in group))].append(group)
        for between, found in by_sides.items():
            count = sum(map(len, found))
            too_good = "; the metrics will be too good" if between[1:] and "test" in between else ""
            named = listed([_named(group, folder) for group in sorted(found, key=len, reverse=True)])
            yield f"{what} in {', '.join(between)}: {count} images in {len(found)} groups: {named}{too_good}"


def _named(group: Sequence[Path], folder: Path) -> str:
    """Return the first and the last image of a group, which are of different sides where it has several."""
    first, last = (path.relative_to(folder) if path.is_relative_to(folder) else path for path in (group[0], group[-1]))
    return f"({first}, {last}{f' and {len(group) - 2} more' if group[2:] else ''})"
