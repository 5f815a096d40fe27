"""Folders of normal images, of anomalous ones and of masks, by the names that people give them or as they are told."""

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from texture_ad.data.layouts.files import (
    apart_from_masks,
    below_common,
    entries,
    files_below,
    images_below,
    is_image,
    listed,
    pair_masks,
    unread,
)
from texture_ad.data.layouts.samples import Layout, Sample
from texture_ad.errors import ParameterError, UserError

Places = str | Sequence[str]  # a folder, a file or a glob, or a list of them

# Names of folders in lower case, their words joined by _.
NORMAL = ("ok", "good", "normal", "pass", "passed", "io", "free", "defect_free", "no_defect", "non_defective")
ANOMALOUS = (
    "ng",
    "bad",
    "nok",
    "ko",
    "nio",
    "defect",
    "defects",
    "defective",
    "anomaly",
    "anomalies",
    "anomalous",
    "abnormal",
    "fail",
    "failed",
    "faulty",
    "reject",
    "rejected",
)
MASKS = ("mask", "masks", "ground_truth", "groundtruth", "gt", "label", "labels", "annotation", "annotations")


def plain(name: str) -> str:
    """Return a folder's name in lower case, its words joined by _."""
    return re.sub(r"[-\s]+", "_", name.strip().lower())


def named_folders(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the sub-folders with one of these names, however it is written."""
    return [p for p in entries(folder) if p.is_dir() and plain(p.name) in names]


def flat(
    folder: Path,
    normal: Places | None = None,
    anomalous: Places | None = None,
    masks: Places | None = None,
) -> Layout:
    """List folders of normal and of anomalous images and of masks, each a folder, a glob or a list of them.

    What isn't given is looked for by name (`NORMAL`, `ANOMALOUS`, `MASKS`), unless the normal images are given. Masks
    that lie beside their images count as well. Normal images for testing are still to be drawn.

    Args:
        folder: that the places are relative to.
        normal: places of normal images.
        anomalous: places of anomalous images, None for none.
        masks: places of masks, None for none.

    Raises:
        ParameterError: a place that isn't there.
        UserError: no normal images, or images that are given twice.
    """
    good, _ = apart_from_masks(_given(folder, "normal", normal, NORMAL))
    bad, beside = apart_from_masks(_given(folder, "anomalous", anomalous, () if normal else ANOMALOUS))
    truth = _given(folder, "masks", masks, () if normal else MASKS)
    if not good:
        raise UserError(f"{folder}: has no normal images; say by normal where they are{unread(files_below(folder))}")
    _check_apart({"normal images": good, "anomalous images": bad, "masks": truth})
    pairs = pair_masks(bad, dict.fromkeys([*truth, *beside]))
    return Layout(
        "flat",
        [Sample(path, name=name.as_posix()) for path, name in zip(good, below_common(good)[1], strict=True)],
        [Sample(path, 1, kind, pairs.get(path), name) for path, kind, name in _kinds(folder, bad)],
        undivided=bool(bad),
    )


def _check_apart(files: Mapping[str, Sequence[Path]]) -> None:
    """Check that no file is given for two uses.

    Raises:
        UserError: some are; the message counts and names them.
    """
    for one, other in combinations(files, 2):
        both = sorted(set(files[one]) & set(files[other]))
        if both:
            raise UserError(f"{len(both)} files are given as {one} and as {other}: {listed(both)}; tell them apart")


def _given(folder: Path, name: str, places: Places | None, names: Iterable[str]) -> list[Path]:
    """Return the images of the places given, or without any those of the folders that have one of these names."""
    if places is None:
        return [path for place in named_folders(folder, names) for path in images_below(place)]
    several = places if isinstance(places, Sequence) and not isinstance(places, str) else [places]
    return list(dict.fromkeys(path for place in several for path in _at(folder, name, str(place))))


def _at(folder: Path, name: str, place: str) -> list[Path]:
    """Return the images at one place: a folder, a file or a glob."""
    path = _plain_path(folder, place)
    found = sorted(glob.glob(place, root_dir=folder, recursive=True))
    matches = [path] if path.exists() else [_plain_path(folder, match) for match in found]
    files = [file for match in matches for file in (files_below(match) if match.is_dir() else [match])]
    images = [file for file in files if is_image(file)]
    if not images:
        what = "no images there" if matches else "no such folder or file"
        raise ParameterError(name, place, f"{what}; it is looked for in {folder}{unread(files)}")
    return images


def _plain_path(folder: Path, place: str) -> Path:
    """Return a place relative to a folder, without ".." and below that folder where it can be: a file has one path."""
    top, path = (os.path.normpath(one.absolute()) for one in (folder, folder / Path(place).expanduser()))
    return folder / Path(path).relative_to(top) if Path(path).is_relative_to(top) else Path(path)


def _kinds(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, str, str]]:
    """Return anomalous images with their kind and their name in it.

    The kind is the first folder in which they differ, or else the name of the one that they all lie in.
    """
    if not paths:
        return []
    top, below = below_common(paths)
    own = "anomalous" if top == folder.absolute() else top.name
    return [
        (path, first, "/".join(rest)) if rest else (path, own, first)
        for path, (first, *rest) in zip(paths, (name.parts for name in below), strict=True)
    ]
