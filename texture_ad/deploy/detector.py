"""A trained detector as Python programs and notebooks use it: load, predict, look, save."""

import html
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from texture_ad.data.pictures import Picture
from texture_ad.deploy.outputs import check_unwatched
from texture_ad.deploy.results import Result
from texture_ad.deploy.scorer import COLUMNS, Scorer, require_images, row, score_in_batches
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import Decision
from texture_ad.files import csv_text, write_atomic
from texture_ad.methods import registry
from texture_ad.methods.base import AnomalyDetector, Prediction, Provenance
from texture_ad.parameters import Count, checked
from texture_ad.training.run_folder import read_metrics

SHOWN = 100  # results of a notebook's table, at most


def load(path: str | PathLike, device: str = "cpu", allow: Sequence[str] = ()) -> "Detector":
    """Read a trained detector of any method.

    Args:
        path: its file, a run's detector.pt.
        device: "cpu", "cuda", "cuda:1", ...
        allow: modules whose code is trusted: that of a backbone of your own.

    Raises:
        ParameterError: the file is missing, no detector, of another version or damaged, or the device is not there; or
            its backbone is of a class that isn't allowed, or can't be imported.
    """
    return Detector(registry.load(Path(path), device, allow), Path(path))


class Results(list[Result]):
    """Hold the results of several photographs, in order of their names.

    Args:
        results: of the photographs.
        decision: that was taken on them.
    """

    def __init__(self, results: Iterable[Result], decision: Decision):
        super().__init__(results)
        self.decision = decision

    @property
    def anomalous(self) -> list[Result]:
        """Return those that are called anomalous, the highest score first."""
        found = [(result.score, result) for result in self if result.anomalous and result.score is not None]
        return [result for _, result in sorted(found, key=lambda pair: -pair[0])]

    def save(self, folder: str | PathLike) -> None:
        """Write scores.csv and overlays into a folder, as `texture-ad predict` does.

        Raises:
            ParameterError: its scores.csv is the record of a watched folder; nothing is written.
        """
        from texture_ad.reporting.panels import overlay_path

        check_unwatched(Path(folder))
        rows = [row(result, self.decision) for result in self]
        for result in self:
            if result.write_panel is not None:
                result.save(Path(folder) / overlay_path(Path(result.name)))
        write_atomic(Path(folder) / "scores.csv", csv_text([COLUMNS, *rows]))

    def _repr_html_(self) -> str:
        """Return a table, as a notebook shows it."""
        columns = ("name", "label", "score", "level", "regions", "warning")
        head = "".join(f"<th>{column}</th>" for column in columns)
        more = f"<p>{len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        return f"<table><tr>{head}</tr>{''.join(map(_html_row, self[:SHOWN]))}</table>{more}"


def _html_row(result: Result) -> str:
    numbers = ("" if value is None else f"{value:.3f}" for value in (result.score, result.level))
    cells = (result.name, result.label, *numbers, len(result.regions), result.warning or result.error)
    return f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)}</tr>"


class Detector:
    """A trained detector and its file.

    Args:
        module: the torch module that scores images.
        path: of its file.

    Examples:
        >>> detector = load("detector.pt")  # doctest: +SKIP
        >>> for result in detector.predict("new/").anomalous:  # doctest: +SKIP
        ...     print(result.path, result.score, result.regions)
    """

    def __init__(self, module: AnomalyDetector, path: Path):
        self.module = module
        self.path = path

    def __repr__(self) -> str:
        source = self.provenance.data_source if self.provenance else "unknown data"
        return f"<Detector {self.method} of {source}, threshold {self.threshold:.4g}, {self.path}>"

    @property
    def method(self) -> str:
        """Return the name of its method."""
        return self.module.name

    @property
    def threshold(self) -> float:
        """Return the score above which an image is called anomalous."""
        return float(self.module.threshold)

    @property
    def provenance(self) -> Provenance | None:
        """Return what it was made from, None if its file doesn't say."""
        return self.module.provenance

    @property
    def folder(self) -> Path:
        """Return the folder of its file, which for `fit` is the run's: report.html and all the rest."""
        return self.path.parent

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Return the run's metrics, empty where metrics.json doesn't lie beside its file."""
        return read_metrics(self.folder)

    def to(self, device: str) -> "Detector":
        """Move it to a device, such as "cuda", and return it.

        Raises:
            ParameterError: there is no such device.
        """
        registry.on_device(self.module, device)
        return self

    def read(self, *paths: str | PathLike) -> Tensor | list[Picture]:
        """Read photographs as it wants them: uint8 (B, 3, H, W) on its device, or pictures that it cuts into tiles.

        Raises:
            UserError: a file that can't be read as an image.
        """
        return self.module.read(*map(Path, paths))

    def __call__(self, images: Tensor | Sequence[Picture]) -> Prediction:
        """Return scores and anomaly maps of what `read` returns."""
        return self.module(images)

    @checked
    def predict(
        self,
        photographs: str | PathLike | Sequence[str | PathLike],
        batch_size: Count = 32,
        keep_maps: bool = True,
        unsure: bool = False,
        **decision: Any,
    ) -> Results:
        """Score photographs, as `texture-ad predict` does: same code, same digits.

        A warning tells which photographs look unlike the training images, or can't be read; those have no score.

        Args:
            photographs: a folder, which is searched through, a file, or a list of files.
            batch_size: images that are scored together.
            keep_maps: keep anomaly maps, masks and panels; without them a large folder takes less memory.
            unsure: label a photograph that is unlike the training images neither normal nor anomalous.
            decision: instead of the detector's own, such as `threshold` or `false_alarm_rate`; see
                AnomalyDetector.decision.

        Returns:
            A result for every photograph, in order of name, or of the list.

        Raises:
            UserError: no such file or folder, no image in it, or an argument out of its range.
        """
        source, paths = _find(photographs)
        chosen = self.module.decision(**decision)
        scorer = Scorer(self.module, source, None, chosen, unsure=unsure, keep_maps=keep_maps)
        found = [result for batch in score_in_batches(scorer, paths, batch_size) for result in batch]
        told = list(scorer.warnings())
        if scorer.failed:
            told.append(f"{len(scorer.failed)} of {len(paths)} images could not be scored, first: {scorer.failed[0]}")
        for line in told:
            warnings.warn(line, UserWarning, stacklevel=3)  # past the check of arguments
        return Results(found, scorer.decision)


def _find(photographs: str | PathLike | Sequence[str | PathLike]) -> tuple[Path, list[Path]]:
    """Return the folder or file that names are relative to, and the files.

    Raises:
        ParameterError: no such file or folder, or no image in it.
    """
    if isinstance(photographs, str | PathLike):
        source = Path(photographs)
        found = require_images(source, source / "overlays", "photographs")
        for sentence in found.left_out(source):
            warnings.warn(sentence, UserWarning, stacklevel=4)
        return source, found.images
    paths = [Path(path) for path in photographs or []]
    if not paths:
        raise ParameterError("photographs", [], "expected a folder, a file, or a list of files")
    return Path(os.path.commonpath([path.absolute() for path in paths])), [path.absolute() for path in paths]
