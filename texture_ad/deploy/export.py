"""Write a detector as one graph for other runtimes, after comparing what the file says with what the detector says.

The graph takes `images`, uint8 (B, 3, H, W) RGB of any size, and returns `scores` (B,), `labels` (B,) and, where the
method has a map, `anomaly_maps` (B, h, w) and `masks` (B, h, w): resizing and thresholds are inside.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from texture_ad.data.images import resize
from texture_ad.data.synthetic import synthetic_defects
from texture_ad.deploy.graph import DecidingGraph, decided, trace
from texture_ad.deploy.runtimes import FORMATS, FormatName, Precision, check_packages, save_openvino
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.files import check_output_file, missing_folders, remove_empty
from texture_ad.methods.base import AnomalyDetector
from texture_ad.parameters import checked

# Of scores and maps, relative to the range that they have over the compared photographs.
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
MAX_LOSS = 0.005  # of the AUROC by int8
STRAY = {"fp32": 1e-3, "fp16": 5e-3, "int8": 1e-3}  # share of the maps' pixels that may differ by more
MIN_IMAGES = 16  # normal photographs for int8: with fewer an AUROC says little

Outputs = dict[str, Tensor]


class Exported(NamedTuple):
    """Say what was written.

    Attributes:
        outputs: names of the graph's outputs.
        photographs: how many the file was compared on, half of them with a synthetic defect.
        difference: what `largest_difference` returns.
        others: of the labels that differ; none but for int8.
        loss: of the AUROC of synthetic defects, above 0 where the file's is lower; None but for int8.
    """

    outputs: tuple[str, ...]
    photographs: int
    difference: float
    others: int = 0
    loss: float | None = None


def example_photographs(detector: AnomalyDetector) -> list[Tensor]:
    """Return the normal images that the detector's file holds, and one of them unevenly enlarged.

    Raises:
        ParameterError: it holds none.
    """
    examples = detector.examples
    if not len(examples):
        raise ParameterError("images", None, "the detector holds no examples; give a folder with normal photographs")
    height, width = detector.geometry.size
    return [*examples, resize(examples[0].permute(1, 2, 0).numpy(), (height + height // 2, 2 * width))]


def batches(photographs: Iterable[Tensor]) -> list[Tensor]:
    """Return photographs, uint8 (3, H, W) each, as batches (B, 3, H, W) of one size each, without and with defects.

    Every photograph is there once as it is, and once with a synthetic defect, so that both labels occur.
    """
    by_size = sorted(photographs, key=lambda photograph: photograph.shape)
    normal = [torch.stack(list(group)) for _, group in groupby(by_size, key=lambda photograph: photograph.shape)]
    generator = torch.Generator().manual_seed(0)
    return [*normal, *(synthetic_defects(batch, generator)[0] for batch in normal)]


def resized(batch: Tensor, size: Sequence[int]) -> Tensor:
    """Return a batch uint8 (B, 3, H, W) at the detector's size (h, w), as reading a file gives it."""
    return torch.stack([resize(image.permute(1, 2, 0).numpy(), size) for image in batch])


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several batches as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def largest_difference(found: Outputs, expected: Outputs, stray: float = STRAY["fp32"]) -> float:
    """Return the largest difference of scores and maps, relative to the range of the expected ones.

    Of the maps a share of `stray` of the pixels is left out: where two atoms are nearly as good as each other, the last
    digit decides which one a dictionary takes, and so what is left of that position.
    """
    differences = []
    for name, share in (("scores", 0.0), ("anomaly_maps", stray)):
        if name in expected:
            span = (expected[name].max() - expected[name].min()).clamp(min=1e-12)
            each = ((found[name] - expected[name]) / span).abs().flatten()
            highest = each.kthvalue(math.ceil((1 - share) * len(each))).values
            differences.append(float(highest) if each.isfinite().all() else math.inf)
    return max(differences)


def deciding_otherwise(found: Outputs, expected: Outputs, threshold: float, tolerance: float) -> int:
    """Return how many labels differ, but for scores so near to the threshold that the tolerance covers both labels.

    The threshold is itself the score of a calibration image.
    """
    scores = expected["scores"]
    near = (scores - threshold).abs() <= tolerance * (scores.max() - scores.min())
    return int(((found["labels"] != expected["labels"]) & ~near).sum())


@checked
def check_request(target: Path, format: FormatName, precision: Precision) -> None:
    """Check all that needs no detector: the precision, the file's name and place, and the packages.

    Raises:
        ParameterError: one of them is wrong.
    """
    kind = FORMATS[format]
    if precision not in kind.precisions:
        raise ParameterError("precision", precision, f"format={format} has {', '.join(kind.precisions)}")
    if target.suffix != kind.suffix:
        raise ParameterError("output", target, f"expected a file named *{kind.suffix} with format={format}")
    check_output_file(target)
    if format == "openvino":  # which writes the weights beside it
        check_output_file(target.with_suffix(".bin"))
    check_packages("format", format, kind.packages)
    if precision == "int8":
        check_packages("precision", precision, ("nncf",))


