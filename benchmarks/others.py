"""Rows about what is neither fitting nor detecting: the command line's start, the embedded data, a pixel metric."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.comparison import Row, by_turns
from texture_ad.data import embedded
from texture_ad.evaluation.metrics import aupro

STARTS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "a misspelt override": ["flow.bloks=4"],
}


def _process(*arguments: str) -> Callable[[], object]:
    """Return a function that runs Python with these arguments in a process of its own."""
    return lambda: subprocess.run([sys.executable, *arguments], capture_output=True)


def startup(quick: bool) -> list[Row]:
    """Compare commands that have nothing to compute with `import torch`."""
    baseline = _process("-c", "import torch")
    rows = []
    for name, arguments in STARTS.items():
        ours = _process("-m", "texture_ad.run", *arguments)
        seconds = by_turns(ours, baseline, repetitions=3 if quick else 5, warm=False)
        rows.append(Row(f"`{name}`", "import torch", 1 / 0.8, *seconds))
    return rows


def embedded_data(quick: bool) -> list[Row]:
    """Compare the seconds that an embedded data set takes with five."""
    return [_embedded_row(texture) for texture in (embedded.TEXTURES[:1] if quick else embedded.TEXTURES)]


def _embedded_row(texture: str) -> Row:
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        embedded.ensure(texture, Path(root))
        middle = time.perf_counter()
        embedded.ensure(texture, Path(root))
        cached = time.perf_counter() - middle
    note = f"then cached: {1000 * cached:.1f} ms"
    return Row(f"embedded data set {texture}", "5 seconds", 1, [middle - start], [5.0], note=note)


def pixel_metric(quick: bool) -> list[Row]:
    """Compare our AUPRO with its definition, computed threshold by threshold."""
    maps, masks = _maps_with_defects()
    note = f"{aupro(maps, masks):.4f} against {reference_aupro(maps, masks):.4f}"
    seconds = by_turns(
        lambda: aupro(maps, masks),
        lambda: reference_aupro(maps, masks),
        repetitions=1 if quick else 3,
        warm=False,
    )
    return [Row("AUPRO of 200 maps of 256×256", "reference, 200 thresholds one by one", 20, *seconds, note=note)]


def _maps_with_defects() -> tuple[np.ndarray, np.ndarray]:
    """Return random maps (200, 256, 256), every second one higher in a rectangle, and the rectangles' masks."""
    generator = np.random.default_rng(0)
    maps = generator.random((200, 256, 256), np.float32)
    masks = np.zeros(maps.shape, bool)
    for mask in masks[::2]:
        row, column = generator.integers(0, 200, 2)
        mask[row : row + 40, column : column + 30] = True
    maps[masks] += 0.5
    return maps, masks


def reference_aupro(maps: np.ndarray, masks: np.ndarray, thresholds: int = 200) -> float:
    """Return AUPRO by its definition: the mean overlap of the defects over the false positive rate, up to 0.3.

    Args:
        maps: (n, H, W).
        masks: bool (n, H, W), True = defect.
        thresholds: from the highest value of the maps to the lowest.
    """
    regions, count = ndimage.label(masks, structure=np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
    rates = [0.0]
    overlaps = [0.0]
    for threshold in np.linspace(maps.max(), maps.min(), thresholds):
        flagged = maps >= threshold
        rates.append((flagged & ~masks).sum() / (~masks).sum())
        overlaps.append(ndimage.mean(flagged, regions, np.arange(1, count + 1)).mean())
    grid = np.linspace(0, 0.3, 1000)
    return float(np.trapezoid(np.interp(grid, rates, overlaps), grid) / 0.3)
