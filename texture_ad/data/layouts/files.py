"""Files of a folder, and which mask belongs to which image."""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from texture_ad.data.images import IMAGE_SUFFIXES
from texture_ad.errors import UserError
from texture_ad.files import content_digest

Entry = os.DirEntry[str]
Warn = Callable[[UserError], None]  # called with the reason why a folder can't be read
MASK_ENDINGS = ("_mask", "_gt", "_label", "_seg")  # of a mask's name, in any case, after its image's
LISTED = 3  # names in a warning, of all that it counts


def listed(names: Sequence[object]) -> str:
    """Return the first names of a list as text, with dots where there are more.

    Examples:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d"])
        ('a, b', 'a, b, c, ...')
    """
    return ", ".join([*map(str, names[:LISTED]), *(["..."] if len(names) > LISTED else [])])


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds in order of name, without hidden entries."""
    return sorted(Path(entry.path) for entry in _scan(folder))


def _scan(folder: Path) -> list[Entry]:
    """Return what a folder holds, without hidden entries.

    Raises:
        UserError: it can't be read.
    """
    try:
        with os.scandir(folder) as inside:
            return [entry for entry in inside if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: can't be read ({error.strerror}); check the path and its permissions") from error


def files_below(folder: Path) -> list[Path]:
    """Return the files that `scan_files` finds as paths in order of name."""
    return sorted(Path(entry.path) for entry in scan_files(folder))


def scan_files(
    folder: Path, left_out: Callable[[Path], bool] = lambda _: False, warn: Warn | None = None
) -> Iterator[Entry]:
    """Yield all files of a folder and of its sub-folders in no order, without hidden ones.

    Links are followed, but for those that lead back to a folder already seen, or above `folder`. No path is made of a
    file, since a watched folder may hold many thousands.

    Args:
        folder: that is searched.
        left_out: whether a resolved folder is left out with all that it holds.
        warn: called with the reason why a folder can't be read, which is then passed over; None raises it.

    Raises:
        UserError: a folder that can't be read.
    """
    seen = {folder.resolve(), *folder.resolve().parents}
    rest = [] if left_out(folder.resolve()) else [folder]
    while rest:
        place = rest.pop()
        try:
            inside = _scan(place)
        except UserError as error:
            # One that is gone was removed meanwhile, as in a folder that a camera writes to.
            if place == folder or os.path.exists(place):
                if warn is None:
                    raise
                warn(error)
            continue
        folders = []
        for entry in inside:
            if _is(entry.is_dir):
                folders.append(Path(entry.path))
            else:
                yield entry
        for path in sorted(folders):
            resolved = path.resolve()
            if resolved not in seen and not left_out(resolved):
                seen.add(resolved)
                rest.append(path)


def _is(kind: Callable[[], bool]) -> bool:
    """Return what an entry's `is_dir` or `is_file` does; a link in a circle, or to what can't be read, is none."""
    try:
        return kind()
    except OSError:
        return False


def is_image(path: Path) -> bool:
    """Return whether a path is a file with the name of an image."""
    return has_image_name(path.name) and path.is_file()


def is_image_entry(entry: Entry) -> bool:
    """Return what `is_image` does of an entry of a folder."""
    return has_image_name(entry.name) and _is(entry.is_file)


def has_image_name(name: str) -> bool:
    """Return whether the name of a file is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and of its sub-folders in order of name."""
    return [p for p in files_below(folder) if is_image(p)]


def unread(files: Iterable[Path]) -> str:
    """Return the end of a message that names the formats of files that can't be read, "" where there are none."""
    others = sorted({path.suffix or path.name for path in files if not is_image(path)})
    return f"; there are files of formats that can't be read: {listed(others)}" if others else ""


def copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of files that have the same bytes, each file once; only those of one size are read."""
    return [group for same_size in _grouped(paths, _size) for group in _grouped(same_size, content_digest)]


def _grouped(paths: Iterable[Path], told: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Return the groups of at least two files of which the same is told."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        groups[told(path)].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def below_common(paths: Iterable[Path]) -> tuple[Path, list[Path]]:
    """Return the lowest folder that all files lie in, absolute, and each path below it."""
    absolute = [path.absolute() for path in paths]
    top = Path(os.path.commonpath([path.parent for path in absolute]))
    return top, [path.relative_to(top) for path in absolute]


def image_stem(mask: Path) -> str:
    """Return the name, without suffix, of the image that a mask is named after.

    Examples:
        >>> image_stem(Path("7_mask.png")), image_stem(Path("7_GT.png")), image_stem(Path("7.png"))
        ('7', '7', '7')
    """
    ending = next((ending for ending in MASK_ENDINGS if mask.stem.lower().endswith(ending)), "")
    return mask.stem[: len(mask.stem) - len(ending)]


def pair_masks(images: Iterable[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """Return the mask of each image that has one.

    A mask is named as its image is, or with "_mask" or the like after it. Of several with that name an image has the
    one whose folders are most like its own, read from the end: NG/hole/1.png has MASK/hole/1.png, not MASK/cut/1.png.
    Where two are equally like, neither is taken, and no mask serves two images.

    Args:
        images: files of images.
        masks: files of masks.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in masks:
        for stem in {path.stem, image_stem(path)}:
            by_stem[stem].append(path)
    claims: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        mask = _most_alike(image, by_stem.get(image.stem, ()))
        if mask is not None:
            claims[mask].append(image)
    best = {_most_alike(mask, wanting): mask for mask, wanting in claims.items()}
    return {image: mask for image, mask in best.items() if image is not None}


def _most_alike(path: Path, others: Sequence[Path]) -> Path | None:
    """Return the one of other paths whose folders have most in common with those of `path`; None where two have."""
    if len(others) < 2:
        return others[0] if others else None
    by_likeness: dict[int, list[Path]] = defaultdict(list)
    for other in others:
        by_likeness[_common_folders(path, other)].append(other)
    best = by_likeness[max(by_likeness)]
    return best[0] if len(best) == 1 else None


def _common_folders(a: Path, b: Path) -> int:
    """Return how many folders two paths have in common, counted from the file upwards."""
    count = 0
    for one, other in zip(reversed(a.parent.parts), reversed(b.parent.parts), strict=False):
        if one != other:
            break
        count += 1
    return count


def apart_from_masks(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return images, and the masks that lie beside them and are named after them: NAME.png, and NAME_GT.png or such.

    Args:
        images: files of both.
    """
    named = {(path.parent, path.stem) for path in images}

    def is_mask(path: Path) -> bool:
        return image_stem(path) != path.stem and (path.parent, image_stem(path)) in named

    return [path for path in images if not is_mask(path)], [path for path in images if is_mask(path)]
