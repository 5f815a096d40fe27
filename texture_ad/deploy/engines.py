"""Engines: what computes a detector's measurements, torch or another runtime that gives the same decisions.

A runtime's file is made from the detector once, compared with it, and kept beside it.
"""

import hashlib
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from texture_ad import __version__
from texture_ad.deploy.export import (
    TOLERANCE,
    Outputs,
    batches,
    deciding_otherwise,
    joined,
    largest_difference,
)
from texture_ad.deploy.graph import MeasuringGraph, decided, trace
from texture_ad.deploy.runtimes import FORMATS, check_packages
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import Decision
from texture_ad.files import content_digest, reason
from texture_ad.methods.base import AnomalyDetector, Measurement

EngineName = Literal["auto", "torch", "onnx", "openvino"]

FASTEST: tuple[EngineName, ...] = ("onnx", "openvino")  # that beat torch on a CPU, the fastest first; see docs/speed.md
FEW = 100  # images to score, below which `auto` doesn't even open a file: it takes seconds
MANY = 1000  # images to score, from which on `auto` makes a file that is not there yet


def use_engine(detector: AnomalyDetector, file: Path, name: EngineName, images: int) -> str:
    """Let an engine measure images for a detector from now on; return a line that says which one, and why.

    Args:
        detector: loaded, on its device.
        file: that it was loaded from; the runtime's file lies in a folder beside it.
        name: of the engine; "auto" takes torch for few images, else the fastest that is installed where its file is
            there already or many images are to be scored.
        images: how many are to be scored.

    Raises:
        ParameterError: a package is missing, the detector is not on a CPU, or the runtime gives other decisions.
    """
    if name == "torch":
        return "torch"
    if name == "auto":
        return _use_fastest(detector, file, images)
    return _use_runtime(detector, file, name)


def leave_cores(detector: AnomalyDetector) -> None:
    """Leave one thread to torch where a runtime measures for a detector.

    Torch's other threads spin while they wait, on cores that the runtime needs. What is left to torch is little.
    """
    if "measure" in vars(detector):
        torch.set_num_threads(1)


def _use_fastest(detector: AnomalyDetector, file: Path, images: int) -> str:
    """Use the fastest engine that is there, or that pays to wait for."""
    if detector.device.type != "cpu":
        return f"torch on {detector.device}"
    installed = [name for name in FASTEST if all(importlib.util.find_spec(p) for p in FORMATS[name].packages)]
    if not installed or images < FEW:
        return "torch"
    kept = [name for name in installed if engine_file(file, name).exists()]
    if not kept and images < MANY:
        return f"torch; engine={installed[0]} is faster, once it is made in about a minute"
    try:
        return _use_runtime(detector, file, (kept or installed)[0])
    except ParameterError as error:
        return f"torch, since {error}"


def _use_runtime(detector: AnomalyDetector, file: Path, name: str) -> str:
    """Use a runtime by its file, which is made where it is missing."""
    if detector.device.type != "cpu":
        raise ParameterError("engine", name, f"runs on a CPU, the detector is on {detector.device}; use engine=torch")
    check_packages("engine", name, FORMATS[name].packages)
    if not len(detector.examples):
        raise ParameterError("engine", name, "the detector's file holds no examples to compare on; use engine=torch")
    path = engine_file(file, name)
    if not (path.exists() and _opened(detector, path, name)):
        print(f"engine   {name} is made from {file} once, which takes about a minute", flush=True)
        _make(detector, path, name)
    return f"{name}, kept in {path.parent}"


def _opened(detector: AnomalyDetector, path: Path, name: str) -> bool:
    """Return whether a runtime can use its file; one that is damaged is removed."""
    try:
        _open(detector, path, name)
    except Exception as error:  # each runtime has kinds of its own
        told = str(error).strip().partition("\n")[0]
        print(f"note: {path}: damaged ({told}); it is made anew", file=sys.stderr)
        _remove(detector, path)
        return False
    return True


