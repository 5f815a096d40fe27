"""Draw charts with matplotlib: each function takes ready numbers, and writes a PNG and an SVG beside it.

Every chart names its data source under its title. matplotlib is imported where it is used, so that training needs
none of it.

The colours of Guo, Song, Ma stand for the classes throughout (normal red, anomalous blue), in shades that people with a
colour vision deficiency can tell apart, and with a marker of its own for each class.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from texture_ad.evaluation.curves import Curve, ScoreBins
from texture_ad.evaluation.metrics import check_scores
from texture_ad.evaluation.spread import Spread
from texture_ad.files import atomic_path
from texture_ad.reporting.metrics import DRAWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from texture_ad.evaluation.stream import Chart

NORMAL = "#CC3311"
ANOMALOUS = "#0077BB"
_CLASSES = ((0, "normal", NORMAL, "o"), (1, "anomalous", ANOMALOUS, "^"))
_MARKERS = "os^Dv<>P"
_THRESHOLD: Any = {"color": "black", "linestyle": "--", "linewidth": 1.2}
_CHANCE: Any = {"color": "grey", "linestyle": ":", "linewidth": 1, "label": "chance"}
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "texture_ad",  # the same figure gives the same file
}


def score_line_graph(scores: ArrayLike, labels: ArrayLike, threshold: float, path: Path, source: str) -> None:
    """Draw the image scores as a line graph, normal images first, with the threshold: figure 7 of Guo, Song, Ma.

    Args:
        scores: image scores (n,).
        labels: (n,) 0 normal, 1 anomalous.
        threshold: an image is called anomalous where its score is greater.
        path: PNG to write.
        source: name of the data source.

    Raises:
        UserError: scores and labels that `evaluation.metrics.check_scores` refuses.
    """
    scores, labels = check_scores(scores, labels)
    with _chart(path, "Anomaly scores of the test images", source, size=(8, 4)) as (axes,):
        line: Any = {"markersize": 5 if scores.size <= 150 else 3, "linewidth": 0.8}
        start = 1
        for label, name, colour, marker in _CLASSES:
            chosen = scores[labels == label]
            if chosen.size:
                numbers = np.arange(start, start + chosen.size)
                axes.plot(numbers, chosen, color=colour, marker=marker, label=f"{name} ({chosen.size})", **line)
                start += chosen.size
        axes.axhline(threshold, **_THRESHOLD, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="test image", ylabel="image score")
        _legend_below(axes)


def score_histogram(bins: ScoreBins, threshold: float, path: Path, source: str) -> None:
    """Draw how the image scores of both classes are distributed round the threshold.

    Args:
        bins: from `evaluation.curves.bin_scores`.
        threshold: an image is called anomalous where its score is greater.
        path: PNG to write.
        source: name of the data source.
    """
    with _chart(path, "Distribution of the image scores", source, size=(7, 4)) as (axes,):
        for (_, name, colour, _), counts in zip(_CLASSES, (bins.normal, bins.anomalous), strict=True):
            if counts.any():
                bars: Any = {"x": bins.edges[:-1], "bins": bins.edges, "weights": counts, "color": colour}
                axes.hist(**bars, alpha=0.35, histtype="stepfilled", label=f"{name} ({counts.sum()})")
                axes.hist(**bars, histtype="step", linewidth=1.4)
        axes.axvline(threshold, **_THRESHOLD, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="image score", ylabel="images")
        axes.locator_params(axis="y", integer=True)
        _legend_below(axes)


def roc_pr(roc: Curve, precision_recall: Curve, metrics: Mapping, path: Path, source: str) -> None:
    """Draw the ROC and the precision-recall curve of the image scores, with the point that the threshold chooses.

    Args:
        roc: from `evaluation.curves.roc_curve`.
        precision_recall: from `evaluation.curves.precision_recall_curve`.
        metrics: what `evaluation.metrics.image_metrics` returns for the same scores.
        path: PNG to write.
        source: name of the data source.
    """
    title = "Image-level detection over all thresholds"
    chosen = f"threshold {metrics['threshold']:.4g}"
    share = metrics["anomalous_images"] / (metrics["anomalous_images"] + metrics["normal_images"])
    with _chart(path, title, source, panels=2, size=(8.4, 4.6)) as (left, right):
        left.plot(*roc, color=ANOMALOUS, linewidth=2)
        left.plot([0, 1], [0, 1], **_CHANCE)
        left.plot(metrics["false_positive_rate"], metrics["recall"], "kD", label=chosen)
        left.set(xlabel="false positive rate", ylabel="true positive rate")
        left.set_title(f"AUROC {metrics['image_auroc']:.3f}")
        right.step(*precision_recall, color=ANOMALOUS, linewidth=2, where="post")
        right.plot([0, 1], [share, share], **_CHANCE)
        if metrics["precision"] is not None:
            right.plot(metrics["recall"], metrics["precision"], "kD", label=chosen)
        right.set(xlabel="recall", ylabel="precision")
        right.set_title(f"average precision {metrics['image_ap']:.3f}")
        for axes in (left, right):
            # A curve along the frame must still be seen.
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        _legend_below(left)


def tsne(layouts: Mapping[str, np.ndarray], labels: np.ndarray, path: Path, source: str, unit: str) -> None:
    """Draw features before and after each learnt step in the plane: figure 6 of Guo, Song, Ma.

    Args:
        layouts: a panel's title to its layout (n, 2), from `evaluation.embedding.embed`.
        labels: (n,) 0 normal, 1 anomalous.
        path: PNG to write.
        source: name of the data source.
        unit: what each point stands for, such as "patches".
    """
    size = (4.3 * len(layouts), 4.8)
    with _chart(path, "Features in the plane (t-SNE)", source, panels=len(layouts), size=size) as panels:
        for axes, (title, layout) in zip(panels, layouts.items(), strict=True):
            for label, name, colour, marker in _CLASSES:
                points = layout[labels == label]
                style: Any = {"s": 16, "c": colour, "marker": marker, "alpha": 0.6, "linewidths": 0}
                axes.scatter(*points.T, **style, label=f"{name} {unit} ({len(points)})")
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        _legend_below(panels[0])


def comparison(keys: Sequence[str], settings: Sequence[Mapping], path: Path) -> None:
    """Draw a sweep: metrics against the swept value, mean ± standard deviation over seeds.

    Args:
        keys: what is swept; the first is the axis, each combination of the others a line. Without any, all seeds
            share one tick.
        settings: for each setting its value of every key, `data` (the source's name) and the `Spread` of its metrics
            by their names in `reporting.metrics.DRAWN`.
        path: PNG to write.
    """
    axis, *others = keys or ["all seeds"]
    panels = {name: metric for name, metric in DRAWN.items() if any(name in row for row in settings)}
    ticks = list(dict.fromkeys(str(row.get(axis, "")) for row in settings))
    lines: dict[tuple, list[Mapping]] = {}
    for row in settings:
        lines.setdefault(tuple(row[key] for key in others), []).append(row)
    sources = "; ".join(dict.fromkeys(row["data"] for row in settings))
    title = f"{axis}: mean ± standard deviation over seeds"
    with _chart(path, title, sources, (3.4 * max(2, len(panels)), 3.6), len(panels)) as all_axes:
        for axes, (name, metric) in zip(all_axes, panels.items(), strict=True):
            for number, (values, rows) in enumerate(lines.items()):
                found = [(ticks.index(str(row.get(axis, ""))), row[name]) for row in rows if name in row]
                # Lines beside each other: spreads that cover one another can't be read.
                shift = 0.08 * (number - (len(lines) - 1) / 2)
                text = ", ".join(f"{key}={value}" for key, value in zip(others, values, strict=True))
                _error_bars(axes, found, shift, _MARKERS[number % len(_MARKERS)], text or None)
            axes.set(xlabel=axis, title=metric.heading)
            _name_ticks(axes, ticks)
            if metric.unit:  # a cost is read from zero
                axes.set_ylim(bottom=0)
        if others:
            _legend_below(all_axes[0])


def _error_bars(
    axes: "Axes", points: Sequence[tuple[int, Spread]], shift: float, marker: str, label: str | None
) -> None:
    axes.errorbar(
        [tick + shift for tick, _ in points],
        [one.mean for _, one in points],
        [one.deviation or 0 for _, one in points],
        fmt=f"-{marker}",
        capsize=3,
        linewidth=1.2,
        label=label,
    )


def _name_ticks(axes: "Axes", names: Sequence[str]) -> None:
    long = max(map(len, names)) > 6
    axes.set_xticks(range(len(names)), names, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_xlim(-0.5, len(names) - 0.5)


def control_chart(chart: "Chart", value: str, path: Path, source: str) -> None:
    """Draw a control chart of a stream: its values, where normal images would be, and the limits.

    Args:
        chart: from `evaluation.stream`.
        value: what is controlled, for the axis.
        path: PNG to write.
        source: name of the data source.
    """
    with _chart(path, f"{value} along the stream", source, size=(8, 3.4)) as (axes,):
        out = chart.out()
        axes.fill_between(chart.number, chart.low, chart.high, color="grey", alpha=0.15, label="within the limits")
        axes.axhline(chart.centre, color="grey", linewidth=1, label="expected of normal images")
        axes.plot(chart.number, chart.value, color="black", linewidth=1, marker="." if len(out) < 200 else "")
        axes.plot(chart.number[out], chart.value[out], "^", color=ANOMALOUS, markersize=5, label="out of control")
        axes.set(xlabel="image", ylabel=value)
        axes.locator_params(axis="x", integer=True)
        _legend_below(axes)


def stream_histogram(scores: ArrayLike, calibration: ArrayLike, threshold: float, path: Path, source: str) -> None:
    """Draw how the scores of a stream are distributed beside those of the calibration images.

    Args:
        scores: of the stream (n,).
        calibration: scores (m,) of the calibration images.
        threshold: an image is called anomalous where its score is greater.
        path: PNG to write.
        source: name of the data source.
    """
    with _chart(path, "Scores of the stream and of the calibration images", source, size=(8, 3.4)) as (axes,):
        edges = np.histogram_bin_edges(np.concatenate((scores, calibration)), bins=30)
        for name, colour, found in (("calibration images", NORMAL, calibration), ("stream", ANOMALOUS, scores)):
            found = np.asarray(found)
            bars: Any = {"bins": edges, "weights": np.full(len(found), 100 / len(found)), "color": colour}
            axes.hist(found, **bars, alpha=0.35, histtype="stepfilled", label=f"{name} ({len(found)})")
            axes.hist(found, **bars, histtype="step", linewidth=1.4)
        axes.axvline(threshold, **_THRESHOLD, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="image score", ylabel="% of the images")
        _legend_below(axes)


@contextmanager
def _chart(
    path: Path, title: str, source: str, size: tuple[float, float], panels: int = 1
) -> Iterator[Sequence["Axes"]]:
    """Give the axes of an empty figure of `size` inches, and write it when the block ends."""
    # Figure without pyplot: no global state, no window, nothing to close.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        # Names of folders may hold a dollar sign, which is not mathematics.
        lines = textwrap.fill(f"Data: {source}", int(size[0] * 12))
        figure.suptitle(f"{title}\n{lines}", fontsize=11, parse_math=False)
        yield axes
        metadata: Any
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            with atomic_path(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], metadata=metadata)
            figure.set_layout_engine("none")  # both files have one layout, and it costs as much as the drawing


def _legend_below(axes: "Axes") -> None:
    # Outside the axes, where it can cover no point.
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside lower center", ncols=len(names))
