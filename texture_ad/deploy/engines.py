"""Engines: what computes a detector's scores, torch or another runtime that gives the same decisions.

A runtime's file is made from the detector once, compared with it, and kept beside it.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from texture_ad.deploy.export import (
    TOLERANCE,
    Outputs,
    batches,
    deciding_otherwise,
    example_photographs,
    expected_outputs,
    joined,
    largest_difference,
    resized,
)
from texture_ad.deploy.graph import ScoringGraph, trace
from texture_ad.deploy.runtimes import FORMATS, Run, check_packages
from texture_ad.errors import ParameterError
from texture_ad.methods.base import AnomalyDetector, Prediction

EngineName = Literal["auto", "torch", "onnx", "openvino"]
Engine = Callable[[Tensor], Prediction]  # images, uint8 (B, 3, H, W) of the detector's size, to what it says of them

FASTEST = ("openvino", "onnx")  # that beat torch on a CPU, the fastest first; see docs/speed.md
WORTH = 1000  # images to score from which on `auto` makes a file that is not there yet


def open_engine(detector: AnomalyDetector, file: Path, name: EngineName, images: float) -> tuple[Engine, str]:
    """Return an engine and a line that says which one it is and why.

    Args:
        detector: loaded, on its device.
        file: that it was loaded from; the runtime's file lies in a folder beside it.
        name: of the engine; "auto" takes the fastest that is installed where its file is there already or many images
            are to be scored, else torch.
        images: how many are to be scored, infinity for a watched folder.

    Raises:
        ParameterError: a package is missing, the detector is not on a CPU, or the runtime gives other decisions.
    """
    if name == "torch":
        return detector, "torch"
    if name == "auto":
        return _automatic(detector, file, images)
    return _runtime(detector, file, name)


def _automatic(detector: AnomalyDetector, file: Path, images: float) -> tuple[Engine, str]:
    """Return the fastest engine that needs no waiting which does not pay."""
    if detector.device.type != "cpu":
        return detector, f"torch, on {detector.device}"
    name = next((name for name in FASTEST if importlib.util.find_spec(name)), None)
    if name is None:
        return detector, f'torch; {" or ".join(FASTEST)} is faster on a CPU, pip install ".[openvino]"'
    if images < WORTH and not engine_file(file, name).exists():
        return detector, f"torch; for many images engine={name} is faster, and takes a minute once"
    try:
        return _runtime(detector, file, name)
    except ParameterError as error:
        return detector, f"torch, since {error}"


def _runtime(detector: AnomalyDetector, file: Path, name: str) -> tuple[Engine, str]:
    """Return the engine of a runtime, from its file, which is made where it is missing."""
    if detector.device.type != "cpu":
        raise ParameterError("engine", name, f"runs on a CPU, the detector is on {detector.device}; use engine=torch")
    check_packages("engine", name, FORMATS[name].packages)
    path = engine_file(file, name)
    # Of a detector with a map all three, else the first alone.
    example = detector(torch.zeros(1, 3, *detector.geometry.size, dtype=torch.uint8))
    outputs = ScoringGraph.names(example)
    if not path.exists():
        print(f"engine   {name} is made from {file} once, which takes about a minute", flush=True)
        _make(detector, path, name, outputs)
    run = FORMATS[name].open(path, outputs, torch.get_num_threads())
    return _engine(run, example.grid), f"{name}, {path}"


def engine_file(file: Path, name: str) -> Path:
    """Return where the file of a runtime lies, by the detector's content and the versions that made it."""
    digest = hashlib.sha256()
    with open(file, "rb") as source:
        for block in iter(lambda: source.read(2**20), b""):
            digest.update(block)
    package = {"onnx": "onnxruntime"}.get(name, name)
    digest.update(f"{version('torch')} {version(package)} {version('texture_ad')}".encode())
    return file.with_name(f"{file.name}.engines") / f"{name}-{digest.hexdigest()[:16]}{FORMATS[name].suffix}"


def _make(detector: AnomalyDetector, path: Path, name: str, outputs: Sequence[str]) -> None:
    """Write a runtime's file; remove it again where its decisions differ from the detector's."""
    try:
        FORMATS[name].write(trace(ScoringGraph(detector), detector.geometry.size), outputs, path, "fp32")
        _compare(detector, FORMATS[name].open(path, outputs, torch.get_num_threads()), name)
    except BaseException:
        for part in (path, path.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise


@torch.no_grad()
def _compare(detector: AnomalyDetector, run: Run, name: str) -> None:
    """Check that a runtime says what the detector says of its example images, without and with synthetic defects.

    Raises:
        ParameterError: it doesn't.
    """
    decision = detector.decision()
    compared = [resized(batch, detector.geometry.size) for batch in batches(example_photographs(detector))]
    expected = joined([expected_outputs(detector(batch), decision) for batch in compared])
    found: Outputs = joined([run(batch) for batch in compared])
    found["labels"] = (found["scores"] > decision.threshold).to(torch.uint8)
    difference = largest_difference(found, expected)
    others = deciding_otherwise(found, expected, decision.threshold, TOLERANCE["fp32"])
    if others or not difference <= TOLERANCE["fp32"]:
        problem = f"{others} of {len(expected['labels'])} decisions differ, scores by {difference:.1e} of their range"
        raise ParameterError("engine", name, f"{problem}; use engine=torch")


def _engine(run: Run, grid: tuple[int, int] | None) -> Engine:
    """Return a runtime's function as an engine; `grid` is that of the patch map."""

    def predict(images: Tensor) -> Prediction:
        found = run(images)
        return Prediction(found["scores"], found.get("anomaly_maps"), found.get("positions"), grid)

    return predict
