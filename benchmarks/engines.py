"""Measure a detector by each engine, with and without pictures.

    python -m benchmarks.engines DETECTOR FOLDER              # about 15 minutes on 2 quiet cores
    python -m benchmarks.engines DETECTOR FOLDER --quick      # fewer repetitions and files

Engines take turns on the same photographs, at batches of 1 and 32, with 1 and 2 threads, so that load falls on all
alike. Then a folder of 1000 files is predicted with and without overlays. Writes benchmarks/results/engines.json, with
the share of time of each part of the default detector. Runtimes that are not installed are left out.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.comparison import by_turns
from experiments.runs import script
from texture_ad.deploy.engines import EngineName, leave_cores, use_engine
from texture_ad.deploy.export import largest_difference
from texture_ad.deploy.runtimes import FORMATS
from texture_ad.deploy.scorer import Scorer, find_files, predict
from texture_ad.files import write_text
from texture_ad.methods.base import AnomalyDetector
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.registry import load
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.flow import negative_log_likelihood

ENGINES: tuple[EngineName, ...] = ("torch", "onnx", "openvino")
BATCHES = (1, 32)
THREADS = (1, 2)


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path, help="a run's detector.pt")
    parser.add_argument("folder", type=Path, help="photographs, at least 32")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and files")
    parser.add_argument("--output", type=Path, default=results.RESULTS / "engines.json")
    return parser.parse_args()


def detectors(file: Path) -> dict[str, AnomalyDetector]:
    """Return the detector with each engine that is installed, in torch's present number of threads."""
    found: dict[str, AnomalyDetector] = {}
    for name in ENGINES:
        packages = FORMATS[name].packages if name in FORMATS else ()
        if all(importlib.util.find_spec(package) for package in packages):
            found[name] = load(file)
            use_engine(found[name], file, name, 0)
    return found


def engines(file: Path, images: Tensor, quick: bool) -> list[dict[str, Any]]:
    """Return a row for each engine, batch and number of threads: milliseconds an image, and how many times as fast."""
    rows = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found = detectors(file)
        for batch in BATCHES:
            calls = [partial(score, detector, images[:batch], threads) for detector in found.values()]
            seconds = by_turns(*calls, repetitions=3 if quick else 5)
            for name, taken in zip(found, seconds, strict=True):
                # Of each turn, since the load changes from one to the next.
                ratio = median(torchs / own for torchs, own in zip(seconds[0], taken, strict=True))
                rows.append(
                    {
                        "engine": name,
                        "threads": threads,
                        "batch": batch,
                        "ms_an_image": round(1000 * median(taken) / batch, 2),
                        "times_as_fast_as_torch": round(ratio, 3),
                        **agreement(found["torch"], found[name], images),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def score(detector: AnomalyDetector, images: Tensor, threads: int) -> None:
    """Score images as the commands do in a number of threads, of which a runtime leaves torch one."""
    torch.set_num_threads(threads)
    leave_cores(detector)
    detector(images)


def agreement(torchs: AnomalyDetector, other: AnomalyDetector, images: Tensor) -> dict[str, Any]:
    """Return how many decisions differ, and by how much scores and maps do, relative to their range."""
    expected, found = torchs(images), other(images)
    threshold = float(torchs.threshold)
    pairs = [
        {name: getattr(p, name) for name in ("scores", "anomaly_maps") if getattr(p, name) is not None}
        for p in (found, expected)
    ]
    return {
        "other_decisions": int(((found.scores > threshold) != (expected.scores > threshold)).sum()),
        "largest_difference": float(f"{largest_difference(pairs[0], pairs[1]):.1e}"),
    }


def folder_seconds(file: Path, paths: list[Path], quick: bool) -> dict[str, Any]:
    """Return the seconds that `predict` takes on a folder, with and without pictures, by each engine."""
    torch.set_num_threads(max(THREADS))
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "in")
        source.mkdir()
        for number in range(100 if quick else 1000):
            path = paths[number % len(paths)]
            (source / f"{number:04d}{path.suffix}").symlink_to(path.resolve())
        files = find_files(source, Path(temporary, "out")).images
        for name, detector in detectors(file).items():
            (plain,), (drawn,) = by_turns(
                partial(predict_quietly, detector, files, None, Path(temporary, "out")),
                partial(predict_quietly, detector, files, Path(temporary, "out"), Path(temporary, "out")),
                repetitions=1,
                warm=False,
            )
            rows[name] = {
                "files": len(files),
                "seconds": round(plain, 1),
                "seconds_with_pictures": round(drawn, 1),
                "times_as_long": round(drawn / plain, 3),
            }
            print(name, rows[name], flush=True)
    return rows


def predict_quietly(detector: AnomalyDetector, files: list[Path], overlays: Path | None, output: Path) -> None:
    """Score files as the command does."""
    torch.set_num_threads(max(THREADS))
    scorer = Scorer(detector, files[0].parent, overlays)
    leave_cores(detector)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        predict(scorer, files, output, batch_size=32)


@torch.no_grad()
def shares(detector: FusionDetector, paths: list[Path], images: Tensor) -> dict[str, float]:
    """Return the share of one thread's time of each part of scoring and drawing photographs at once, by torch."""
    torch.set_num_threads(1)
    features = detector.patch_features(images)
    patches = flatten_patches(features)
    whitened = detector.whitening(patches)
    layers, quarters = detector.layer_features(whitened), detector.flow_features(whitened)
    measured = detector.measure(images)
    parts: dict[str, Callable[[], object]] = {
        "decode and resize": lambda: detector.read(*paths),
        "backbone": lambda: detector.patch_features(images),
        "whitening": lambda: detector.whitening(patches),
        "head": lambda: detector.head(layers),
        "flow": lambda: negative_log_likelihood(*detector.flow(quarters)),
        "dictionary": lambda: detector.dictionary(detector.dictionary_features(whitened)),
        "fuse, positions, map": lambda: detector.predict(measured, images.shape[-2:]),
    }
    seconds = {name: seconds_of(part) for name, part in parts.items()}
    with tempfile.TemporaryDirectory() as temporary:
        scorer = Scorer(detector, Path(os.path.commonpath([p.parent for p in paths])), Path(temporary))
        contents = scorer.read(paths)
        drawn = seconds_of(lambda: scorer.score(paths, contents))
        scorer.output = None
        seconds["draw and write overlays"] = max(0.0, drawn - seconds_of(lambda: scorer.score(paths, contents)))
    total = sum(seconds.values())
    return {name: round(value / total, 3) for name, value in seconds.items()}


def seconds_of(function: Callable[[], object]) -> float:
    """Return the least processor time of nine calls, which other processes' load changes least."""
    taken = []
    for _ in range(9):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    """Measure, and write the results."""
    args = arguments()
    paths = find_files(args.folder, args.folder / "overlays").images[:32]
    detector = load(args.detector)
    images = detector.read(*paths)
    if not isinstance(images, Tensor):
        raise SystemExit(f"{args.detector}: cuts photographs into tiles; give a detector of whole images")
    if not isinstance(detector, FusionDetector):
        raise SystemExit(f"{args.detector}: of method={detector.name}; give one of method=fusion")
    found: dict[str, Any] = {
        "machine": results.machine(),
        "size": list(images.shape[-2:]),
        "load_average": round(os.getloadavg()[0], 2),
        "shares": {str(n): shares(detector, paths[:n], images[:n]) for n in BATCHES},
        "engines": engines(args.detector, images, args.quick),
        "folder": folder_seconds(args.detector, paths, args.quick),
    }
    found["machine"]["threads"] = list(THREADS)
    write_text(args.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
