"""Score a folder that a camera writes to: every new file, and every one that changes, over kills and restarts.

Order of reading: `watch`, then `Rows` and `States`, its memory of what was scored, and `Arrivals`, its look for more.
"""

import csv
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from texture_ad.data.layouts.files import Entry, Warn, has_image_name, is_image_entry
from texture_ad.deploy.notify import Tell
from texture_ad.deploy.outputs import WATCHED, Wanted, watched_folder
from texture_ad.deploy.results import message
from texture_ad.deploy.scorer import COLUMNS, Row, Scorer, check_source, row, scan_foreign
from texture_ad.deploy.stream import Stream, write_report
from texture_ad.errors import ParameterError, UserError
from texture_ad.files import csv_text, lock, write_text
from texture_ad.parameters import Count, NonNegative, Positive, checked

HEADER = csv_text([COLUMNS])


class State(NamedTuple):
    """Hold what a look tells of a file.

    Attributes:
        size: in bytes.
        changed: when its content changed, in nanoseconds.
        touched: when its content, name or permissions did.
    """

    size: int
    changed: int
    touched: int

    def same_content(self, other: "State | None") -> bool:
        """Return whether the content is that of another state."""
        return other is not None and self[:2] == other[:2]


def check_folder(source: Path) -> None:
    """Check that there is a folder to watch.

    Raises:
        ParameterError: no such folder.
    """
    check_source(source)
    if not source.is_dir():
        raise ParameterError("input", source, "not a folder")


def check_endless(wanted: Wanted) -> None:
    """Check that nothing is asked for that needs all photographs at once.

    Raises:
        ParameterError: regions.json, or a submission, in which no two names may be alike.
    """
    for name in ("regions", "submission"):
        if getattr(wanted, name):
            raise ParameterError(name, True, "a watched folder has no end at which it is whole; use masks=true")


def bytes_of_complete_rows(lines: Iterable[bytes]) -> int:
    """Return how many bytes the complete rows of a CSV take; a torn last row is left out.

    Args:
        lines: of the file, each with its line break. A quoted name may hold a line break; its row ends where the quotes
            are closed.
    """
    complete = 0
    read = 0
    quotes = 0
    for line in lines:
        read += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            complete = read
    return complete


