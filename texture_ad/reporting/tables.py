"""Write results as text: the table at the end of a run, and Markdown tables for comparisons. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from texture_ad.evaluation.spread import spread
from texture_ad.reporting.metrics import ACCURACIES, COSTS

_IN_HEADER = (
    "data_source",
    "test_images_drawn",
    "category",
    "normal_images",
    "anomalous_images",
    "threshold",
    "threshold_origin",
    "threshold_promise",
    "false_alarm_warning",
    "pixel_threshold",
)
_UNDEFINED = {
    "pixel_auroc": "n/a (needs masks of defects)",
    "pixel_ap": "n/a (needs masks of defects)",
    "aupro": "n/a (needs masks of defects)",
    "aupro_05": "n/a (needs masks of defects)",
    "seg_f1": "n/a (needs masks of defects)",
    "image_f1_max": "n/a (needs anomalous images)",
    "precision": "n/a (no image was called anomalous)",
    "false_positive_rate": "n/a (needs normal images)",
    "recall": "n/a (needs anomalous images)",
    "image_f1": "n/a (needs anomalous images)",
}


def metrics_table(metrics: Mapping, source: str) -> str:
    """Return the metrics of one run as lines for the terminal.

    Args:
        metrics: what `evaluation.metrics.prediction_metrics` returns; `threshold_origin`, if there, says how the
            threshold was chosen. Further single values are listed at the end under their keys.
        source: name of the data source.

    Returns:
        Lines without a final newline: the source, the images, the threshold, then a metric a line with three decimals,
        or with the reason why it is undefined, and what the run cost.
    """
    heading, rows = metrics_rows(metrics, source)
    width = max(map(len, [*heading, *rows]))
    lines = [f"{name:<{width}}  {text}" for name, text in heading.items()]
    lines.append("─" * max(map(len, lines)))
    return "\n".join(lines + [f"{name:<{width}}  {text}" for name, text in rows.items()])


def metrics_rows(metrics: Mapping, source: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return both parts of `metrics_table`, each a name to a text: what was evaluated, and the metrics."""
    rows = {
        about.title: _value(metrics[key], key) + _interval(metrics.get(f"{key}_interval"))
        for key, about in ACCURACIES.items()
        if key in metrics
    }
    for key, value in metrics.items():
        if key in COSTS and value is not None:
            about = COSTS[key]
            rows[about.heading] = f"{about.scale * value:.{about.digits}f}"
        elif key not in ACCURACIES and key not in _IN_HEADER and isinstance(value, Real | str):
            rows[key] = cell(value)
    return _heading(metrics, source), rows


def _interval(ends: Sequence[float] | None) -> str:
    return f" (95 % {ends[0]:.3f} to {ends[1]:.3f})" if ends else ""


def _heading(metrics: Mapping, source: str) -> dict[str, str]:
    heading = {"data": source}
    if "normal_images" in metrics and "anomalous_images" in metrics:
        normal = metrics["normal_images"]
        anomalous = metrics["anomalous_images"]
        heading["test images"] = f"{normal + anomalous} ({normal} normal, {anomalous} anomalous)"
    if "threshold" in metrics:
        origin = metrics.get("threshold_origin")
        heading["threshold"] = f"{metrics['threshold']:.4g}" + (f" ({origin})" if origin else "")
    if metrics.get("pixel_threshold") is not None:
        heading["pixel threshold"] = f"{metrics['pixel_threshold']:.4g} (in images above the threshold)"
    return heading


def _value(value: float | None, key: str) -> str:
    if value is None:
        return _UNDEFINED.get(key, "n/a (needs normal and anomalous images)")
    return f"{value:.3f}"


def markdown_table(rows: Sequence[Mapping]) -> str:
    """Return a Markdown table; its columns are the rows' keys, in the order of their first appearance.

    Args:
        rows: a column's name to its value. A number is shown with three decimals, an integer as it is. A list or tuple
            of numbers, such as one value for each seed, becomes "mean ± sample standard deviation". None and missing
            values become a dash.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_escaped(column) for column in columns]]
    lines += [[_escaped(row.get(column)) for column in columns] for row in rows]
    numeric = [all(isinstance(row.get(c), Real | list | tuple | None) for row in rows) for c in columns]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join(_line(texts, widths, numeric) for texts in [lines[0], rule, *lines[1:]])


def _line(texts: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    columns = zip(texts, widths, numeric, strict=True)
    padded = (text.rjust(width) if right else text.ljust(width) for text, width, right in columns)
    return f"| {' | '.join(padded)} |"


def printable(text: str, kept: str = "") -> str:
    r"""Return a text whose characters that can't be printed are escaped, but for those that are kept.

    Examples:
        >>> printable("a\x1b\n", kept="\n")
        'a\\x1b\n'
    """
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Return "mean ± sample standard deviation" of one value for each seed; of a single value the mean alone."""
    found = spread(values)
    mean = f"{found.mean:.{digits}f}"
    return mean if found.deviation is None else f"{mean} ± {found.deviation:.{digits}f}"


def cell(value: object) -> str:
    """Return a value as text: numbers with three decimals, a list or tuple of them as `mean_and_deviation`."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return mean_and_deviation(value, 3)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.3f}"
    return str(value)


def _escaped(value: object) -> str:
    # A bar would end the cell.
    return cell(value).replace("|", "\\|").replace("\n", " ")
