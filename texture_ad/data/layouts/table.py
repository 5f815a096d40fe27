"""A table of images: one row each, with its label and, where they are known, its mask, its side and its group."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from texture_ad.data.layouts.files import below_common, is_image
from texture_ad.data.layouts.flat import NORMAL, plain
from texture_ad.data.layouts.samples import Layout, Sample
from texture_ad.errors import UserError, did_you_mean

COLUMNS = {name: name for name in ("path", "label", "mask", "split", "group")}
NEEDED = ("path", "label")
# A value of the column split, to the side it stands for.
SPLITS = {
    "train": "train",
    "training": "train",
    "calibration": "calibration",
    "val": "calibration",
    "valid": "calibration",
    "validation": "calibration",
    "test": "test",
    "testing": "test",
}
ZERO = ("0", "0.0", "false")  # labels of normal images, beside their names
ONE = ("1", "1.0", "true")  # of anomalous ones
UNNAMED = (*ONE, "ng", "bad", "defect", "anomaly", "anomalous", "abnormal")  # of no kind of defect


@dataclass(frozen=True)
class Row:
    """Hold one row of a table, as it stands there.

    Args:
        line: its number in the file, from 1.
        path: of the image.
        label: 0 or a word for normal, 1 or a word for anomalous, or the kind of defect.
        mask: path of the mask, "" for none.
        split: one of `SPLITS`, "" for none.
        group: of the image, "" for none.
        category: the texture, where the table has several.
    """

    line: int
    path: str = ""
    label: str = ""
    mask: str = ""
    split: str = ""
    group: str = ""
    category: str = ""


def read_rows(table: Path, columns: Mapping[str, str] = COLUMNS) -> list[Row]:
    """Read a table of comma, semicolon or tab separated values in UTF-8, whose first line names its columns.

    Args:
        table: the file.
        columns: of the table, in any order and case, to those of a `Row`.

    Raises:
        UserError: no such file, no text, or columns and rows that are not as described; the message names the line.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{table}: can't be read as a table ({reason}); expected a CSV file in UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = _checked_columns(table, next(reader, []), columns)
        rows = list(_rows(table, reader, names))
    except csv.Error as error:
        raise UserError(f"{table}: line {reader.line_num}: no row of a table ({error})") from error
    if not rows:
        raise UserError(f"{table}: has no rows; expected one for each image")
    return rows


def _checked_columns(table: Path, names: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Return the columns of a `Row` that a table's first line names."""
    found = [name.strip().lower() for name in names]
    expected = f"expected {', '.join(columns)}"
    for name in found:
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise UserError(f"{table}: line 1: unknown column {name!r}; {hint}{expected}")
        if found.count(name) > 1:
            raise UserError(f"{table}: line 1: two columns {name!r}; remove one")
    own = [columns[name] for name in found]
    missing = [name for name, ours in columns.items() if ours in NEEDED and ours not in own]
    if missing:
        raise UserError(f"{table}: line 1: has no column {missing[0]!r}; {expected}")
    return own


def _rows(table: Path, reader: Iterator[list[str]], names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows that are not empty."""
    for values in reader:
        line = reader.line_num  # type: ignore[attr-defined]
        if len(values) != len(names) and values:
            raise UserError(f"{table}: line {line}: {len(values)} values, expected {len(names)}, one for each column")
        if any(value.strip() for value in values):
            yield Row(line, **{name: value.strip() for name, value in zip(names, values, strict=True)})


def table_layout(table: Path, rows: Sequence[Row], base: Path) -> Layout:
    """List the images of a table's rows.

    Anomalous images that a split gives to training or calibration are left out. Without a split, anomalous images test,
    and normal ones for testing are still to be drawn.

    Args:
        table: the file, for errors.
        rows: of the table.
        base: folder that relative paths start from.

    Raises:
        UserError: rows that can't be used; the message counts them and names the first and its line.
    """
    divided = any(row.split for row in rows)
    lines: dict[Path, int] = {}
    problems = [(row.line, _problem(row, base, divided, lines)) for row in rows]
    faults = [f"line {line}: {problem}" for line, problem in problems if problem]
    if faults:
        others = f" ({len(faults)} rows can't be used)" if faults[1:] else ""
        raise UserError(f"{table}: {faults[0]}{others}")
    sides: dict[str, list[Sample]] = {"train": [], "calibration": [], "test": []}
    left_out: dict[str, list[Path]] = defaultdict(list)
    _, names = below_common(_file(base, row.path) for row in rows)
    for row, name in zip(rows, names, strict=True):
        sample = _sample(row, base, name.as_posix())
        if row.mask and not sample.label:
            left_out["masks of normal images"].append(_file(base, row.mask))
        side = SPLITS[row.split.lower()] if divided else "test" if sample.label else "train"
        if sample.label and side != "test":
            left_out[f"anomalous {side.replace('train', 'training')} images"].append(sample.path)
        else:
            sides[side].append(sample)
    undivided = not divided and bool(sides["test"])
    return Layout("table", **sides, left_out=dict(left_out), labels=[table], undivided=undivided)


def _problem(row: Row, base: Path, divided: bool, lines: dict[Path, int]) -> str:
    """Return why a row can't be used, "" where it can; `lines` gathers the line of each image."""
    path = _file(base, row.path)
    if not row.path:
        return "has no path"
    if not path.is_file():
        return f"no such file {path}"
    if not is_image(path):
        return f"{path} is of no format that can be read"
    if lines.setdefault(path, row.line) != row.line:
        return f"{path} stands in line {lines[path]} already"
    if not row.label:
        return "has no label; expected 0, 1, or the kind of defect"
    if Path(row.label).name != row.label or row.label == "..":
        return f"label={row.label}: expected 0, 1, or the kind of defect, without a slash"
    if row.mask and not _file(base, row.mask).is_file():
        return f"no such mask {_file(base, row.mask)}"
    if divided and row.split.lower() not in SPLITS:
        return f"split={row.split or 'nothing'}: expected train, calibration or test"
    return ""


def _file(base: Path, text: str) -> Path:
    """Return the path that a table names, without "..", so that each file has one path."""
    return Path(os.path.normpath(base / text))


def label_of(kind: str) -> str:
    """Return the label of a kind of defect: its name, or another where a table's reader takes that for 0 or 1."""
    return f"defect_{kind}" if plain(kind) in (*ZERO, *ONE, *NORMAL) else kind


def _sample(row: Row, base: Path, name: str) -> Sample:
    """Return a row's image."""
    label = plain(row.label)
    path = _file(base, row.path)
    if label in (*ZERO, *NORMAL):
        return Sample(path, name=name, group=row.group)
    kind = "anomalous" if label in UNNAMED else row.label
    return Sample(path, 1, kind, _file(base, row.mask) if row.mask else None, name, group=row.group)
