"""Write files that are either complete or absent. Imports nothing heavy."""

import csv
import errno
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from texture_ad.errors import ParameterError, UserError

UNLOCKABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems without locks, such as some of a network


def reason(error: OSError) -> str:
    """Return why the system refuses something, in words that say so where a file stands in a folder's place.

    Examples:
        >>> reason(FileExistsError(errno.EEXIST, "File exists"))
        'a file is in the way'
    """
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is in the way"
    return str(error) if error.errno is None else os.strerror(error.errno)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` for a library to write to, and rename it to `path` at the end.

    Makes the folder. Where an exception leaves the block, the temporary file is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to `path` and wait until they are on the disk; make the folder.

    Raises:
        OSError: the disk is full or can't be written; `path` is as it was.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 by `write_atomic`; escape what is no Unicode in a name."""
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def save_atomic(path: Path, content: dict) -> None:
    """Write tensors and plain values by `write_atomic`.

    torch.save on a file would hide a full disk behind another error.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(Path(path), buffer.getbuffer())


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those that it lies in, as far as they are not there, the innermost first."""
    return [place for place in (folder, *folder.parents) if not os.path.exists(place)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that are empty, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_writable(folder: Path) -> None:
    """Make a folder, and check that files can be written there.

    Raises:
        OSError: they can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_output_file(path: Path) -> None:
    """Check that a command can write its `output`, a file, before the work; leave no folder behind.

    Raises:
        ParameterError: it can't.
    """
    if os.path.isdir(path):
        raise ParameterError("output", path, "is a folder; give another file")
    _check_output(path, path.parent, "file")


def check_output_folder(folder: Path, name: str = "output") -> None:
    """Check that a command can write into its `output`, a folder, before the work; leave none behind.

    Args:
        folder: that is asked for.
        name: of the parameter that asks for it.

    Raises:
        ParameterError: it can't.
    """
    _check_output(folder, folder, "folder", name)


def _check_output(output: Path, folder: Path, kind: str, name: str = "output") -> None:
    missing = missing_folders(folder)
    try:
        check_writable(folder)
    except OSError as error:
        raise ParameterError(name, output, f"can't be written ({reason(error)}); give another {kind}") from error
    finally:
        remove_empty(missing)


def content_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(2**20), b""):
            digest.update(block)
    return digest.digest()


def csv_text(rows: Iterable[Sequence]) -> bytes:
    """Return rows as CSV in UTF-8; escape what is no Unicode in a name."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def lock(path: Path, advice: str = "give another output", file: Path | None = None) -> BaseFileLock | None:
    """Return a lock that this process alone holds until it ends.

    Only a lock of the operating system ends with a killed process. Where there is none, a line on stderr says so.

    Args:
        path: that is locked; it need not exist.
        advice: what to do where another process holds it.
        file: that stands for it, None for one beside it.

    Raises:
        UserError: another process holds it.
    """
    if issubclass(FileLock, SoftFileLock):
        _note_unlocked(path)
        return None
    file = file or Path(f"{path}.lock")
    held = FileLock(file)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{path}: another process is writing to it; {advice}") from error
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        with suppress(OSError):
            file.unlink()
        _note_unlocked(path)
        return None
    return held


def _note_unlocked(path: Path) -> None:
    """Say on stderr that a path is not locked."""
    print(f"note: {path} is not locked: this system has no file locks; use one process", file=sys.stderr)


def check_unlocked(path: Path) -> None:
    """Check that no process holds the lock of a file.

    Raises:
        UserError: one does.
    """
    if Path(f"{path}.lock").exists():
        held = lock(path)
        if held is not None:
            held.release()
