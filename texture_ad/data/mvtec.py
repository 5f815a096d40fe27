"""MVTec AD's folder layout: checking it, and importing the archives that MVTec offers.

A category is a folder with

    train/good/*.png                  normal images
    test/good/*.png                   normal images (optional)
    test/<kind>/*.png                 defects of one kind (optional)
    ground_truth/<kind>/*_mask.png    their masks (optional: for all of them or for none)

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
"""

import argparse
import errno
import gzip
import hashlib
import lzma
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from texture_ad.data.images import IMAGE_SUFFIXES, Sample, shown
from texture_ad.errors import UserError

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
# Images per category: in train/good, in all of test.
PUBLISHED = {
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "carpet": (280, 117),
    "grid": (264, 78),
    "hazelnut": (391, 110),
    "leather": (245, 124),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "tile": (230, 117),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "wood": (247, 79),
    "zipper": (240, 151),
}

ARCHIVE_FOLDER = "mvtec_anomaly_detection"
MAX_UNPACKED = 20 * 2**30
# PNG hardly compresses, so an archive of MVTec AD unpacks to about its own size; small ones may do as they like.
MAX_RATIO, RATIO_FROM = 20, 100 * 2**20
MAX_HEADER = 2**20


@dataclass(frozen=True)
class Layout:
    """A checked category folder: images in a fixed order, by kind and name.

    Args:
        train: normal images, at least two.
        test: normal and anomalous images, perhaps none.
        has_masks: whether every anomalous test image has a mask (else none has).
    """

    train: list[Sample]
    test: list[Sample]
    has_masks: bool


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries."""
    try:
        return sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: path.name)
    except PermissionError as error:
        raise UserError(f"{shown(folder)}: no permission to read this folder; change its mode or owner") from error
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot read this folder ({error.strerror}); check the disk") from error


def _images(folder: Path) -> list[Path]:
    """Image files directly in a folder: subfolders are not entered, so no loop of links is followed."""
    found = [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    for path in found:
        if not path.is_file():
            raise UserError(f"{shown(path)}: a broken link or special file, not an image; mend or remove it")
    return found


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _mask_files(folder: Path) -> dict[str, Path]:
    """Masks by their names without suffix; where two files share one, the first counts."""
    masks: dict[str, Path] = {}
    for path in _images(folder) if folder.is_dir() else []:
        masks.setdefault(path.stem, path)
    return masks


def _find_masks(folder: Path, test: list[Sample]) -> list[Sample]:
    """The test samples with their masks: all the defects' or none's."""
    kinds = {sample.kind for sample in test if sample.label}
    masks = {kind: _mask_files(folder / "ground_truth" / kind) for kind in kinds}
    if not any(masks.values()):
        return test
    found = []
    for sample in test:
        of_kind = masks.get(sample.kind, {})
        stem = sample.path.stem
        mask = of_kind.get(f"{stem}_mask", of_kind.get(stem)) if sample.label else None
        if sample.label and mask is None:
            expected = folder / "ground_truth" / sample.kind / f"{stem}_mask.png"
            raise UserError(
                f"{shown(sample.path)}: has no mask, though others have; add {shown(expected)}, or remove "
                "ground_truth to go without masks"
            )
        found.append(Sample(sample.path, sample.label, sample.kind, mask))
    return found


def scan(folder: Path) -> Layout:
    """Checks a category folder and lists its images; opens none of them.

    Hidden entries, files that are no images and subfolders of a kind's folder are left aside.

    Args:
        folder: laid out as the module's docstring says.

    Raises:
        UserError: a missing or unreadable folder, fewer than two training images, training images outside
            train/good, test images outside a kind's folder, masks for some defects only.
    """
    folder = Path(folder)
    name, good = shown(folder), folder / "train" / "good"
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder; check the path")
    if not (folder / "train").is_dir() or not good.is_dir():
        raise UserError(f"{name}: has no folder train/good; put the normal training images there")
    if loose := _images(folder / "train"):
        raise UserError(f"{shown(loose[0])}: training images belong in train/good; move it there")
    for other in _folders(folder / "train"):
        if other.name != "good" and (images := _images(other)):
            raise UserError(
                f"{shown(images[0])}: training takes normal images only, in train/good; "
                f"move train/{shown(other.name)} into test"
            )
    train = [Sample(path, 0, "good") for path in _images(good)]
    if len(train) < 2:
        raise UserError(
            f"{shown(good)}: {len(train)} images ({', '.join(sorted(IMAGE_SUFFIXES))}), expected at least 2; "
            "add normal images"
        )
    test: list[Sample] = []
    if (folder / "test").is_dir():
        if loose := _images(folder / "test"):
            raise UserError(f"{shown(loose[0])}: test images belong in test/good or test/<kind>; move it there")
        for kind in _folders(folder / "test"):
            test += [Sample(path, int(kind.name != "good"), kind.name) for path in _images(kind)]
    test = _find_masks(folder, test)
    return Layout(train, test, has_masks=any(sample.mask for sample in test))


def file_digest(path: Path, algorithm: str) -> bytes:
    """The digest of a file's bytes, read in pieces; UserError where it cannot be read."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror}); check its mode and the disk") from error
    return digest.digest()


