"""Remember a stream of scored images, and report whether it still looks like the calibration images."""

import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from texture_ad.data.layouts.files import listed
from texture_ad.deploy.scorer import Row, Scorer
from texture_ad.evaluation.stream import Chart, rank_chart, share_chart

RECENT = 5000  # images that the charts show, at most
CHANGED = "changed after they were scored"


class Stream:
    """Count the rows of a stream and keep the scores of the most recent ones.

    Args:
        threshold: of now, by which all rows are judged, also those that another one had judged.

    Attributes:
        counts: how many images were scored, "above the threshold", "unlike the training images", "unreadable" and
            "changed after they were scored".
        recent: score, and whether it is above the threshold, of the last RECENT images.
        scores: of the files whose last row has one, by name, as text.
        unreadable: names of the files whose last row has none.
        changed: names of the files that have a row after one with a score, in order.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        kinds = ("scored", "above the threshold", "unlike the training images", "unreadable", CHANGED)
        self.counts = dict.fromkeys(kinds, 0)
        self.recent: deque[tuple[float, bool]] = deque(maxlen=RECENT)
        self.scores: dict[str, str] = {}
        self.unreadable: set[str] = set()
        self.changed: dict[str, None] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows, in order."""
        for row in rows:
            score = _finite(row.score)
            if row.path in self.scores:
                self.changed[row.path] = None
            if score is None:
                self.unreadable.add(row.path)
                self.scores.pop(row.path, None)
                continue
            self.unreadable.discard(row.path)
            self.scores[row.path] = row.score
            # Of its own threshold a row knows more digits than it shows.
            same = row.threshold == f"{self.threshold:.8g}"
            above = row.anomalous == "1" if same else score > self.threshold
            self.counts["scored"] += 1
            self.counts["above the threshold"] += above
            self.counts["unlike the training images"] += bool(row.warning)
            self.recent.append((score, above))
        self.counts["unreadable"] = len(self.unreadable)
        self.counts[CHANGED] = len(self.changed)


def _finite(text: str) -> float | None:
    """Return the number of a cell, None where it holds none: the file may be a stranger's."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def sentences(stream: Stream, ranks: Chart, shares: Chart) -> list[str]:
    """Return what a stream's report says first."""
    scored = stream.counts["scored"]
    found = stream.counts["above the threshold"]
    told = [
        f"{found} of {scored} images ({found / scored:.1%}) are above the threshold; of normal images "
        f"{shares.centre:.1%} are expected."
    ]
    if ranks.out()[-1]:
        way = "higher" if ranks.value[-1] > ranks.centre else "lower"
        inside = np.flatnonzero(~ranks.out())
        since = ranks.number[inside[-1] + 1] if len(inside) else ranks.number[0]
        told.append(f"Out of control since image {since}: the scores are {way} than those of the calibration images.")
    blocks = np.flatnonzero(shares.out()[-2:]) - min(2, len(shares.value))  # the last one may hold few images
    if len(blocks):
        number, share, low, high = (values[blocks[-1]] for values in shares[:4])
        which = "More" if share > high else "Fewer"
        told.append(
            f"{which} images are above the threshold than chance explains: {share:.1%} of the block that ends with "
            f"image {number}; of normal images {low:.1%} to {high:.1%} would be."
        )
    elif not ranks.out()[-1]:
        told.append("In control: the last images score as the calibration images did.")
    unlike = stream.counts["unlike the training images"]
    if unlike:
        told.append(f"{unlike} images differ from the training images, or hold several images; their rows say how.")
    if stream.changed:
        told.append(
            f"{len(stream.changed)} files {CHANGED}, and have a row for each time: {listed([*stream.changed])}."
        )
    return told


def write_report(stream: Stream, scorer: Scorer, path: Path) -> None:
    """Write a stream's report as one HTML file, atomically; nothing where no image was scored.

    Args:
        stream: that was seen.
        scorer: which scored it.
        path: of the file.
    """
    from texture_ad.reporting import charts
    from texture_ad.reporting.report import stream_report

    calibration = scorer.detector.calibration_scores.cpu().numpy()
    if not stream.recent or not len(calibration):
        return
    scores, above = (np.array(values) for values in zip(*stream.recent, strict=True))
    first = stream.counts["scored"] - len(scores) + 1
    decision = scorer.decision
    ranks = rank_chart(scores, calibration, first)
    shares = share_chart(above, decision.false_alarms, first)
    with TemporaryDirectory() as folder:
        plots = Path(folder)
        charts.control_chart(ranks, "Average rank", plots / "ranks.png", scorer.source)
        charts.control_chart(shares, "Share above the threshold", plots / "shares.png", scorer.source)
        charts.stream_histogram(scores, calibration, decision.threshold, plots / "histogram.png", scorer.source)
        stream_report(path, sentences(stream, ranks, shares), stream.counts, plots, scorer.source)
