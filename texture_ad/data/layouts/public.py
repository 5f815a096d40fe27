"""Layouts of public data sets, a function each.

MVTec AD: Bergmann and others, CVPR 2019. MVTec AD 2: Heckler-Kram and others, 2025. VisA: Zou and others, ECCV 2022.
BTAD: Mishra and others, ISIE 2021. KolektorSDD2: Božič and others, Computers in Industry 2021.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from texture_ad.data.layouts.files import apart_from_masks, entries, images_below, is_image, pair_masks
from texture_ad.data.layouts.flat import NORMAL, flat, named_folders, plain
from texture_ad.data.layouts.samples import Layout, Sample, mask_marks
from texture_ad.data.layouts.table import read_rows, table_layout
from texture_ad.errors import UserError

# Beside the categories of VisA, as its authors give it.
VISA_SPLIT = "split_csv/1cls.csv"
# Its column to ours.
VISA_COLUMNS = {"object": "category", "split": "split", "label": "label", "image": "path", "mask": "mask"}


def kind_samples(kind: Path, truth: Path | None, label: int, name: str) -> list[Sample]:
    """Return the images of one kind with their masks.

    Args:
        kind: folder of the images.
        truth: folder of the masks; where there is none, masks beside the images (NAME_mask.png) are theirs.
        label: 0 for normal, 1 for anomalous.
        name: of the kind.
    """
    images = images_below(kind)
    masks = {}
    if label:
        images, beside = apart_from_masks(images)
        masks = pair_masks(images, images_below(truth) if truth and truth.is_dir() else beside)
    return [Sample(path, label, name, masks.get(path), path.relative_to(kind).as_posix()) for path in images]


def _good_samples(folder: Path, good: str) -> list[Sample]:
    """Return the images of train/<good>, and refuse a train folder that holds others."""
    train = folder / "train" / good
    if not train.is_dir():
        raise UserError(f"{folder}: has no train/{good}; put the defect-free training images there")
    for other in entries(folder / "train"):
        if other.is_dir() and other.name != good and images_below(other):
            raise UserError(f"{other}: training uses defect-free images only; move these to {folder / 'test'}")
    return kind_samples(train, None, 0, "good")


def _kinds(test: Path, truth: Path, good: str) -> list[Sample]:
    """Return the images of all folders <test>/<kind>; an empty list without a test folder.

    Raises:
        UserError: a kind of defect whose name says normal, other than `good`.
    """
    kinds = [p for p in entries(test) if p.is_dir() and p != truth] if test.is_dir() else []
    for kind in kinds:
        if kind.name != good and plain(kind.name) in NORMAL:
            raise UserError(f"{kind}: is named as normal images, which are expected in {test / good}; rename it")
    return [
        sample
        for kind in kinds
        for sample in (
            kind_samples(kind, None, 0, "good")
            if kind.name == good
            else kind_samples(kind, truth / kind.name, 1, kind.name)
        )
    ]


def good_name(folder: Path) -> str | None:
    """Return how the folder of normal training images in `train` is named: "good" or a word for it, None for none."""
    train = folder / "train"
    found = [path.name for path in named_folders(train, NORMAL)] if train.is_dir() else []
    return "good" if "good" in found else next(iter(found), None)


def mvtec(folder: Path) -> Layout:
    """List train/good, test/<kind> and, optionally, ground_truth/<kind>; another word for good may stand for it.

    All sub-folders are searched. Masks are named <image>_mask.<suffix> or <image>.<suffix>. A test folder and masks
    may be missing.

    Args:
        folder: of the category.

    Raises:
        UserError: the layout is not as described; the message names the first path that is wrong.
    """
    good = good_name(folder) or "good"
    return Layout("mvtec", _good_samples(folder, good), _kinds(folder / "test", folder / "ground_truth", good))


def mvtec2(folder: Path) -> Layout:
    """List train/good, validation/good for calibration, and test_public/{good,bad,ground_truth/bad}.

    The private test images have no labels: they are left out.
    """
    test = folder / "test_public"
    held_out = folder / "validation" / "good"
    private = [
        path
        for name in ("test_private", "test_private_mixed")
        if (folder / name).is_dir()
        for path in images_below(folder / name)
    ]
    return Layout(
        "mvtec2",
        _good_samples(folder, "good"),
        _kinds(test, test / "ground_truth", "good"),
        kind_samples(held_out, None, 0, "good") if held_out.is_dir() else [],
        {"test images without labels": private} if private else {},
    )


def btad(folder: Path) -> Layout:
    """List train/ok, test/{ok,ko} and ground_truth/ko."""
    return Layout("btad", _good_samples(folder, "ok"), _kinds(folder / "test", folder / "ground_truth", "ok"))


def visa(folder: Path) -> Layout:
    """List Data/Images/{Normal,Anomaly} and Data/Masks/Anomaly.

    Where split_csv/1cls.csv lies beside the category, it says which images train and which test. Otherwise normal
    images for testing are still to be drawn.

    Raises:
        UserError: neither normal images there nor a split that names this category.
    """
    category = folder.resolve().name
    split = folder.resolve().parent / VISA_SPLIT
    if not split.is_file():
        normal, *others = "Data/Images/Normal", "Data/Images/Anomaly", "Data/Masks/Anomaly"
        if not (folder / normal).is_dir():
            raise UserError(f"{folder}: has no {normal}; layout=visa takes {', '.join([normal, *others])}")
        places = (place if (folder / place).is_dir() else None for place in others)
        return replace(flat(folder, normal, *places), name="visa")
    rows = read_rows(split, VISA_COLUMNS)
    own = [
        replace(row, path=row.path.removeprefix(f"{category}/"), mask=row.mask.removeprefix(f"{category}/"))
        for row in rows
        if row.category == category
    ]
    if not own:
        raise UserError(f"{split}: has no rows of {category}; rename the folder as it is called there")
    return replace(table_layout(split, own, folder), name="visa")


def side_by_side(folder: Path) -> list[Path]:
    """Return the labels that lie beside their images in a folder, not in its sub-folders."""
    return apart_from_masks([path for path in entries(folder) if is_image(path)])[1] if folder.is_dir() else []


def kolektorsdd2(folder: Path) -> Layout:
    """List train and test, where the label NAME_GT.png lies beside the image NAME.png.

    An image is normal if its label is black. Images without a label and anomalous training images are left out.

    Raises:
        UserError: labels that can't be used.
    """
    images = [path for side in ("train", "test") if (folder / side).is_dir() for path in images_below(folder / side)]
    images, labels = apart_from_masks(images)
    samples = _labelled(folder, pair_masks(images, labels))
    train, test = (
        [sample for sample in samples if sample.path.is_relative_to(folder / side)] for side in ("train", "test")
    )
    left_out = {
        "anomalous training images": [sample.path for sample in train if sample.label],
        "images without a label": sorted(set(images) - {sample.path for sample in samples}),
    }
    return Layout(
        "kolektorsdd2",
        [sample for sample in train if not sample.label],
        test,
        left_out={what: paths for what, paths in left_out.items() if paths},
        labels=labels,
    )


def _labelled(folder: Path, labels: Mapping[Path, Path]) -> list[Sample]:
    """Return images below a folder's "train" and "test" as their labels say."""
    found = []
    named = [Sample(path, 1, "defect", label) for path, label in sorted(labels.items())]
    for sample, marked in zip(named, mask_marks(named), strict=True):
        name = "/".join(sample.path.relative_to(folder).parts[1:])
        found.append(replace(sample, name=name) if marked else Sample(sample.path, name=name))
    return found