def _remove(detector: AnomalyDetector, path: Path) -> None:
    """Remove a runtime's file, as far as it can be, and let torch measure again."""
    vars(detector).pop("measure", None)
    for part in (path, path.with_suffix(".bin")):
        with suppress(OSError):
            part.unlink()


def engine_file(file: Path, name: str) -> Path:
    """Return where the file of a runtime lies, by the detector's content and the versions that make it."""
    digest = hashlib.sha256(content_digest(file))
    package = "onnxruntime" if name == "onnx" else name
    digest.update(" ".join([__version__, version("torch"), version(package)]).encode())
    return file.with_name(f"{file.name}.engines") / f"{name}-{digest.hexdigest()[:16]}{FORMATS[name].suffix}"


def _make(detector: AnomalyDetector, path: Path, name: str) -> None:
    """Write a runtime's file and use it; where its decisions are others than the detector's, use torch.

    The file gets its name last: one that was never compared is not taken for one that was.
    """
    graph = MeasuringGraph(detector)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # before the tracing, which takes long
            made = Path(folder, path.name)
            program = trace(graph, detector.geometry.size)
            FORMATS[name].write(program, graph.names(_measured(detector)), made, "fp32")
            _compare(detector, made, name)
            vars(detector).pop("measure")  # closes the file, which some systems can't rename while it is open
            for part in (made.with_suffix(".bin"), made):
                if part.exists():
                    part.replace(path.with_name(part.name))
        _open(detector, path, name)
    except (ParameterError, OSError, RuntimeError, TypeError, ValueError) as error:
        _remove(detector, path)
        if isinstance(error, ParameterError):
            raise
        told = f"{error.filename}: {reason(error)}" if isinstance(error, OSError) and error.filename else str(error)
        line = told.strip().partition("\n")[0]
        raise ParameterError("engine", name, f"can't be made ({line}); use engine=torch") from error


def _measured(detector: AnomalyDetector) -> Measurement:
    """Return what a detector measures of a black image."""
    return detector.measure(torch.zeros(1, 3, *detector.geometry.size, dtype=torch.uint8))


@torch.no_grad()
def _compare(detector: AnomalyDetector, path: Path, name: str) -> None:
    """Use a runtime, if it decides as torch does on the detector's examples, without and with synthetic defects.

    Raises:
        ParameterError: it doesn't.
    """
    decision = detector.decision()
    compared = batches(detector.examples)
    expected = _outputs(detector, compared, decision)
    _open(detector, path, name)
    found = _outputs(detector, compared, decision)
    difference = largest_difference(found, expected)
    others = deciding_otherwise(found, expected, decision.threshold, TOLERANCE["fp32"])
    if others or not difference <= TOLERANCE["fp32"]:
        problem = f"{others} of {len(expected['labels'])} decisions differ, scores by {difference:.1e} of their range"
        raise ParameterError("engine", name, f"{problem}; use engine=torch")


def _outputs(detector: AnomalyDetector, compared: Sequence[Tensor], decision: Decision) -> Outputs:
    """Return what a detector says of batches of images of its size, or of tiles."""
    size = detector.geometry.size
    predictions = [detector.predict(detector.measure_tiles(batch), size) for batch in compared]
    return joined([decided(one.scores, one.anomaly_maps, decision) for one in predictions])


@torch.no_grad()
def _open(detector: AnomalyDetector, path: Path, name: str) -> None:
    """Let the runtime's file measure for a detector, in torch's number of threads.

    All of them work at one image. Of a batch each takes images of its own, which is faster than a batch whose features
    fill the processor's caches; see docs/speed.md.
    """
    threads = torch.get_num_threads()
    opened = cache(partial(FORMATS[name].open, path, MeasuringGraph.names(_measured(detector)), threads))
    opened(1)  # which tells whether the file can be used
    pool = ThreadPoolExecutor(threads)

    def measure(images: Tensor) -> Measurement:
        run = opened(1 if len(images) == 1 else threads)
        found = joined(list(pool.map(run, images.split(1))))
        return Measurement(found.get("scores"), found.get("parts"))

    detector.measure = measure  # type: ignore[method-assign]
