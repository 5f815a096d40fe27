"""MVTec AD's folder layout: checking it, and importing a downloaded archive safely.

Bergmann et al.: MVTec AD, CVPR 2019 (the paper's [34]). `python -m texture_ad.data.mvtec ARCHIVE ROOT`.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from texture_ad.data.images import IMAGE_SUFFIXES, Sample
from texture_ad.errors import UserError

# Images in (train, test) as published in the paper's table 1.
COUNTS = {
    "carpet": (280, 117),
    "grid": (264, 78),
    "leather": (245, 124),
    "tile": (230, 117),
    "wood": (247, 79),
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "hazelnut": (391, 110),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "zipper": (240, 151),
}
MAX_UNPACKED = 20 * 2**30  # bytes; the whole data set has about 5 GiB


@dataclass(frozen=True)
class Layout:
    train: list[Sample]
    test: list[Sample]
    has_masks: bool


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: can't be read ({error.strerror}); check the path and its permissions") from error


def _images(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def scan(folder: Path) -> Layout:
    """Lists the images of one category: train/good, test/<kind> and, optionally, ground_truth/<kind>.

    Masks are named <image>_mask.<suffix> or <image>.<suffix>. A test folder may be missing.

    Raises:
        UserError: the layout is not as described; the message names the first path that is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.root must name one laid out as MVTec AD is")
    if not (folder / "train" / "good").is_dir():
        raise UserError(f"{folder}: has no train/good; put the defect-free training images there")
    for other in _entries(folder / "train"):
        if other.is_dir() and other.name != "good" and _images(other):
            raise UserError(f"{other}: training uses defect-free images only; move these to {folder / 'test'}")
    train = [Sample(p) for p in _images(folder / "train" / "good")]
    if len(train) < 2:
        raise UserError(f"{folder / 'train' / 'good'}: {len(train)} images; at least 2 are needed")
    test = []
    truth = folder / "ground_truth"
    missing = None
    for kind in _entries(folder / "test") if (folder / "test").is_dir() else []:
        if not kind.is_dir():
            continue
        masks = (
            {p.stem.removesuffix("_mask"): p for p in _images(truth / kind.name)}
            if (truth / kind.name).is_dir()
            else {}
        )
        for path in _images(kind):
            label = int(kind.name != "good")
            mask = masks.get(path.stem) if label else None
            test.append(Sample(path, label, kind.name, mask))
            if label and mask is None:
                missing = missing or path
    has_masks = any(s.mask for s in test)
    if has_masks and missing:
        raise UserError(f"{missing}: has no mask under {truth} while others do; add it, or remove {truth}")
    return Layout(train, test, has_masks)


def duplicates(layout: Layout) -> list[tuple[Path, Path]]:
    """Pairs (training file, test file) with identical bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for sample in layout.train:
        by_size[sample.path.stat().st_size].append(sample.path)

    @cache
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return [
        (a, s.path) for s in layout.test for a in by_size.get(s.path.stat().st_size, ()) if digest(a) == digest(s.path)
    ]


def _check_member(member: tarfile.TarInfo, archive: Path) -> tuple[str, PurePosixPath] | None:
    """The category and path under it of a member, None for what is not of a category; refuses hostile ones."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise UserError(f"{archive}: member {member.name!r} leaves the folder; nothing was imported")
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{archive}: member {member.name!r} is a link or a device; nothing was imported")
    for depth, part in enumerate(path.parts[:2]):
        if part in COUNTS:
            return part, PurePosixPath(*path.parts[depth + 1 :])
    return None


def import_archive(archive: Path, root: Path) -> list[str]:
    """Unpacks MVTec AD, whole or one category, into `root`, checking layout and published counts.

    Everything is unpacked beside `root` first and renamed when all of it is right.

    Returns:
        The categories imported.

    Raises:
        UserError: not an archive, a member that is unsafe, too large, wrong counts, or a category that
            `root` has already.
    """
    archive = Path(archive)
    root = Path(root)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; download MVTec AD from mvtec.com and give the .tar.xz")
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".importing-", dir=root))
    try:
        total = 0
        found = []
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    place = _check_member(member, archive)
                    total += member.size
                    if total > MAX_UNPACKED:
                        raise UserError(f"{archive}: unpacks to over {MAX_UNPACKED >> 30} GiB; not MVTec AD")
                    if place is None or not member.isfile():
                        continue
                    category, rest = place
                    if category not in found:
                        found.append(category)
                        if (root / category).exists():
                            raise UserError(f"{root / category}: exists already; move it away to import it anew")
                    target = work / category / rest
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, open(target, "wb") as sink:
                        shutil.copyfileobj(source, sink)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{archive}: can't be unpacked ({error}); download it again") from error
        except Exception as error:
            if type(error).__name__ == "LZMAError":
                raise UserError(f"{archive}: can't be unpacked ({error}); download it again") from error
            raise
        if not found:
            raise UserError(f"{archive}: holds no category of MVTec AD ({', '.join(COUNTS)})")
        for category in found:
            layout = scan(work / category)
            have = (len(layout.train), len(layout.test))
            if have != COUNTS[category]:
                raise UserError(
                    f"{archive}: {category} has {have[0]} training and {have[1]} test images, published are "
                    f"{COUNTS[category][0]} and {COUNTS[category][1]}; download it again"
                )
        for category in found:
            os.replace(work / category, root / category)
        return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m texture_ad.data.mvtec", description="Import a downloaded MVTec AD.")
    parser.add_argument("archive", type=Path, help="mvtec_anomaly_detection.tar.xz, or one category's .tar.xz")
    parser.add_argument("root", type=Path, help="folder that gets one subfolder a category")
    args = parser.parse_args(argv)
    try:
        for category in import_archive(args.archive, args.root):
            print(f"imported {category}: {COUNTS[category][0]} training, {COUNTS[category][1]} test images")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"next: python -m texture_ad.run +experiment=carpet data.root={args.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
