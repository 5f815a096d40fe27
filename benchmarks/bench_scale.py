"""Measure how fit and predict grow with the images, their size, atoms, tiles of a picture, and threads.

    make bench-scale

Writes benchmarks/results/bench_scale.json and bench_scale.png. Each exponent is the slope of log time over log size,
by least squares: 1 is proportional. The images are random: how much there is to do does not depend on them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.material import SMALL, fit_after_stage1, prepared_run, untrained_detector, write_noise
from benchmarks.results import RESULTS, machine
from texture_ad import pipeline
from texture_ad.cli.experiment import prepare_process
from texture_ad.files import write_text
from texture_ad.methods.fusion.detector import FusionDetector

BASE = {"images": 64, "size": 128, "atoms": 256, "tiles": 1, "threads": 1}
VALUES = {
    "images": (32, 64, 128, 256),
    "size": (64, 128, 256, 512),
    "atoms": (128, 256, 512, 1024),
    "tiles": (2, 4, 8, 16),
    "threads": (1, 2),
}
UNIT = {"size": "side, pixels", "tiles": "tiles of a picture"}  # where its name doesn't say it
WORK = ("fit", "predict")
SETTINGS = (*SMALL, "backbone.layers=[block4,block10]", "data.eval_batch_size=16", "detection.batch=256")


def measure(images: int, size: int, atoms: int, tiles: int, threads: int) -> tuple[float, float]:
    """Return the seconds of a fit after stage 1, without synthetic defects, and of scoring all training images.

    Args:
        images: to train on; a quarter more calibrate.
        size: of the images, or of a tile, in pixels.
        atoms: of the dictionary.
        tiles: side by side in each picture; 1 for whole images.
        threads: of torch; SPAMS has one.
    """
    torch.set_num_threads(threads)
    options = (f"data.size={size}", f"dictionary.num_atoms={atoms}")
    tiled = (f"data.tile={size}", "data.overlap=0") if tiles > 1 else ()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_noise(folder, images + images // 4, size, size * tiles)
        run = prepared_run(folder, *SETTINGS, *options, *tiled)
        detector = untrained_detector(run, run.data.geometry)
        fit_after_stage1(run, detector)
        return run.metrics["fit_seconds"], predict_seconds(run, detector)


def predict_seconds(run: pipeline.Run, detector: FusionDetector) -> float:
    """Return the seconds of scoring all training images the second time; the first takes memory from the system."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        for batch in run.data.normal_dataloader():
            detector(batch["image"])
        seconds = time.perf_counter() - start
    return seconds


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def grow(name: str, sizes: Sequence[int], repetitions: int) -> dict[str, Any]:
    """Return the seconds of fit and predict at each size of what `name` says, and their exponents."""
    runs = [[measure(**BASE | {name: size}) for size in sizes] for _ in range(repetitions)]
    found: dict[str, Any] = {"sizes": list(sizes)}
    for i, work in enumerate(WORK):
        found[work] = [median(run[j][i] for run in runs) for j in range(len(sizes))]
        found[f"{work}_exponent"] = round(exponent(sizes, found[work]), 3)
    print(
        f"{name}: fit grows with exponent {found['fit_exponent']:.2f}, predict with {found['predict_exponent']:.2f}",
        flush=True,
    )
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw seconds over each size on logarithmic axes."""
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    for axis, (name, found) in zip(figure.subplots(1, len(VALUES)), results["scale"].items(), strict=True):
        for work, marker in zip(WORK, "os", strict=True):
            axis.loglog(found["sizes"], found[work], marker=marker, label=f"{work}: {found[f'{work}_exponent']:.2f}")
        axis.set(xlabel=UNIT.get(name, name), ylabel="seconds")
        axis.set_xticks(found["sizes"], [str(s) for s in found["sizes"]])
        axis.minorticks_off()
        axis.legend()
    others = ", ".join(f"{value} {'px' if key == 'size' else key}" for key, value in BASE.items() if key != "tiles")
    processor = f"{results['machine']['processor']}, {results['machine']['cores']} cores"
    figure.suptitle(f"{processor}; random images; where nothing else is said {others}")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure at all sizes, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    prepare_process()
    measure(16, 64, 64, 1, 1)  # not counted
    scale = {name: grow(name, sizes, args.repetitions) for name, sizes in VALUES.items()}
    results = {"machine": machine(), "base": BASE, "repetitions": args.repetitions, "scale": scale}
    write_text(args.output / "bench_scale.json", json.dumps(results, indent=1) + "\n")
    draw(results, args.output / "bench_scale.png")


if __name__ == "__main__":
    main()