def duplicates(layout: Layout) -> list[tuple[Path, Path]]:
    """Test images whose file equals a training image's byte for byte, which flatters the results.

    Returns:
        (training file, test file), in the order of the test images; one pair for each such test image.
    """
    by_size: dict[int, list[Path]] = {}
    for sample in layout.train:
        by_size.setdefault(sample.path.stat().st_size, []).append(sample.path)
    digests: dict[int, dict[bytes, Path]] = {}
    pairs = []
    for sample in layout.test:
        size = sample.path.stat().st_size
        if size not in by_size:
            continue
        if size not in digests:
            # Reversed, so that of equal training images the first one is named.
            digests[size] = {file_digest(path, "sha1"): path for path in reversed(by_size[size])}
        if original := digests[size].get(file_digest(sample.path, "sha1")):
            pairs.append((original, sample.path))
    return pairs


# --- archives -------------------------------------------------------------------------------------


class _Metered:
    """A stream that may give only as many bytes as `allow` last said: headers, too, can be bombs."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream, self.name, self.left = stream, name, 0

    def allow(self, size: int) -> None:
        self.left = size

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"{self.name}: unpacks to more than its headers say; download it again from MVTec")
        return data


def _place(member: tarfile.TarInfo, name: str) -> PurePosixPath | None:
    """Where a member goes below the root, starting with its category; None if it is left aside."""
    path = PurePosixPath(member.name)
    found = f"{name}: member {shown(member.name)!r}"
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        raise UserError(f"{found} points outside the archive; nothing was imported, download it again from MVTec")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise UserError(
            f"{found} is a link or special file, expected files and folders only; nothing was imported, "
            "download it again from MVTec"
        )
    parts = path.parts[1:] if path.parts[:1] == (ARCHIVE_FOLDER,) else path.parts
    if not parts or any(part.startswith(".") for part in parts):
        return None
    if len(parts) == 1 and parts[0].lower() in ("readme.txt", "license.txt"):
        return None
    if parts[0] not in PUBLISHED or (len(parts) == 1 and not member.isdir()):
        raise UserError(
            f"{found} is in none of MVTec AD's categories ({', '.join(PUBLISHED)}); nothing was imported, "
            "give an archive of MVTec AD (for other images use data=folder)"
        )
    return PurePosixPath(*parts)


def _members(archive: Path, name: str) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
    """The files to unpack, with their contents, in one pass and within the limits on their size."""
    packed, unpacked = archive.stat().st_size, 0
    with archive.open("rb") as file:
        magic = file.read(6)
    opener = lzma.open if magic == b"\xfd7zXZ\x00" else gzip.open if magic[:2] == b"\x1f\x8b" else open
    with opener(archive, "rb") as stream:
        metered = _Metered(stream, name)
        block = 2**16
        metered.allow(MAX_HEADER)
        # Reading as a stream ("r|") goes through the archive once, so that a large one is unpacked only once.
        with tarfile.open(fileobj=metered, mode="r|", bufsize=block) as tar:
            while member := tar.next():
                unpacked += member.size
                if unpacked > MAX_UNPACKED or unpacked > max(RATIO_FROM, MAX_RATIO * packed):
                    raise UserError(
                        f"{name}: unpacks to {unpacked / 2**20:.0f} MiB or more from {packed / 2**20:.2f} MiB, "
                        "not what MVTec AD does; nothing was imported, download it again from MVTec"
                    )
                place = _place(member, name)
                # The next header is read with the rest of this member, and the stream reads ahead by a block.
                metered.allow(member.size + MAX_HEADER + 2 * block)
                if place and member.isreg():
                    yield place, tar.extractfile(member)


def _unpack(archive: Path, root: Path, folder: Path) -> list[str]:
    """Unpacks all categories into `folder`; names and contents only, no modes, owners or times."""
    name, categories = shown(archive), []
    try:
        for place, content in _members(archive, name):
            category = place.parts[0]
            if category not in categories:
                if os.path.lexists(root / category):
                    raise UserError(
                        f"{shown(root / category)}: exists already; nothing was imported, remove it first or "
                        "give another root"
                    )
                categories.append(category)
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(content, file, 2**20)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{name}: holds a name twice; download it again from MVTec") from error
    except (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(
            f"{name}: not a complete .tar, .tar.gz or .tar.xz archive ({error}); nothing was imported, "
            "download it again from MVTec"
        ) from error
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk and modes"
        raise UserError(
            f"{name}: cannot be unpacked into {shown(root)} ({error.strerror}); nothing was imported, {advice}"
        ) from error
    if not categories:
        raise UserError(f"{name}: holds none of MVTec AD's categories; give the archive that MVTec offers")
    return categories


def count_message(category: str, train: int, test: int) -> str | None:
    """How the numbers of images differ from the published ones; None where they are equal."""
    if (train, test) == PUBLISHED[category]:
        return None
    expected = PUBLISHED[category]
    return f"{category}: {train} training and {test} test images, published {expected[0]} and {expected[1]}"


def _check(archive: Path, folder: Path, categories: list[str]) -> None:
    """Layout, masks and numbers of images of the unpacked categories."""
    problems = []
    for category in categories:
        try:
            layout = scan(folder / category)
        except UserError as error:
            problems.append(str(error).replace(f"{shown(folder)}{os.sep}", ""))
            continue
        if message := count_message(category, len(layout.train), len(layout.test)):
            problems.append(message)
        elif not layout.has_masks:
            problems.append(f"{category}: no masks in ground_truth")
    if problems:
        raise UserError(
            f"{shown(archive)}: not as published: {' | '.join(problems)}; nothing was imported, download it "
            "again from MVTec"
        )


def import_archive(archive: Path, root: Path) -> list[str]:
    """Imports a downloaded archive of MVTec AD, whole or of one category, into `root`.

    It unpacks into a hidden folder in `root` (of the same file system), checks layout and published numbers of
    images, and only then renames each category to its place. An archive with anything unsafe in it is refused
    as a whole: absolute or climbing paths, links, devices, members outside the categories, unpacked sizes out
    of proportion.

    Args:
        archive: .tar, .tar.gz or .tar.xz; the content counts, not the suffix.
        root: the folder of the categories, made where there is none.

    Returns:
        The imported categories, sorted.

    Raises:
        UserError: as above, where a category exists already in `root`, and where reading or writing fails.
    """
    archive, root = Path(archive), Path(root)
    if archive.is_dir():
        raise UserError(f"{shown(archive)}: a folder, expected an archive; is it unpacked already? Set data.root to it")
    if not archive.is_file():
        raise UserError(f"{shown(archive)}: no such file; give the archive downloaded from MVTec")
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".importing-", dir=root))
    except OSError as error:
        raise UserError(f"{shown(root)}: cannot write there ({error.strerror}); give another root") from error
    try:
        categories = sorted(_unpack(archive, root, scratch))
        _check(archive, scratch, categories)
        for category in categories:
            (scratch / category).rename(root / category)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return categories


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m texture_ad.data.mvtec",
        description="Import a downloaded archive of MVTec AD: unpack it safely, check it, put it in place.",
        epilog="Get the archives at https://www.mvtec.com/company/research/datasets/mvtec-ad (after registration; "
        "licence CC BY-NC-SA 4.0). Example: python -m texture_ad.data.mvtec carpet.tar.xz ~/mvtec_ad",
    )
    parser.add_argument(
        "archive", metavar="ARCHIVE", type=Path, help=".tar.xz, .tar.gz or .tar: the whole set or one category"
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder for the categories, made if missing")
    options = parser.parse_args(arguments)
    root = options.root.expanduser()
    try:
        print(f"unpacking {shown(options.archive)} (the whole set takes some minutes)", flush=True)
        categories = import_archive(options.archive.expanduser(), root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for category in categories:
        train, test = PUBLISHED[category]
        print(f"{category}: {train} training and {test} test images, as published -> {shown(root / category)}")
    first = next((category for category in TEXTURES if category in categories), None)
    choice = f"+experiment={first}" if first else f"data=mvtec data.category={categories[0]}"
    print(f"next: python -m texture_ad.run {choice} {shlex.quote(f'data.root={root}')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
