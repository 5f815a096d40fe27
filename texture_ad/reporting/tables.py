"""Results as text: the table at the end of a run, and Markdown tables for comparisons."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from statistics import fmean, stdev

METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "image_ap": "image average precision",
    "image_f1": "image F1 at the threshold",
    "precision": "precision at the threshold",
    "recall": "recall at the threshold",
    "false_positive_rate": "false positive rate at the threshold",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO (FPR ≤ 0.3)",
    "synthetic_auroc": "AUROC on synthetic defects",
}
_IN_HEADER = ("normal_images", "anomalous_images", "threshold", "threshold_origin")


def metrics_table(metrics: Mapping, source: str) -> str:
    """The metrics of one run, for the terminal.

    Args:
        metrics: the union of `image_metrics` and `pixel_metrics`; `threshold_origin`, if there, says how the
            threshold was chosen. Further single values are listed at the end under their keys.
        source: the data source's name.

    Returns:
        Lines without a final newline: the source, the images, the threshold, then a metric a line with three
        decimals, or with the reason why it is undefined.
    """
    heading, rows = metrics_rows(metrics, source)
    width = max(map(len, [*heading, *rows]))
    lines = [f"{name:<{width}}  {text}" for name, text in heading.items()]
    lines.append("─" * max(map(len, lines)))
    return "\n".join(lines + [f"{name:<{width}}  {text}" for name, text in rows.items()])


def metrics_rows(metrics: Mapping, source: str) -> tuple[dict[str, str], dict[str, str]]:
    """The two parts of `metrics_table`, each a name to a text: what was tested, and the metrics."""
    heading = {"data": source}
    if "normal_images" in metrics and "anomalous_images" in metrics:
        normal = metrics["normal_images"]
        anomalous = metrics["anomalous_images"]
        heading["test images"] = f"{normal + anomalous} ({normal} normal, {anomalous} anomalous)"
    if "threshold" in metrics:
        origin = metrics.get("threshold_origin")
        heading["threshold"] = f"{metrics['threshold']:.4g}" + (f" ({origin})" if origin else "")
    rows = {name: _value(metrics[key], key) for key, name in METRIC_NAMES.items() if key in metrics}
    for key, value in metrics.items():
        if key not in METRIC_NAMES and key not in _IN_HEADER and isinstance(value, Real | str):
            rows[key] = cell(value)
    return heading, rows


def markdown_table(rows: Sequence[Mapping]) -> str:
    """A Markdown table; its columns are the rows' keys, in the order of their first appearance.

    A number is shown with three decimals, an integer as it is. A list or tuple of numbers, such as one value
    for each seed, becomes "mean ± sample standard deviation". None and missing values become a dash.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_escaped(row.get(column)) for column in columns] for row in rows]
    numeric = [all(isinstance(row.get(c), Real | list | tuple | None) for row in rows) for c in columns]
    header = [_escaped(column) for column in columns]
    widths = [max(3, *(len(line[i]) for line in [header, *cells])) for i in range(len(columns))]

    def line(texts):
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(header), line(rule), *map(line, cells)])


def _value(value: float | None, key: str) -> str:
    if value is not None:
        return f"{value:.3f}"
    if key in ("pixel_auroc", "aupro"):
        return "n/a (needs masks of defects)"
    return {
        "precision": "n/a (no image was called anomalous)",
        "false_positive_rate": "n/a (needs normal images)",
        "recall": "n/a (needs anomalous images)",
        "image_f1": "n/a (needs anomalous images)",
    }.get(key, "n/a (needs normal and anomalous images)")


def cell(value) -> str:
    """A value as text: numbers with three decimals, a list or tuple of them as mean ± sample standard deviation."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return f"{fmean(value):.3f}" + (f" ± {stdev(value):.3f}" if len(value) > 1 else "")
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.3f}"
    return str(value)


def _escaped(value) -> str:
    # A bar would end the cell.
    return cell(value).replace("|", "\\|").replace("\n", " ")
