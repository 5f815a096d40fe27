"""How fit and predict grow with the number of images, their size and the number of atoms.

    make bench-scale

Writes experiments/results/bench_scale.json and bench_scale.png. Each exponent is the slope of log time over log size,
by least squares: 1 is proportional. The images are random: how much there is to do does not depend on them.
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from statistics import median

import lightning as L
import matplotlib
import numpy as np
import torch
from torch.utils.data import DataLoader

from experiments.bench import RESULTS, machine, numbered
from texture_ad.files import write_atomic
from texture_ad.methods.fusion.detection import Dictionary
from texture_ad.methods.fusion.detector import Detector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.models.backbone import Backbone
from texture_ad.models.flow import Flow
from texture_ad.models.whitening import Whitening
from texture_ad.pipeline import calibrate
from texture_ad.training.resources import keep_freed_memory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = {"images": 64, "size": 128, "atoms": 256}
VALUES = {"images": (32, 64, 128, 256), "size": (64, 128, 256, 512), "atoms": (128, 256, 512, 1024)}
UNIT = {"images": "images", "size": "side, pixels", "atoms": "atoms"}


def measure(images: int, size: int, atoms: int) -> tuple[float, float]:
    """Seconds of whitening, stage 2 and a threshold on a quarter of the images, and of scoring all of them."""
    backbone = Backbone("efficientnet_lite0", ["block4", "block10"]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
    batches = numbered(pictures.split(16))
    loader = DataLoader(batches, batch_size=None)
    quarter = batches[: max(1, len(batches) // 4)]
    detector = Detector(backbone, Whitening(152), Flow(152, 1), atoms, size=size)
    features = TrainingFeatures(detector, 256)
    module = Dictionary(detector, features, batch=256, threads=1)
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    start = time.perf_counter()
    detector.whitening.fit(lambda: features.stream(loader, torch.device("cpu")))
    trainer.fit(module, loader)
    module.standardise(loader)
    calibrate(module.detector, quarter, 0.95)
    fitted = time.perf_counter() - start
    for _ in range(2):  # the first takes its memory from the system
        start = time.perf_counter()
        for batch in loader:
            module.detector(batch["image"])
    return fitted, time.perf_counter() - start


def exponent(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def draw(results: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axis, (name, found) in zip(axes, results["scale"].items(), strict=True):
        for work, marker in (("fit", "o"), ("predict", "s")):
            axis.loglog(found["sizes"], found[work], marker=marker, label=f"{work}: {found[f'{work}_exponent']:.2f}")
        others = ", ".join(f"{v} {k}" if k != "size" else f"{v} px" for k, v in BASE.items() if k != name)
        axis.set(xlabel=UNIT[name], ylabel="seconds", title=others)
        axis.set_xticks(found["sizes"], [str(s) for s in found["sizes"]])
        axis.minorticks_off()
        axis.legend()
    figure.suptitle(f"{results['machine']['processor']}, {results['machine']['cores']} cores; random images")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\b")
    results: dict = {"machine": machine(), "base": BASE, "repetitions": args.repetitions, "scale": {}}
    measure(16, 64, 64)  # not counted
    for name, sizes in VALUES.items():
        runs = [[measure(**BASE | {name: size}) for size in sizes] for _ in range(args.repetitions)]
        found: dict = {"sizes": list(sizes)}
        for i, work in enumerate(("fit", "predict")):
            found[work] = [median(run[j][i] for run in runs) for j in range(len(sizes))]
            found[f"{work}_exponent"] = round(exponent(found["sizes"], found[work]), 3)
        results["scale"][name] = found
        print(
            f"{name}: fit grows with exponent {found['fit_exponent']:.2f}, predict with "
            f"{found['predict_exponent']:.2f}",
            flush=True,
        )
    write_atomic(args.output / "bench_scale.json", json.dumps(results, indent=1).encode() + b"\n")
    draw(results, args.output / "bench_scale.png")


if __name__ == "__main__":
    main()
