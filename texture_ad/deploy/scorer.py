"""Scoring photographs with a saved detector: a list of files at once, or a folder that a camera writes to.

Order of reading: `find_images` -> `Scorer.score` -> `predict` or `watch`.
"""

import csv
import io
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from texture_ad.data.drift import ImageStatistics, brightness, differences
from texture_ad.data.images import IMAGE_SUFFIXES, read_image, resize
from texture_ad.errors import UserError
from texture_ad.evaluation.localization import region_mask
from texture_ad.files import csv_text, write_atomic

COLUMNS = ("path", "score", "threshold", "anomalous", "warning")


def find_images(source: Path, output: Path) -> list[Path]:
    """The images below `source` (or itself) in order of name, without those below `output`, our own pictures."""
    if source.is_file():
        return [source]
    output = output.resolve()
    found = (p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted(p for p in found if output not in p.resolve().parents)


class Scorer:
    """Scores batches of files and keeps count.

    Args:
        detector: loaded, on its device.
        root: names in the results are relative to it.
        output: folder of the overlays, or None for none.

    Attributes:
        images, anomalous: counts so far; failed: what could not be read, a message each; unlike: how many images
            differ from the training images in each respect, with the first one's description in `first`.
    """

    def __init__(self, detector: nn.Module, root: Path, output: Path | None):
        self.detector = detector
        self.root = root
        self.output = output
        self.size = detector.settings["size"]
        self.threshold = float(detector.threshold)
        self.source = f"detector of {detector.meta.get('data_source', 'unknown data')}"
        self.device = detector.threshold.device
        self.images = self.anomalous = 0
        self.failed: list[str] = []
        self.unlike: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def name(self, path: Path) -> str:
        """How the results name a file."""
        return str(path.relative_to(self.root)).encode("utf-8", "backslashreplace").decode()

    def _overlay(self, path: Path, image, anomaly_map, positions, grid: tuple[int, int], score: float) -> None:
        from texture_ad.reporting.figures import localization_panel

        place = path.relative_to(self.root)
        # Two images may differ in their suffix alone.
        place = place if place.suffix == ".png" else place.with_name(place.name + ".png")
        target = self.output / "overlays" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        region = region_mask(positions, grid, (self.size, self.size))
        localization_panel(
            image,
            anomaly_map,
            region,
            None,
            score,
            self.threshold,
            None,
            target,
            0.0,
            max(2 * self.threshold, 1.0),
            self.source,
        )

    def _unlike(self, path: Path, levels: torch.Tensor) -> str:
        statistics = self.detector.meta.get("training_images")
        found = differences(ImageStatistics.from_dict(statistics), path, levels) if statistics else {}
        for respect, sentence in found.items():
            self.unlike[respect] += 1
            self.first.setdefault(respect, f"{self.name(path)}: {sentence}")
        return "; ".join(found.values())

    def read(self, paths: list[Path]) -> list[torch.Tensor | UserError]:
        """The images, uint8 (3, size, size), or why one can't be read; changes nothing, so any thread may."""
        found = []
        for path in paths:
            try:
                found.append(resize(read_image(path), self.size))
            except UserError as error:
                found.append(error)
        return found

    def score(self, paths: list[Path], contents: list[torch.Tensor | UserError]) -> list[tuple]:
        """One row of COLUMNS for every file, in order; a file that can't be read has no score and says why.

        Args:
            paths: of the files.
            contents: what `read` gives for them.
        """
        images = {}
        notes = {}
        for path, content in zip(paths, contents, strict=True):
            try:
                if isinstance(content, UserError):
                    raise content
                notes[path] = self._unlike(path, brightness(content[None])[0])
                images[path] = content
            except UserError as error:
                notes[path] = str(error)
                self.failed.append(str(error))
        rows = {path: (self.name(path), "", f"{self.threshold:.8g}", "", notes[path]) for path in paths}
        if images:
            batch = torch.stack(list(images.values())).to(self.device)
            scores, maps, positions = (t if t is None else t.cpu() for t in self.detector(batch))
            grid = self.detector.grid() if self.output else None
            for i, path in enumerate(images):
                score = float(scores[i])
                anomalous = int(score > self.threshold)
                self.images = self.images + 1
                self.anomalous = self.anomalous + anomalous
                rows[path] = (self.name(path), f"{score:.8g}", f"{self.threshold:.8g}", anomalous, notes[path])
                if self.output and maps is not None:
                    self._overlay(
                        path, images[path].permute(1, 2, 0).numpy(), maps[i].numpy(), positions[i].numpy(), grid, score
                    )
        return [rows[path] for path in paths]

    def report(self) -> None:
        """The share above the threshold to stdout, what differs from the training images to stderr."""
        share = f" ({self.anomalous / self.images:.1%})" if self.images else ""
        quantile = self.detector.meta.get("quantile")
        expected = f"; of normal images {1 - quantile:.1%} are expected" if quantile else ""
        print(
            f"{self.source}: {self.anomalous} of {self.images} images{share} above the threshold "
            f"{self.threshold:.4g}{expected}",
            flush=True,
        )
        for respect, count in self.unlike.items():
            print(
                f"warning: {count} of {self.images} images differ in {respect} from the training images, first "
                f"{self.first[respect]}; their scores may mean little",
                file=sys.stderr,
            )
        if "training_images" not in self.detector.meta:
            print(
                "warning: the detector holds no statistics of its training images; a drift would go unseen",
                file=sys.stderr,
            )


def predict(scorer: Scorer, paths: list[Path], output: Path, batch_size: int) -> None:
    """Scores all files, then writes scores.csv whole; a thread decodes each batch while the one before is scored.

    Raises:
        UserError: after everything is written, if a file could not be read.
    """
    rows = []
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(scorer.read, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            contents = ahead.result()
            ahead = reader.submit(scorer.read, following)
            rows += scorer.score(batch, contents)
    write_atomic(output / "scores.csv", csv_text([COLUMNS, *rows]))
    scorer.report()
    print(f"scores   {output / 'scores.csv'}")
    if scorer.failed:
        raise UserError(f"{len(scorer.failed)} of {len(paths)} images could not be scored, first: {scorer.failed[0]}")


class Rows:
    """A CSV that grows by whole rows and survives a kill: what a kill left half written is cut off on opening.

    Raises:
        UserError: another process has it open, or it is a file of another kind.
    """

    def __init__(self, path: Path):
        import fcntl

        self.file = open(path, "a+b")  # noqa: SIM115, it stays open with its lock
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path}: another process is writing to it; give another output") from error
        self.file.seek(0)
        whole = quotes = end = 0
        for line in self.file:
            # A name may hold a newline; its row ends where the quotes are closed.
            end = end + len(line)
            quotes = quotes + line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = end
        self.file.truncate(whole)
        self.file.seek(0)
        rows = list(csv.reader(io.StringIO(self.file.read().decode("utf-8"), newline="")))
        if rows and tuple(rows[0]) != COLUMNS:
            raise UserError(f"{path}: not the scores of a watched folder; give another output")
        self.names = {row[0] for row in rows[1:]}
        if not rows:
            self.append([COLUMNS])
            self.names = set()

    def append(self, rows: list[tuple]) -> None:
        """Adds rows in one write and waits until they are on the disk."""
        os.write(self.file.fileno(), csv_text(rows))
        os.fsync(self.file.fileno())
        self.names |= {row[0] for row in rows}


def watch(scorer: Scorer, folder: Path, output: Path, batch_size: int, interval: float) -> None:
    """Scores every new file once, by its name, as it arrives, until SIGINT or SIGTERM.

    A file counts as complete when its size and time are as they were one interval before. Rows are appended after
    their overlays are written; a restart skips the names that scores.csv has.
    """
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    rows = Rows(output / "scores.csv")
    print(f"watching {folder}, {len(rows.names)} images scored before; Ctrl-C ends", flush=True)
    seen: dict[Path, tuple[int, int]] = {}
    while not stopped:
        now = {}
        for path in find_images(folder, output):
            if scorer.name(path) in rows.names:
                continue
            try:
                status = path.stat()
            except OSError:  # moved away meanwhile
                continue
            now[path] = (status.st_size, status.st_mtime_ns)
        settled = [path for path, state in now.items() if seen.get(path) == state]
        seen = now
        for start in range(0, len(settled), batch_size):
            if stopped:
                break
            batch = settled[start : start + batch_size]
            scored = scorer.score(batch, scorer.read(batch))
            rows.append(scored)
            print(f"{scorer.images} images, {scorer.anomalous} above the threshold, last {scored[-1][0]}", flush=True)
        deadline = time.monotonic() + interval
        while not stopped and time.monotonic() < deadline:
            time.sleep(min(0.1, interval))
    scorer.report()