class Rows:
    """Keep a CSV that grows by complete rows: opening it cuts off a row that a kill left half written.

    Args:
        path: of the CSV; made where it is missing.
        threshold: of now, which the rows found may not have been scored by.

    Attributes:
        stream: what the rows say by the threshold of now.
        thresholds: that the rows found had been scored by, as text.

    Raises:
        UserError: another process has it open, or it is a file of another kind.
    """

    def __init__(self, path: Path, threshold: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.stream = Stream(threshold)
        self.thresholds: set[str] = set()
        self._lock = lock(path)
        self._file = open(path, "a+b")  # noqa: SIM115, it stays open with its lock
        self._take_over()

    @property
    def names(self) -> KeysView[str]:
        """Return the names of the files whose last row has a score."""
        return self.stream.scores.keys()

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let other processes open it."""
        self._file.close()
        if self._lock is not None:
            self._lock.release()

    def _take_over(self) -> None:
        """Cut off a torn row and take over the names of the others; write the header of a new file."""
        self._file.seek(0)
        content = self._file.read()
        if not (content.startswith(HEADER.rstrip()) or HEADER.startswith(content)):
            self.close()
            raise UserError(f"{self.path}: not the scores of a watched folder; give another output")
        complete = content[: bytes_of_complete_rows(io.BytesIO(content))]
        self._file.truncate(len(complete))
        if not complete:
            self._write(HEADER)
        rows = list(csv.reader(io.StringIO(complete.decode("utf-8", "replace"), newline="")))
        complete_rows = [Row(*row) for row in rows[1:] if len(row) == len(COLUMNS)]
        self.stream.add(complete_rows)
        self.thresholds = {row.threshold for row in complete_rows} - {""}

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows in one write and wait until they are on the disk."""
        self._write(csv_text(rows))
        self.stream.add(rows)

    def _write(self, content: bytes) -> None:
        _append(self._file.fileno(), content)


def _append(file: int, content: bytes) -> None:
    """Write at the end of a file and wait until it is on the disk; on an error the file is as before."""
    size = os.fstat(file).st_size
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


class States:
    """Keep the state in which each file got its score: a line of JSON for each, below that of the folder.

    Args:
        path: of the file, which has the folder's line.
        scores: of the files whose last row has one, by name, as text.
    """

    def __init__(self, path: Path, scores: Mapping[str, str]):
        self.path = path
        self._known: dict[str, State] = {}
        content = path.read_bytes()
        for line in content.splitlines()[1:]:
            with suppress(ValueError, TypeError):  # which a kill left half written
                name, score, size, changed = json.loads(line)
                if scores.get(name) == score:  # else a kill kept the row off the disk
                    self._known[name] = State(size, changed, 0)
        if not content.endswith(b"\n"):
            self._write(b"\n")

    def pop(self, name: str) -> State | None:
        """Return, and forget, the state in which a file got the score of its last row; None where none is known."""
        return self._known.pop(name, None)

    def append(self, scored: Iterable[tuple[Row, State]]) -> None:
        """Add the states in which files get these rows, and wait until they are on the disk. Add the rows later."""
        lines = (json.dumps([row.path, row.score, *state[:2]]) + "\n" for row, state in scored if row.score)
        self._write("".join(lines).encode())

    def _write(self, content: bytes) -> None:
        with open(self.path, "ab") as file:
            _append(file.fileno(), content)


class Stop:
    """Remember that SIGINT or SIGTERM has asked this process to end, instead of ending at once.

    Attributes:
        asked: whether one of them has arrived.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        """Handle the signal."""
        self.asked = True

    def wait(self, seconds: float) -> None:
        """Sleep for this time, or until a signal arrives."""
        deadline = time.monotonic() + seconds
        while not self.asked and time.monotonic() < deadline:
            time.sleep(min(0.1, seconds))


def states(paths: Iterable[str]) -> Iterator[tuple[str, State]]:
    """Yield each file with its state; files that were moved away meanwhile are left out."""
    for path in paths:
        try:
            status = os.stat(path)  # an entry's own may be of an earlier moment on Windows
        except OSError:
            continue
        yield path, State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Arrivals:
    """Look for the files of a folder that are to be scored: new ones, and those that changed since, once they rest.

    One line on stderr says of the folder that it went or came back, of one below it that it can't be read, and of the
    first file of each kind that is no image.

    Args:
        folder: that is looked through, with all folders below it.
        output: folder of our own files, which are left out.
        settle: seconds for which a file must have been the same; at the least it is from one look to the next.
        clock: returns seconds.

    Attributes:
        taken: state in which each file was last taken to be scored.
    """

    def __init__(self, folder: Path, output: Path, settle: float, clock: Callable[[], float] = time.monotonic):
        self.folder = folder
        self.output = output
        self.settle = settle
        self.clock = clock
        self.taken: dict[str, State] = {}
        self._device = _device(folder)
        self._problems: set[str] = set()
        self._no_images: set[str] = set()  # suffixes of files that were told to be none
        self._resting: dict[str, tuple[State, float]] = {}  # the others: their state, and the look that first saw it

    def look(
        self, has_score: Callable[[Path], bool], state_before: Callable[[Path], State | None] = lambda _: None
    ) -> dict[Path, State]:
        """Return the files to score now with their states, in order of name.

        Args:
            has_score: whether a file was scored when it was last taken.
            state_before: in which an earlier process took a file. Where that is not known, the state at the first look
                stands for it.
        """
        now = self.clock()
        if self._device_changed():
            # What failed while it went may be sound.
            self.taken = {path: state for path, state in self.taken.items() if has_score(Path(path))}
        problems: list[UserError] = []
        resting = {}
        for path, state in states(entry.path for entry in self._images(problems.append)):
            taken = self.taken.get(path)
            if taken is None and (taken := state_before(Path(path))) is not None:
                self.taken[path] = taken
            if state != taken and (taken is None or state.same_content(taken)) and has_score(Path(path)):
                self.taken[path] = taken = state
            if state != taken:
                before, since = self._resting.get(path, (None, now))
                resting[path] = (state, since if before == state else now)
        self._resting = resting
        self._warn({str(problem) for problem in problems})
        settled = [path for path, (_, since) in resting.items() if since < now and now - since >= self.settle]
        self.taken |= {path: resting[path][0] for path in settled}
        return dict(sorted((Path(path), resting[path][0]) for path in settled))

    def _images(self, warn: Warn) -> Iterator[Entry]:
        """Yield the entries of the folder's images, and say of the first file of each other kind that it is none."""
        for entry in scan_foreign(self.folder, self.output, warn):
            if is_image_entry(entry):
                yield entry
            elif not has_image_name(entry.name):
                self._say_left_out(Path(entry.path))

    def _say_left_out(self, path: Path) -> None:
        """Say once of each suffix that files with it are left out, but for those directly in the output, our own."""
        if path.suffix in self._no_images or path.parent.resolve() == self.output.resolve():
            return
        self._no_images.add(path.suffix)
        kind = f"files *{path.suffix}" if path.suffix else "files without a suffix"
        print(f"note: {kind} are no images and are left out, first {path}", file=sys.stderr, flush=True)

    def _device_changed(self) -> bool:
        """Return, and say, whether the folder went, came back or lies on another file system than at the last look."""
        before, self._device = self._device, _device(self.folder)
        if self._device == before:
            return False
        if self._device is None:
            what = "warning: {} is gone; it is watched again when it comes back"
        elif before is None:
            what = "note: {} is there again"
        else:
            what = "warning: {} lies on another file system than before; was a share mounted or unmounted?"
        print(what.format(self.folder), file=sys.stderr, flush=True)
        return True

    def _warn(self, problems: set[str]) -> None:
        """Warn of the problems that were not there at the last look."""
        for problem in sorted(problems - self._problems):
            print(f"warning: {problem}; all others are watched", file=sys.stderr, flush=True)
        self._problems = problems


def _device(folder: Path) -> int | None:
    """Return the number of the file system that a folder lies on, None where it is gone."""
    try:
        return os.stat(folder).st_dev
    except OSError:
        return None


def _score_new(
    scorer: Scorer, rows: Rows, states: States, settled: dict[Path, State], batch_size: int, stop: Stop, tell: Tell
) -> None:
    """Score files in batches and append their rows, until all are done or the process is asked to stop."""
    paths = list(settled)
    for start in range(0, len(paths), batch_size):
        if stop.asked:
            return
        batch = paths[start : start + batch_size]
        scored = scorer.score(batch, scorer.read(batch))
        found = [(result, row(result, scorer.decision)) for result in scored]
        states.append((new, settled[path]) for path, (_, new) in zip(batch, found, strict=True))
        # Of a file that was only touched, the row that is there says the same.
        found = [
            (result, new) for result, new in found if result.error or rows.stream.scores.get(new.path) != new.score
        ]
        if not found:
            continue
        for result, _ in found:
            if result.error:
                print(f"warning: {result.error}", file=sys.stderr, flush=True)
            if result.name in rows.names and result.name not in rows.stream.changed:
                what = "changed after it was scored; it is scored again and gets another row"
                print(f"warning: {result.path}: {what}", file=sys.stderr, flush=True)
        # One that failed before, and does so again, has its row.
        rows.append([new for result, new in found if not result.error or result.name not in rows.stream.unreadable])
        for result, _ in found:
            tell(message(result, scorer.decision))
        print(f"{scorer.images} images, {scorer.anomalous} above the threshold, last {found[-1][0].name}", flush=True)


def _claim(output: Path, folder: Path, rows: Rows) -> None:
    """Note that scores.csv in `output` is the record of a folder.

    Raises:
        ParameterError: it holds the rows of another folder, or of a command that watched none.
    """
    own = str(folder.resolve())
    if rows.names or rows.stream.unreadable:
        other = watched_folder(output)
        if other != own:
            whose = f"the watched folder {other}" if other else "a command that watched no folder"
            raise ParameterError("output", output, f"its scores.csv has the rows of {whose}; give another folder")
    else:
        write_text(output / WATCHED, json.dumps({"folder": own}) + "\n")


@checked
def watch(
    scorer: Scorer,
    folder: Path,
    output: Path,
    batch_size: Count,
    interval: Positive,
    report: Positive | None = None,
    tell: Tell = lambda _: None,
    settle: NonNegative = 0,
) -> None:
    """Score every new file, and every one that changes, until SIGINT or SIGTERM.

    A file counts as complete when its size and time are as they were one interval, or `settle` seconds, before. Rows
    are appended after their overlays are written; a restart skips the files that have a score in scores.csv and did not
    change since. A file that changes after it was scored is scored again; where its score is another, it is warned of
    and gets another row. One that can't be scored is tried again when it changes, and after a restart.

    Args:
        scorer: with the detector.
        folder: that is watched, with all folders below it.
        output: folder of scores.csv and watched.json.
        batch_size: images that are scored together, at most.
        interval: seconds between looks at the folder.
        report: seconds between reports of the stream, stream.html, of which one is written at the end as well; None
            for none.
        tell: called with each result as plain values, once its row is on the disk.
        settle: seconds for which a file must rest before it is scored; less than an interval means one interval.

    Raises:
        UserError: another process writes to the same scores.csv, it is of another folder, or a file of another kind.
    """
    stop = Stop()
    arrivals = Arrivals(folder, output, settle)
    with Rows(output / "scores.csv", scorer.decision.threshold) as rows:
        _claim(output, folder, rows)
        states = States(output / WATCHED, rows.stream.scores)
        threshold = f"{scorer.decision.threshold:.8g}"
        others = rows.thresholds - {threshold}
        if others:
            problem = f"holds scores by a threshold of {', '.join(sorted(others))}, which is now {threshold}"
            advice = (
                "the report judges all of them by the threshold of now; after a change of detector give another output"
            )
            print(f"warning: {output / 'scores.csv'}: {problem}; {advice}", file=sys.stderr)
        print(f"watching {folder}, {len(rows.names)} images scored before; Ctrl-C ends", flush=True)
        reported = time.monotonic()
        while not stop.asked:
            settled = arrivals.look(
                lambda path: scorer.name(path) in rows.names, lambda path: states.pop(scorer.name(path))
            )
            _score_new(scorer, rows, states, settled, batch_size, stop, tell)
            if report is not None and time.monotonic() >= reported + report:
                write_report(rows.stream, scorer, output / "stream.html")
                reported = time.monotonic()
            stop.wait(interval)
        if report is not None:
            write_report(rows.stream, scorer, output / "stream.html")
    scorer.report()
