"""Import of images: `texture-ad import FOLDER` lists them in a table, `... import ARCHIVE ROOT` unpacks MVTec AD.

A table is what `data.table` reads: edit it, then run with it.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

from texture_ad.data import mvtec
from texture_ad.data.layouts import Layout, Sample, images_below, listed, pair_masks, scan
from texture_ad.data.layouts.files import apart_from_masks
from texture_ad.data.layouts.flat import ANOMALOUS, MASKS, NORMAL, plain
from texture_ad.data.layouts.recognition import recognise
from texture_ad.data.layouts.table import COLUMNS, label_of
from texture_ad.errors import UserError
from texture_ad.files import csv_text, reason, write_atomic

TABLE = "images.csv"


def rows_of(layout: Layout, folder: Path) -> list[dict[str, str]]:
    """Return the rows of a table that lists the images of a layout.

    Args:
        layout: of a folder.
        folder: that paths are relative to.
    """
    return [
        _row(folder, sample, "" if layout.undivided else side)
        for side, samples in layout.sides.items()
        for sample in samples
    ]


def _row(folder: Path, sample: Sample, split: str) -> dict[str, str]:
    return {
        "path": _below(folder, sample.path),
        "label": label_of(sample.kind) if sample.label else "good",
        "mask": "" if sample.mask is None else _below(folder, sample.mask),
        "split": split,
        "group": sample.group,
    }


def _below(folder: Path, path: Path) -> str:
    """Return a path relative to a folder; both may have "..", which a table of a split takes out of its paths."""
    return Path(os.path.relpath(path, folder)).as_posix()


def guessed_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each image below a folder of no known layout.

    A label is told by the lowest folder whose name says normal or anomalous, and is empty without one. Images below a
    folder that is named as masks are, are masks, and so are those beside an image that are named after it.

    Args:
        folder: that is searched.

    Raises:
        UserError: no image in it.
    """
    below = {path: [plain(part) for part in path.relative_to(folder).parts[:-1]] for path in images_below(folder)}
    masks = [path for path, names in below.items() if any(name in MASKS for name in names)]
    images, beside = apart_from_masks([path for path in below if path not in set(masks)])
    if not images:
        raise UserError(f"{folder}: holds no image; give the folder with the images")
    labels = {path: _guessed_label(below[path]) for path in images}
    pairs = pair_masks([path for path in images if labels[path] != "good"], masks + beside)
    samples = [Sample(path, int(labels[path] != "good"), labels[path], pairs.get(path)) for path in images]
    return [_row(folder, sample, "") for sample in samples]


def _guessed_label(folders: list[str]) -> str:
    for name in reversed(folders):
        if name in NORMAL:
            return "good"
        if name in ANOMALOUS:
            return "anomalous"
    return ""


def write_table(folder: Path, table: Path) -> list[dict[str, str]]:
    """Write a table of the images below a folder, and return its rows.

    Args:
        folder: with images in a known layout or in none.
        table: CSV file, which must not exist.

    Raises:
        UserError: no images, or the table exists or can't be written.
    """
    if table.exists():
        raise UserError(f"{table}: exists already, and may have been edited; move it away, or name another file")
    try:
        known = recognise(folder)
    except UserError:
        known = None
    rows = rows_of(scan(folder, known), folder) if known else guessed_rows(folder)
    text = csv_text([tuple(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)])
    try:
        write_atomic(table, text)
    except OSError as error:
        raise UserError(f"{table}: can't be written ({reason(error)}); name another file") from error
    return rows


def main(argv: list[str] | None = None) -> int:
    """Import the folder or the archive that a command line names, and return the exit code.

    Args:
        argv: the arguments, without the program's name; None for those of the process.
    """
    parser = argparse.ArgumentParser("texture-ad import", description="List images in a table, or unpack MVTec AD.")
    parser.add_argument("source", type=Path, help="folder with images, or a downloaded archive of MVTec AD")
    parser.add_argument(
        "target",
        type=Path,
        nargs="?",
        help=f"of a folder the table, by default its {TABLE}; of an archive the folder that gets its categories",
    )
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        if args.target is None:
            parser.error(f"{args.source} is no folder; of an archive give the folder that gets its categories, too")
        return mvtec.main([str(args.source), str(args.target)])
    table = args.target or args.source / TABLE
    try:
        rows = write_table(args.source, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _tell(args.source, table, rows)
    return 0


def _tell(folder: Path, table: Path, rows: list[dict[str, str]]) -> None:
    """Print what a table lists, and what to do with it."""
    labels = Counter(row["label"] or "without a label" for row in rows)
    counted = ", ".join(f"{count} {label}" for label, count in labels.most_common())
    print(f"{table}: {len(rows)} images, {counted}; {sum(bool(row['mask']) for row in rows)} with a mask")
    for kind, label in ((label.removeprefix("defect_"), label) for label in labels):
        if kind != label == label_of(kind):
            print(f"{label} stands for the kind {kind}, since a label {kind} says only whether an image is normal")
    named = {row[column] for row in rows for column in ("path", "mask")}
    rest = [path for path in (p.relative_to(folder).as_posix() for p in images_below(folder)) if path not in named]
    if rest:
        print(f"{len(rest)} images of {folder} are not listed: {listed(rest)}")
    if not all(row["label"] for row in rows):
        print("fill in the column label first: good, or the kind of defect; remove the rows of other images")
    root, path = (shlex.quote(str(one)) for one in (folder, table))
    # This is a door as well, which speaks of the command line's keys.
    print(f"next: texture-ad check data=folder data.root={root} data.table={path}")


if __name__ == "__main__":
    sys.exit(main())
