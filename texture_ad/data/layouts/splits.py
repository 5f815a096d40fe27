"""Which normal images train, calibrate and test, drawn by a seed; images of one group stay together."""

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from texture_ad.data.layouts.files import listed
from texture_ad.data.layouts.samples import Layout, Sample
from texture_ad.errors import ParameterError, UserError

OF_TRAINED_GROUPS = "anomalous images of groups that are trained on"


def with_groups(layout: Layout, group: str | None, folder: Path) -> Layout:
    """Return a layout whose samples know their groups.

    Args:
        layout: without groups.
        group: regular expression that is searched for in a file's name or, where it has a slash, in the path below
            `folder`; its first parenthesis, or all that it matches, is the group. None for no groups.
        folder: of the category.

    Raises:
        ParameterError: no regular expression, or names in which it isn't found.
    """
    if group is None:
        return layout
    if any(sample.group for sample in layout.samples):
        raise ParameterError("group", group, "the table has a column group already; leave one of them out")
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ParameterError("group", group, f"no regular expression ({error})") from error

    def found(sample: Sample) -> str:
        match = pattern.search(Path(sample.below(folder)).as_posix() if "/" in group else sample.path.name)
        return (match[min(1, pattern.groups)] or "") if match else ""

    missing = [sample.below(folder) for sample in layout.samples if not found(sample)]
    if missing:
        raise ParameterError("group", group, f"is not found in the names of {len(missing)} images: {listed(missing)}")

    return layout.map_sides(lambda samples: [replace(sample, group=found(sample)) for sample in samples])


def draw(
    samples: list[Sample], fraction: float, seed: int, first: Collection[str] = (), left: int = 1
) -> tuple[list[Sample], list[Sample]]:
    """Draw some of the samples at random. Those of one group stay together; one without a group is one by itself.

    Args:
        samples: normal images.
        fraction: share of the images that is drawn, at least.
        seed: of the draw.
        first: groups that are drawn before others.
        left: groups that are left, at least; at least one is drawn.

    Returns:
        The samples that are left and those drawn, both in the order of `samples`.

    Raises:
        UserError: too few groups.
    """
    members: dict[object, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        members[sample.group or number].append(number)
    names = list(members)
    if len(names) <= left:
        what = "groups of normal images" if any(sample.group for sample in samples) else "normal images"
        raise UserError(f"{len(names)} {what}; at least {left + 1} are needed, so that each part has its own")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    order.sort(key=lambda number: names[number] not in first)
    drawn: set[int] = set()
    for number in order[: len(names) - left]:
        drawn.update(members[names[number]])
        if len(drawn) >= round(fraction * len(samples)):
            break
    return [s for n, s in enumerate(samples) if n not in drawn], [s for n, s in enumerate(samples) if n in drawn]


def split_calibration(samples: list[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split normal images at random into training and calibration images, at least one each, groups undivided.

    Args:
        samples: at least two normal images, of at least two groups where they have groups.
        fraction: share of the images that are calibration images.
        seed: of the split.

    Returns:
        The training images and the calibration images, both in the order of `samples`.

    Raises:
        UserError: too few images or groups.
    """
    return draw(samples, fraction, seed)


def calibration_folds(samples: list[Sample], size: int, seed: int) -> list[list[Sample]]:
    """Cut normal images at random into folds of about `size` images, as even as undivided groups allow.

    Args:
        samples: at least one.
        size: at least 1.
        seed: of the draws.
    """
    folds = []
    for left in range(int(len(samples) / size + 0.5), 1, -1):
        if len({sample.group or sample for sample in samples}) == 1:
            break
        samples, fold = draw(samples, 1 / left, seed)
        folds.append(fold)
    return [*folds, samples]


def with_test_images(layout: Layout, fraction: float, seed: int) -> Layout:
    """Return a layout in which some normal images test, where they are undivided.

    Groups stay together: those that have anomalous images are drawn first, and where such a group trains all the same,
    its anomalous images are left out.

    Args:
        layout: of which anomalous images test and normal ones train.
        fraction: share of the normal images that test.
        seed: of the draw.

    Raises:
        UserError: too few images or groups.
    """
    if not layout.undivided:
        return layout
    anomalous = {sample.group for sample in layout.test}
    train, drawn = draw(layout.train, fraction, seed, first=anomalous, left=2)
    trained = {sample.group for sample in train} - {""}
    kept = [sample for sample in layout.test if sample.group not in trained]
    out = {OF_TRAINED_GROUPS: [sample.path for sample in layout.test if sample.group in trained]}
    left_out = layout.left_out | {what: paths for what, paths in out.items() if paths}
    return replace(layout, train=train, test=drawn + kept, left_out=left_out, undivided=False)


def check_groups(layout: Layout) -> None:
    """Check that no group lies on two of the sides training, calibration and testing.

    Raises:
        UserError: one does; the message names an image of either side.
    """
    seen: dict[str, tuple[str, Path]] = {}
    for side, samples in (("training", layout.train), ("calibration", layout.calibration), ("test", layout.test)):
        for sample in samples:
            other, path = seen.setdefault(sample.group, (side, sample.path))
            if sample.group and other != side:
                raise UserError(
                    f"the group {sample.group!r} has {other} and {side} images, such as {path} and {sample.path}; "
                    "move them to one side, or leave the groups out"
                )
