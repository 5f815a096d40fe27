"""Files that are there whole or not at all."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Writes under a temporary name beside `path`, then renames; makes the folder.

    Raises:
        OSError: the disk is full or can't be written; `path` is as it was.
    """
    temporary = path.with_name(path.name + ".partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_atomic` in UTF-8; what is no Unicode in a name is escaped."""
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def save_atomic(path: Path, content: dict) -> None:
    """`write_atomic` of tensors and plain values; torch.save on a file would hide a full disk behind another error."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(Path(path), buffer.getbuffer())


def csv_text(rows: Iterable[Sequence]) -> bytes:
    """Rows as CSV in UTF-8; what is no Unicode in a name is escaped."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
