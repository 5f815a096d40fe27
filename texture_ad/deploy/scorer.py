"""Score photographs with a saved detector: which files, one row for each, and an overlay of what was found.

Order of reading: `find_images`, `Scorer.score`, `predict`. `texture_ad.deploy.watch` scores a folder that grows.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from texture_ad.data.drift import brightness, differences
from texture_ad.data.images import IMAGE_SUFFIXES, read_image, resize
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.localization import region_mask
from texture_ad.files import csv_text, write_atomic
from texture_ad.methods.base import AnomalyDetector, Prediction
from texture_ad.parameters import Count, checked

Content = Tensor | UserError  # an image, uint8 (3, H, W), or why it can't be read


class Row(NamedTuple):
    """State what scores.csv holds of one image, as text.

    Attributes:
        path: the file's name below the scored folder.
        score: of the image; empty where it can't be read.
        threshold: of the detector.
        anomalous: 1 where the score is above the threshold, else 0; empty without a score.
        warning: how the image differs from the training images, or why it can't be read.
    """

    path: str
    score: str
    threshold: str
    anomalous: str
    warning: str


COLUMNS = Row._fields


def check_source(source: Path) -> None:
    """Check that there is something to score.

    Raises:
        ParameterError: no such file or folder.
    """
    if not source.exists():
        raise ParameterError("input", source, "no such file or folder")


def find_images(source: Path, output: Path) -> list[Path]:
    """Return the images below `source`, or `source` itself, in order of name.

    Those below `output` are left out, because they are our own overlays.
    """
    if source.is_file():
        return [source]
    output = output.resolve()
    found = (p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted(p for p in found if output not in p.resolve().parents)


def require_images(source: Path, output: Path) -> list[Path]:
    """Return the images that `find_images` finds, at least one.

    Raises:
        ParameterError: no such file or folder, or no image in it.
    """
    check_source(source)
    paths = find_images(source, output)
    if not paths:
        raise ParameterError("input", source, f"holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


class Scorer:
    """Score batches of files and keep count of what was found.

    Args:
        detector: loaded, on its device.
        source: the folder, or the single file, that is scored; names in the results are relative to it.
        output: folder of the overlays, or None for none.

    Attributes:
        images: how many images were scored.
        anomalous: how many of them are above the threshold.
        failed: a message for each file that could not be read.
        unlike: how many images differ from the training images, by respect ("size", "mode", "brightness", "contrast").
        first: the description of the first such image, by respect.
    """

    def __init__(self, detector: AnomalyDetector, source: Path, output: Path | None):
        self.detector = detector
        self.root = source if source.is_dir() else source.parent
        self.output = output
        self.size = detector.geometry.size
        self.threshold = float(detector.threshold)
        self.provenance = detector.provenance
        self.source = f"detector of {self.provenance.data_source if self.provenance else 'unknown data'}"
        self.images = 0
        self.anomalous = 0
        self.failed: list[str] = []
        self.unlike: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def name(self, path: Path) -> str:
        """Return the name of a file in the results; bytes that are no Unicode are escaped."""
        return path.relative_to(self.root).as_posix().encode("utf-8", "backslashreplace").decode()

    def read(self, paths: list[Path]) -> list[Content]:
        """Return the images, or why one can't be read; it changes nothing, so that any thread may call it."""
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> Content:
        """Return one image, or why it can't be read."""
        try:
            return resize(read_image(path), self.size)
        except UserError as error:
            return error

    def score(self, paths: list[Path], contents: list[Content]) -> list[Row]:
        """Return a row for every file, in order; the row of a file that can't be read has no score and says why.

        Args:
            paths: of the files.
            contents: what `read` returns for them.
        """
        examined = [self._examine(path, content) for path, content in zip(paths, contents, strict=True)]
        images = {path: image for path, (image, _) in zip(paths, examined, strict=True) if image is not None}
        scores = self._predict(images)
        return [self._row(path, scores.get(path), warning) for path, (_, warning) in zip(paths, examined, strict=True)]

    def _examine(self, path: Path, content: Content) -> tuple[Tensor | None, str]:
        """Return an image, or None where there is none to score, and the warning of its row."""
        try:
            if isinstance(content, UserError):
                raise content
            return content, self._compare(path, brightness(content[None])[0])
        except UserError as error:
            self.failed.append(str(error))
            return None, str(error)

    def _compare(self, path: Path, levels: Tensor) -> str:
        """Return and count how an image, by its file and its brightness (2,), differs from the training images."""
        statistics = self.provenance and self.provenance.training_images
        found = differences(statistics, path, levels) if statistics else {}
        self.unlike.update(found.keys())
        for respect, sentence in found.items():
            self.first.setdefault(respect, f"{self.name(path)}: {sentence}")
        return "; ".join(found.values())

    def _predict(self, images: dict[Path, Tensor]) -> dict[Path, float]:
        """Return the scores of images, uint8 (3, H, W) each, and draw their overlays where they are wanted."""
        if not images:
            return {}
        batch = torch.stack(list(images.values())).to(self.detector.device)
        prediction = self.detector(batch)
        scores = dict(zip(images, prediction.scores.tolist(), strict=True))
        if self.output is not None:
            self._draw(images, prediction, scores, self.output)
        return scores

    def _draw(
        self,
        images: dict[Path, Tensor],
        prediction: Prediction,
        scores: dict[Path, float],
        output: Path,
    ) -> None:
        """Write the overlay of each image below `output`."""
        from texture_ad.reporting.panels import colour_scale, localization_panel, overlay_path

        if prediction.anomaly_maps is None or prediction.positions is None or prediction.grid is None:
            return
        maps = prediction.anomaly_maps.cpu().numpy()
        positions = prediction.positions.cpu().numpy()
        vmin, vmax = colour_scale(float(self.detector.map_floor), self.threshold)
        for i, (path, image) in enumerate(images.items()):
            localization_panel(
                image.permute(1, 2, 0).numpy(),
                maps[i],
                region=region_mask(positions[i], prediction.grid, self.size),
                mask=None,
                score=scores[path],
                threshold=self.threshold,
                label=None,
                path=output / overlay_path(path.relative_to(self.root)),
                vmin=vmin,
                vmax=vmax,
                source=self.source,
            )

    def _row(self, path: Path, score: float | None, warning: str) -> Row:
        """Return and count the row of one file; `score` is None where it has none."""
        threshold = f"{self.threshold:.8g}"
        if score is None:
            return Row(self.name(path), "", threshold, "", warning)
        anomalous = int(score > self.threshold)
        self.images += 1
        self.anomalous += anomalous
        return Row(self.name(path), f"{score:.8g}", threshold, str(anomalous), warning)

    def report(self) -> None:
        """Print the share above the threshold on stdout, and what differs from the training images on stderr."""
        share = f" ({self.anomalous / self.images:.1%})" if self.images else ""
        expected = f"; of normal images {1 - self.provenance.quantile:.1%} are expected" if self.provenance else ""
        print(
            f"{self.source}: {self.anomalous} of {self.images} images{share} above the threshold "
            f"{self.threshold:.4g}{expected}",
            flush=True,
        )
        for warning in self._warnings():
            print(f"warning: {warning}", file=sys.stderr)

    def _warnings(self) -> Iterator[str]:
        """Yield a sentence for each respect in which images differ from the training images."""
        for respect, count in self.unlike.items():
            yield (
                f"{count} of {self.images} images differ in {respect} from the training images, first "
                f"{self.first[respect]}; their scores may mean little"
            )
        if self.provenance is None or self.provenance.training_images is None:
            yield "the detector holds no statistics of its training images; a drift would go unseen"


def score_in_batches(scorer: Scorer, paths: list[Path], batch_size: int) -> Iterator[list[Row]]:
    """Yield the rows of each batch; a thread decodes the next one while a batch is scored."""
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(scorer.read, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            contents = ahead.result()
            ahead = reader.submit(scorer.read, following)
            yield scorer.score(batch, contents)


@checked
def predict(scorer: Scorer, paths: list[Path], output: Path, batch_size: Count) -> None:
    """Score all files, then write scores.csv at once and print a summary.

    Args:
        scorer: with the detector.
        paths: of the files, at least one.
        output: folder of scores.csv.
        batch_size: images that are scored together.

    Raises:
        UserError: after everything is written, if a file could not be read.
    """
    rows = [row for batch in score_in_batches(scorer, paths, batch_size) for row in batch]
    write_atomic(output / "scores.csv", csv_text([COLUMNS, *rows]))
    scorer.report()
    print(f"scores   {output / 'scores.csv'}")
    if scorer.failed:
        raise UserError(f"{len(scorer.failed)} of {len(paths)} images could not be scored, first: {scorer.failed[0]}")
