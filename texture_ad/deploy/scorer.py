"""Score photographs with a saved detector: which files, one row for each, and an overlay of what was found.

Order of reading: `find_files`, `Scorer.score`, `predict`. `texture_ad.deploy.watch` scores a folder that grows.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from texture_ad.data.drift import Unlike, brightness
from texture_ad.data.images import header
from texture_ad.data.layouts.files import Entry, Warn, images_below, is_image_entry, listed, scan_files, unread
from texture_ad.data.pictures import Picture, read_scaled
from texture_ad.deploy.outputs import (
    FOLDERS,
    Wanted,
    check_unwatched,
    holds_results,
    left_before,
    write_files,
    write_regions,
    written_at,
)
from texture_ad.deploy.results import Result, decide
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import Decision
from texture_ad.files import check_unlocked, check_writable, csv_text, write_atomic
from texture_ad.methods.base import AnomalyDetector, Prediction
from texture_ad.parameters import Count, checked


class Photograph(NamedTuple):
    """Hold a photograph as the detector wants it.

    Attributes:
        image: uint8 (3, h, w), as it is shown.
        size: (H, W) of the file in pixels.
        picture: to be cut into tiles, None where the image itself is scored.
    """

    image: Tensor
    size: tuple[int, int]
    picture: Picture | None = None


PICTURES = Wanted(pictures=True)
Content = Photograph | Picture | UserError  # a picture that is not decoded yet, or why it can't be read
Readable = dict[Path, tuple[Photograph, str]]  # photographs by their files, each with its warning


class Row(NamedTuple):
    """State what scores.csv holds of one image, as text; all but the path is empty where it can't be read.

    Attributes:
        path: the file's name below the scored folder.
        score: of the image.
        level: the score on a scale for people, 0.5 at the threshold.
        threshold: of the scores.
        anomalous: 1 where the score is above the threshold, else 0.
        label: "normal", "anomalous" or, where that is asked for, "unsure".
        regions: how many regions were found.
        area: share of the image's pixels in them.
        warning: how the image differs from the training images, or why it can't be read.
    """

    path: str
    score: str = ""
    level: str = ""
    threshold: str = ""
    anomalous: str = ""
    label: str = ""
    regions: str = ""
    area: str = ""
    warning: str = ""


COLUMNS = Row._fields


def row(result: Result, decision: Decision) -> Row:
    """Return the row of a result of this decision."""
    if result.score is None or result.level is None or result.size is None:
        return Row(result.name, warning=result.error)
    located = decision.pixel_threshold is not None
    return Row(
        path=result.name,
        score=f"{result.score:.8g}",
        level=f"{result.level:.4f}",
        threshold=f"{decision.threshold:.8g}",
        anomalous=str(int(decision.is_anomalous(result.score))),
        label=result.label,
        regions=str(len(result.regions)) if located else "",
        area=f"{result.area:.6f}" if located else "",
        warning=result.warning,
    )


def check_source(source: Path, name: str = "input") -> None:
    """Check that there is something to score.

    Args:
        source: a file or a folder.
        name: of the parameter that gives it, for errors.

    Raises:
        ParameterError: no such file or folder.
    """
    if not source.exists():
        raise ParameterError(name, source, "no such file or folder")


class Found(NamedTuple):
    """Hold the files of a folder, each in order of name.

    Attributes:
        images: those with the name of an image.
        others: the rest, but for results.
        results: pictures that an earlier `predict` made.
    """

    images: list[Path]
    others: list[Path]
    results: list[Path]

    def left_out(self, source: Path) -> Iterator[str]:
        """Yield a sentence on each kind of files of `source` that are left out."""
        for what, files in (("no images", self.others), ("results of predict, left out", self.results)):
            if files:
                yield f"{len(files)} files of {source} are {what}: {listed(files)}"


def find_files(source: Path, output: Path | None) -> Found:
    """Return the files below `source` that are not hidden, or `source` itself; a folder that is gone has none.

    Those below `output` are left out, because they are our own; where it holds `source` itself, those of FOLDERS in it,
    and of those directly in it all that are no images. Where an earlier `predict` wrote its results, pictures in those
    of FOLDERS are results. Without an output they are so in `source`, too: a `predict` that was stopped leaves them
    without its scores.csv.

    Raises:
        UserError: a folder that can't be read.
    """
    if source.is_file():
        return Found([source], [], [])
    target = output and output.resolve()
    resolved = cache(Path.resolve)
    found = Found([], [], [])
    results: set[Path] = set()
    for entry in scan_foreign(source, output, results=results):
        path = Path(entry.path)
        if is_image_entry(entry):
            found.images.append(path)
        elif resolved(path.parent) != target:
            found.others.append(path)
    return Found(sorted(found.images), sorted(found.others), sorted(results))


def scan_foreign(
    source: Path, output: Path | None, warn: Warn | None = None, results: set[Path] | None = None
) -> Iterator[Entry]:
    """Yield the files below a folder that `find_files` doesn't leave out, in no order; `warn` as in `scan_files`.

    Pictures that it leaves out are added to `results`.
    """
    root = source.resolve()
    ours = set() if output is None else {output.resolve()}
    if ours & {root, *root.parents}:
        ours = {folder / name for folder in ours for name in FOLDERS}

    def is_ours(place: Path) -> bool:
        return not ours.isdisjoint((place, *place.parents))

    def holds_pictures(place: Path) -> bool:
        outputs = [folder.parent for folder in (place, *place.parents) if folder.name in FOLDERS]
        return any((output is None and folder == root) or holds_results(folder) for folder in outputs)

    def is_left_out(place: Path) -> bool:
        return is_ours(place) or holds_pictures(place)

    def leave_out(place: Path) -> bool:
        if results is not None and not is_ours(place) and holds_pictures(place):
            shown = source / place.relative_to(root) if place.is_relative_to(root) else place
            results.update(images_below(shown))
        return is_left_out(place)

    for entry in scan_files(source, leave_out, warn) if os.path.isdir(source) else ():
        if not (entry.is_symlink() and is_left_out(Path(os.path.realpath(entry.path)).parent)):
            yield entry


def require_images(source: Path, output: Path | None, name: str = "input") -> Found:
    """Return what `find_files` finds, at least one image.

    Args:
        source: a file or a folder.
        output: see `find_files`.
        name: of the parameter that gives the source, for errors.

    Raises:
        ParameterError: no such file or folder, or no image in it.
    """
    check_source(source, name)
    found = find_files(source, output)
    if not found.images:
        results = f"; {len(found.results)} pictures are results of predict" if found.results else ""
        raise ParameterError(name, source, f"holds no image{unread(found.others)}{results}")
    return found


class Scorer:
    """Score batches of files and keep count of what was found.

    Args:
        detector: loaded, on its device.
        source: the folder, or the single file, that is scored; names in the results are relative to it.
        output: folder of what is written beside scores.csv, or None for nothing.
        decision: thresholds, None for the detector's own.
        wanted: which files.
        unsure: whether an image that is unlike the training images is neither called normal nor anomalous.
        keep_maps: whether results keep map, mask and panel, which can be large.

    Attributes:
        images: how many images were scored.
        anomalous: how many of them are above the threshold.
        failed: a message for each file that could not be read.
        unlike: counts the images that differ from the training images, and the files that hold several ("frames").
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        source: Path,
        output: Path | None,
        decision: Decision | None = None,
        wanted: Wanted = PICTURES,
        unsure: bool = False,
        keep_maps: bool = False,
    ):
        self.detector = detector
        self.unsure = unsure
        self.painters = torch.get_num_threads()  # draw overlays; a runtime leaves torch fewer threads later
        self.keep_maps = keep_maps
        self.root = source if source.is_dir() else source.parent
        self.output = output
        self.wanted = wanted
        self.size = detector.geometry.view
        self.decision = decision or detector.decision()
        self.provenance = detector.provenance
        self.source = f"detector of {self.provenance.data_source if self.provenance else 'unknown data'}"
        self.names: dict[Path, str] = {}  # of files whose own names say nothing
        self.images = 0
        self.anomalous = 0
        self.failed: list[str] = []
        self.unlike = Unlike()

    def name(self, path: Path) -> str:
        """Return the name of a file in the results; bytes that are no Unicode are escaped."""
        return (
            self.names.get(path) or path.relative_to(self.root).as_posix().encode("utf-8", "backslashreplace").decode()
        )

    def read(self, paths: list[Path]) -> list[Content]:
        """Return the images, or why one can't be read; it changes nothing, so that any thread may call it."""
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> Content:
        """Return one image, or why it can't be read."""
        try:
            if self.detector.geometry.tiled:  # large, so that only the one that is scored is decoded
                return Picture(path, self.detector.reading)
            return Photograph(*read_scaled(path, self.size, self.detector.reading))
        except UserError as error:
            return error

    def score(self, paths: list[Path], contents: list[Content]) -> list[Result]:
        """Return the result of every file, in order; of one that can't be read it says why.

        Args:
            paths: of the files.
            contents: what `read` returns for them.
        """
        examined = {path: self._examine(path, content) for path, content in zip(paths, contents, strict=True)}
        readable: Readable = {path: found for path, found in examined.items() if not isinstance(found, Result)}
        results = {
            path: result for part in self._predictions(readable) for path, result in self._results(*part).items()
        }
        found = [results[path] if path in results else examined[path] for path in paths]
        return found  # type: ignore[return-value]

    def _examine(self, path: Path, content: Content) -> tuple[Photograph, str] | Result:
        """Return a photograph and its warning, or the result of one that can't be read."""
        try:
            if isinstance(content, UserError):
                raise content
            if isinstance(content, Picture):
                content = Photograph(content.view(self.size), content.shape, content)
            return content, self._compare(path, brightness(self.detector.fill(content.image[None]))[0])
        except UserError as error:
            return self._failure(path, error)

    def _failure(self, path: Path, error: UserError) -> Result:
        """Return and count the result of a file that can't be scored."""
        self.failed.append(str(error))
        return Result(self.name(path), error=str(error), path=path)

    def _compare(self, path: Path, grey: Tensor) -> str:
        """Return and count how an image, by its file and its brightness (2,), differs from the training images."""
        statistics = self.provenance.training_images if self.provenance else None
        return self.unlike.compare(self.name(path), statistics, header(path), grey)

    def _predictions(self, photographs: Readable) -> Iterator[tuple[Readable, Prediction | UserError]]:
        """Yield photographs with their prediction; where one can have none, each alone, that one with the reason."""
        if not photographs:
            return
        try:
            yield photographs, self.detector(_batch([photograph for photograph, _ in photographs.values()]))
        except UserError as error:
            if len(photographs) == 1:
                yield photographs, error
                return
            for path, one in photographs.items():
                yield from self._predictions({path: one})

    def _results(self, photographs: Readable, prediction: Prediction | UserError) -> dict[Path, Result]:
        """Return and count the results of photographs with their warnings, and write the files of each."""
        if isinstance(prediction, UserError):
            return {path: self._failure(path, prediction) for path in photographs}
        images, warnings = zip(*photographs.values(), strict=True)
        names = [self.name(path) for path in photographs]
        sizes = [photograph.size for photograph in images]
        found = {}
        decided = decide(prediction, self.decision, names, sizes, warnings, self.detector.roi)
        drawn = []
        with ThreadPoolExecutor(self.painters) as painters:
            for i, (path, result) in enumerate(zip(photographs, decided, strict=True)):
                self.images += 1
                self.anomalous += bool(result.anomalous)
                write_panel = self._panel(images[i], result, prediction, i)
                result = replace(result, path=path, unsure=self.unsure and bool(result.warning))
                if self.output is not None:
                    if self.wanted.pictures and write_panel is not None:
                        drawn.append(painters.submit(write_panel, self._overlay(path, self.output)))
                    write_files(result, path.relative_to(self.root), self.root, self.output, self.wanted)
                if self.keep_maps:
                    found[path] = replace(result, write_panel=write_panel)
                else:
                    found[path] = replace(result, anomaly_map=None, mask=None)
        for panel in drawn:
            panel.result()
        return found

    def _overlay(self, path: Path, output: Path) -> Path:
        """Return where the overlay of a file lies below `output`."""
        from texture_ad.reporting.panels import overlay_path

        return output / overlay_path(path.relative_to(self.root))

    def _panel(
        self, photograph: Photograph, result: Result, prediction: Prediction, i: int
    ) -> Callable[[Path], object] | None:
        """Return what writes the panel of photograph `i` of a batch to a file, None where its method has no map."""
        anomaly_map = result.anomaly_map
        if anomaly_map is None or prediction.positions is None or prediction.grid is None:
            return None
        positions = prediction.positions[i].cpu().numpy()
        return partial(self._write_panel, photograph, result, positions, prediction.grid)

    def _write_panel(
        self, photograph: Photograph, result: Result, positions: np.ndarray, grid: tuple[int, int], path: Path
    ) -> None:
        from texture_ad.reporting.panels import colour_scale, localization_panel, shown_region

        assert result.mask is not None and result.anomaly_map is not None and result.score is not None
        anomaly_map = result.anomaly_map
        image, roi = photograph.image, self.detector.roi
        size = (anomaly_map.shape[0], anomaly_map.shape[1])
        called = bool(result.anomalous)
        inside = None if roi is None else roi.inside.numpy()
        region, region_name = shown_region(result.mask, len(result.regions), positions, grid, size, called, inside)
        vmin, vmax = colour_scale(float(self.detector.map_floor), self.decision.pixel_threshold or 0)
        localization_panel(
            (image if roi is None else roi.shade(image)).permute(1, 2, 0).numpy(),
            anomaly_map,
            region=region,
            region_name=region_name,
            mask=None,
            score=result.score,
            threshold=self.decision.threshold,
            label=None,
            path=path,
            vmin=vmin,
            vmax=vmax,
            source=self.source,
        )

    def report(self) -> None:
        """Print the share above the threshold on stdout, and what differs from the training images on stderr."""
        share = f" ({self.anomalous / self.images:.1%})" if self.images else ""
        print(
            f"{self.source}: {self.anomalous} of {self.images} images{share} above the threshold "
            f"{self.decision.threshold:.4g}; {self.decision.promise()}",
            flush=True,
        )
        for warning in self.warnings():
            print(f"warning: {warning}", file=sys.stderr)

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each respect in which images differ from the training images."""
        means = "they are labelled unsure" if self.unsure else "their scores may mean little"
        for sentence in self.unlike.sentences(self.images):
            yield f"{sentence}; {means}"
        if self.provenance is None or self.provenance.training_images is None:
            yield "the detector holds no statistics of its training images; a drift would go unseen"


def _batch(photographs: Sequence[Photograph]) -> Tensor | list[Picture]:
    """Return photographs as a detector takes them, all of them pictures or none."""
    pictures = [photograph.picture for photograph in photographs if photograph.picture is not None]
    return pictures or torch.stack([photograph.image for photograph in photographs])


def score_in_batches(scorer: Scorer, paths: list[Path], batch_size: int) -> Iterator[list[Result]]:
    """Yield the results of each batch; a thread decodes the next one while a batch is scored."""
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(scorer.read, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            contents = ahead.result()
            ahead = reader.submit(scorer.read, following)
            yield scorer.score(batch, contents)


@checked
def predict(scorer: Scorer, paths: list[Path], output: Path, batch_size: Count) -> None:
    """Score all files, then write scores.csv at once and print a summary; on a terminal a bar shows how far it is.

    Args:
        scorer: with the detector.
        paths: of the files, at least one.
        output: folder of scores.csv.
        batch_size: images that are scored together.

    Raises:
        UserError: another process watches a folder into the same one, or, after everything is written, a file could
            not be read.
    """
    from rich.console import Console
    from rich.progress import track

    check_writable(output)  # not after an hour of scoring
    check_unlocked(output / "scores.csv")
    check_unwatched(output)
    present = written_at(output, scorer.wanted)
    batches = track(
        score_in_batches(scorer, paths, batch_size),
        "scoring",
        math.ceil(len(paths) / batch_size),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    results = [result for batch in batches for result in batch]
    write_atomic(output / "scores.csv", csv_text([COLUMNS, *(row(result, scorer.decision) for result in results)]))
    if scorer.wanted.regions:
        write_regions(results, scorer.decision, output)
    scorer.report()
    left = left_before(output, scorer.wanted, present)
    if left:
        print(f"warning: {', '.join(left)} in {output} are of an earlier command", file=sys.stderr)
    print(f"scores   {output / 'scores.csv'}")
    if scorer.failed:
        raise UserError(f"{len(scorer.failed)} of {len(paths)} images could not be scored, first: {scorer.failed[0]}")
