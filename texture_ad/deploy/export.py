"""Write a detector as one graph for other runtimes, after comparing the graph with the detector.

The graph takes `images`, uint8 (B, 3, H, W) RGB, and returns `scores` (B,) and, where the method has a map,
`anomaly_maps` (B, H, W).
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from texture_ad.data.geometry import Shape
from texture_ad.errors import ParameterError
from texture_ad.files import atomic_path
from texture_ad.methods.base import AnomalyDetector
from texture_ad.parameters import checked

OUTPUTS = ("scores", "anomaly_maps")
TOLERANCE = 1e-4  # of scores and maps, relative to their own size where that is above 1
MAX_BATCH = 4096  # images

FormatName = Literal["onnx", "torch_export"]


class Format(NamedTuple):
    """Say how a graph is written to a file, and how a file is run.

    Attributes:
        suffix: of the file's name.
        write: writes a program with these names of outputs to a path.
        run: returns the outputs of the file at a path for images, uint8 (B, 3, H, W).
    """

    suffix: str
    write: Callable[[ExportedProgram, Sequence[str], Path], None]
    run: Callable[[Path, Tensor], Sequence[Tensor]]


def write_onnx(program: ExportedProgram, outputs: Sequence[str], path: Path) -> None:
    """Write a program as one ONNX file, its weights inside."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            input_names=["images"],
            output_names=list(outputs),
            external_data=False,
        )


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    """Return the outputs of an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


def write_torch_export(program: ExportedProgram, outputs: Sequence[str], path: Path) -> None:
    """Write a program as an archive of torch.export, which numbers its outputs instead of naming them."""
    with open(path, "wb") as sink:
        torch.export.save(program, sink)


def run_torch_export(path: Path, images: Tensor) -> Sequence[Tensor]:
    """Return the outputs of an archive of torch.export."""
    with open(path, "rb") as source:
        return torch.export.load(source).module()(images)


class Exported(NamedTuple):
    """Say what was written.

    Attributes:
        outputs: names of the graph's outputs.
        difference: the largest one between the graph and the detector, relative where the detector's is above 1.
    """

    outputs: tuple[str, ...]
    difference: float


FORMATS = {
    "onnx": Format(".onnx", write_onnx, run_onnx),
    "torch_export": Format(".pt2", write_torch_export, run_torch_export),
}


def check_packages(format: FormatName) -> None:
    """Check that the packages which a format needs are installed.

    Raises:
        ParameterError: one is missing.
    """
    if format != "onnx":
        return
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401, torch's exporter needs it
    except ImportError as error:
        raise ParameterError(
            "format", format, f'{error.name} is not installed; in a checkout, pip install ".[export]"'
        ) from error


def random_images(count: int, size: Shape) -> Tensor:
    """Return the same random images, uint8 (count, 3, H, W) of size (H, W), at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def trace(module: nn.Module, size: Shape) -> ExportedProgram:
    """Return a module as a program for batches of any number of images, up to MAX_BATCH.

    Args:
        module: takes images, uint8 (B, 3, H, W); looks at no value.
        size: (H, W) of the images in pixels.
    """
    # Two images: a batch of one would be taken for a constant.
    example = random_images(2, size)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of tensors in pairs, relative to the expected number where that is above 1."""
    differences = [((a - b).abs() / b.abs().clamp(min=1)).max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(differences).max())


@checked
def export(detector: AnomalyDetector, target: Path, format: FormatName) -> Exported:
    """Write a detector's graph to `target` after comparing it with the detector on random images.

    Args:
        detector: loaded, on the CPU.
        target: the file; its folder is made.
        format: of the file.

    Raises:
        ParameterError: a package is missing, or the graph differs by more than TOLERANCE; nothing is written.
    """
    check_packages(format)
    size = detector.geometry.size
    images = random_images(3, size)
    expected = [output for output in detector(images)[: len(OUTPUTS)] if output is not None]
    outputs = OUTPUTS[: len(expected)]
    with atomic_path(target) as temporary:
        try:
            FORMATS[format].write(trace(detector.graph().eval(), size), outputs, temporary)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ParameterError("format", format, f"method {detector.name} has no such graph ({reason})") from error
        difference = largest_difference(FORMATS[format].run(temporary, images), expected)
        if not difference <= TOLERANCE:
            raise ParameterError(
                "format",
                format,
                f"the graph differs from the detector by {difference:.1e}, more than {TOLERANCE}; nothing was written",
            )
    return Exported(outputs, difference)
