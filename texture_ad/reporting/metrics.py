"""Say what each metric of metrics.json is called and how it is shown: the one table of names and units.

Imports nothing heavy.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """Say how a table or a chart shows one metric.

    Args:
        title: for people.
        unit: after the title, "" for none.
        scale: the value in metrics.json times this is in `unit`.
        digits: decimals of a mean over seeds.
        compared: whether a sweep's tables show it.
        drawn: whether a sweep's chart shows it.
    """

    title: str
    unit: str = ""
    scale: float = 1
    digits: int = 3
    compared: bool = True
    drawn: bool = False

    @property
    def heading(self) -> str:
        """Return the title with its unit, such as "training, s"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


ACCURACIES = {
    "image_auroc": Metric("image AUROC", drawn=True),
    "image_ap": Metric("image average precision"),
    "image_f1": Metric("image F1 at the threshold"),
    "image_f1_max": Metric("image F1 at the best threshold (by test labels)", compared=False),
    "precision": Metric("precision at the threshold", compared=False),
    "recall": Metric("recall at the threshold", compared=False),
    "false_positive_rate": Metric("false positive rate at the threshold", compared=False),
    "pixel_auroc": Metric("pixel AUROC"),
    "pixel_ap": Metric("pixel average precision"),
    "aupro": Metric("AUPRO (FPR ≤ 0.3)", drawn=True),
    "aupro_05": Metric("AUPRO (FPR ≤ 0.05)"),
    "seg_f1": Metric("F1 of pixels at the pixel threshold"),
    "synthetic_auroc": Metric("AUROC on synthetic defects"),
}
COSTS = {
    "fit_seconds": Metric("training", "s", digits=1, drawn=True),
    "test_seconds_per_image": Metric("test", "ms an image", 1000, 1),
    "peak_memory_mb": Metric("peak memory", "MiB", digits=0, drawn=True),
    "peak_gpu_memory_mb": Metric("peak GPU memory", "MiB", digits=0, drawn=True),
    "threads": Metric("threads", digits=0),
}
METRICS = ACCURACIES | COSTS
COMPARED = {name: metric for name, metric in METRICS.items() if metric.compared}
DRAWN = {name: metric for name, metric in METRICS.items() if metric.drawn}