@checked
@torch.no_grad()
def export(
    detector: AnomalyDetector,
    target: Path,
    format: FormatName,
    photographs: Sequence[Tensor],
    precision: Precision = "fp32",
    decision: Decision | None = None,
) -> Exported:
    """Write a detector's graph to `target` after comparing it with the detector, both on a CPU.

    Args:
        detector: loaded, on the CPU.
        target: the file; its folder is made.
        format: of the file.
        photographs: normal ones, uint8 (3, H, W) RGB each, of any size; at least 1, for int8 at least MIN_IMAGES.
        precision: fp32; fp16, weights stored in half precision; or int8, convolutions quantised by NNCF.
        decision: thresholds in the graph, None for the detector's own.

    Raises:
        ParameterError: `check_request` refuses, the method has no such graph, or the file says something else than the
            detector; nothing is written.
    """
    check_request(target, format, precision)
    kind = FORMATS[format]
    if precision == "int8":
        _check_enough(photographs)
    if detector.geometry.tiled:
        problem = (
            "a detector with tiles joins their maps outside of any graph; use predict, whose engines work on tiles"
        )
        raise ParameterError("format", format, problem)
    decision = decision or detector.decision()
    graph = DecidingGraph(detector, decision)
    compared = batches(photographs)
    own = [detector(resized(batch, detector.geometry.size)) for batch in compared]
    expected = joined([decided(prediction.scores, prediction.anomaly_maps, decision) for prediction in own])
    outputs = tuple(expected)
    # The suffix says to OpenVINO what the file is.
    temporary = target.with_name(f"{target.name}.partial{kind.suffix}")
    missing = missing_folders(target.parent)
    try:
        _write(detector, graph, outputs, format, precision, compared, temporary)
        run = kind.open(temporary, outputs, 0, 1)
        found = joined([run(batch) for batch in compared])
        del run  # closes the file, which some systems can't rename while it is open
        written = _judged(found, expected, decision, precision)
        for suffix in dict.fromkeys((".bin", kind.suffix)):
            part = temporary.with_suffix(suffix)
            if part.exists():
                part.replace(target if suffix == kind.suffix else target.with_suffix(suffix))
    finally:
        for suffix in (".bin", kind.suffix):
            temporary.with_suffix(suffix).unlink(missing_ok=True)
        remove_empty(missing)  # none but those of a refused file is
    return written


def _check_enough(photographs: Sequence[Tensor]) -> None:
    if len(photographs) < MIN_IMAGES:
        problem = f"{len(photographs)} photographs, int8 needs {MIN_IMAGES}; give images=FOLDER with normal ones"
        raise ParameterError("precision", "int8", problem)


def _write(
    detector: AnomalyDetector,
    graph: DecidingGraph,
    outputs: Sequence[str],
    format: FormatName,
    precision: Precision,
    compared: Sequence[Tensor],
    path: Path,
) -> None:
    """Write the graph, not yet compared with the detector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program = trace(graph, graph.size)
        FORMATS[format].write(program, outputs, path, "fp32" if precision == "int8" else precision)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ParameterError("format", format, f"method {detector.name} has no such graph ({reason})") from error
    if precision == "int8":
        quantise(path, compared[: len(compared) // 2])


def quantise(path: Path, normal: Sequence[Tensor]) -> None:
    """Quantise the convolutions of OpenVINO's files in place, by the activations of normal photographs.

    Whitening, flow and dictionary stay as they are: they amplify the directions of least variance, where eight bits
    would be noise.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(path)
    images = [image[None].numpy() for batch in normal for image in batch]
    others = sorted({node.get_type_name() for node in model.get_ops()} - {"Convolution", "GroupConvolution"})
    quantised = nncf.quantize(
        model,
        nncf.Dataset(images),
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(types=others, validate=False),
    )
    del model
    save_openvino(quantised, path, half=False)


def _judged(found: Outputs, expected: Outputs, decision: Decision, precision: Precision) -> Exported:
    """Return what a file was found to be; refuse one that says something else than the detector."""
    outputs = tuple(expected)
    count = len(expected["scores"])
    difference = largest_difference(found, expected, STRAY[precision])
    if precision == "int8":
        loss = _auroc(expected["scores"]) - _auroc(found["scores"])
        if not loss < MAX_LOSS:
            problem = f"loses {loss:.4f} of the AUROC on {count} photographs, {MAX_LOSS} or more; nothing was written"
            raise ParameterError("precision", precision, problem)
        return Exported(outputs, count, difference, int((found["labels"] != expected["labels"]).sum()), loss)
    tolerance = TOLERANCE[precision]
    if not difference <= tolerance:
        problem = f"differs from the detector by {difference:.1e} of the scores' range on {count} photographs"
        raise ParameterError("precision", precision, f"{problem}, more than {tolerance}; nothing was written")
    others = deciding_otherwise(found, expected, decision.threshold, tolerance)
    if others:
        problem = f"decides otherwise than the detector on {others} of {count} photographs; nothing was written"
        raise ParameterError("precision", precision, problem)
    return Exported(outputs, count, difference)


def _auroc(scores: Tensor) -> float:
    """Return the AUROC of scores (2n,) of n normal photographs and then n with a synthetic defect."""
    count = len(scores) // 2
    found = image_metrics(scores.numpy(), [0] * count + [1] * count, 0.0)["image_auroc"]
    assert found is not None
    return found
