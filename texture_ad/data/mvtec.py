"""Import of a downloaded archive of MVTec AD: `python -m texture_ad.data.mvtec ARCHIVE ROOT`.

Bergmann, Fauser, Sattlegger, Steger: MVTec AD, CVPR 2019.
"""

import argparse
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from texture_ad.data.layouts import images_below, scan
from texture_ad.errors import UserError
from texture_ad.files import reason

# Images in (train, test) as published by Bergmann et al.
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
_SIDES = ("train/good", "test")
MAX_UNPACKED = 20 * 2**30  # bytes; the whole data set has about 5 GiB


def is_published(folder: Path) -> bool:
    """Return whether a folder has the name of a category of MVTec AD, and as many images as were published of it."""
    have = tuple(len(images_below(folder / side)) if (folder / side).is_dir() else 0 for side in _SIDES)
    return COUNTS.get(folder.name) == have


def _check_member(member: tarfile.TarInfo, archive: Path) -> tuple[str, PurePosixPath] | None:
    """Return the category of a member and its path under it, None for what belongs to no category.

    Raises:
        UserError: a member that would be written outside the folder, or that is no plain file or folder.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise UserError(f"{archive}: member {member.name!r} leaves the folder; nothing was imported")
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{archive}: member {member.name!r} is a link or a device; nothing was imported")
    for depth, part in enumerate(path.parts[:2]):
        if part in COUNTS:
            return part, PurePosixPath(*path.parts[depth + 1 :])
    return None


def _checked_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[tarfile.TarInfo, str, PurePosixPath]]:
    """Yield the files of a tar that belong to a category, with the category and the path under it."""
    total = 0
    for member in tar:
        found = _check_member(member, archive)
        total += member.size
        if total > MAX_UNPACKED:
            raise UserError(f"{archive}: unpacks to over {MAX_UNPACKED >> 30} GiB; not MVTec AD")
        if found is not None and member.isfile():
            yield member, *found


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one plain file of a tar."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # only a member that is no file has none
    with source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink)


def _unpack(archive: Path, root: Path, work: Path) -> list[str]:
    """Unpack all categories of an archive into `work`, and return their names.

    Raises:
        UserError: no category, an unsafe member, a damaged archive, a category that `root` has already, or a full disk.
    """
    found: list[str] = []
    try:
        with tarfile.open(archive) as tar:
            for member, category, rest in _checked_members(tar, archive):
                if category not in found:
                    found.append(category)
                    if (root / category).exists():
                        raise UserError(f"{root / category}: exists already; move it away to import it anew")
                _write_member(tar, member, work / category / rest)
    except (tarfile.TarError, EOFError, OSError, LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, which is not about the content
            raise UserError(f"{archive}: can't be unpacked into {root} ({reason(error)})") from error
        raise UserError(f"{archive}: can't be unpacked ({error}); download it again") from error
    if not found:
        raise UserError(f"{archive}: holds no category of MVTec AD ({', '.join(COUNTS)})")
    return found


def _check_counts(archive: Path, category: str, folder: Path) -> None:
    """Check the layout of an unpacked category and compare its numbers of images with the published ones."""
    layout = scan(folder)
    have = (len(layout.train), len(layout.test))
    if have != COUNTS[category]:
        raise UserError(
            f"{archive}: {category} has {have[0]} training and {have[1]} test images, published are "
            f"{COUNTS[category][0]} and {COUNTS[category][1]}; download it again"
        )


@contextmanager
def _working_folder(root: Path) -> Iterator[Path]:
    """Make a folder under `root` for the time of an import.

    Raises:
        UserError: there can be none.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".importing-", dir=root))
    except OSError as error:
        problem = f"can't be written ({reason(error)}); give a folder that gets the categories"
        raise UserError(f"{root}: {problem}") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def import_archive(archive: Path, root: Path) -> list[str]:
    """Unpack MVTec AD, whole or one category, into a folder, and check layout and published counts.

    Everything is first unpacked into a working folder, and is renamed when all of it is right.

    Args:
        archive: the downloaded .tar.xz.
        root: folder that gets one subfolder a category.

    Returns:
        The categories imported.

    Raises:
        UserError: not an archive, a member that is unsafe, too large, wrong counts, or a folder that can't be written
            or has a category already.
    """
    archive = Path(archive)
    root = Path(root)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; download MVTec AD from mvtec.com and give the .tar.xz")
    with _working_folder(root) as work:
        found = _unpack(archive, root, work)
        for category in found:
            _check_counts(archive, category, work / category)
        for category in found:
            os.replace(work / category, root / category)
    return found


def main(argv: list[str] | None = None) -> int:
    """Import the archive that a command line names, and return the exit code.

    Args:
        argv: the arguments, without the program's name; None for those of the process.
    """
    parser = argparse.ArgumentParser("texture-ad import", description="Import a downloaded MVTec AD.")
    parser.add_argument("archive", type=Path, help="mvtec_anomaly_detection.tar.xz, or one category's .tar.xz")
    parser.add_argument("root", type=Path, help="folder that gets one subfolder a category")
    args = parser.parse_args(argv)
    try:
        names = import_archive(args.archive, args.root)
        for category in names:
            print(f"imported {category}: {COUNTS[category][0]} training, {COUNTS[category][1]} test images")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # This is a door as well, which speaks of the command line's keys.
    print(f"next: texture-ad run data.category={names[0]} data.root={shlex.quote(str(args.root))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
