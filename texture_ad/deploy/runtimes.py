"""Runtimes for exported graphs: how each one's file is written, and run on a CPU.

A graph's file is opened once, as a function from images to named outputs.
"""

import contextlib
import importlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Queue
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from texture_ad.environment import not_installed
from texture_ad.errors import ParameterError
from texture_ad.files import atomic_path

FormatName = Literal["onnx", "openvino", "torch_export"]
Precision = Literal["fp32", "fp16", "int8"]
Run = Callable[[Tensor], dict[str, Tensor]]  # images, uint8 (B, 3, H, W), to the outputs by name

HALVED = 1024  # numbers of a weight from which on its storage is halved


class Format(NamedTuple):
    """Say how a graph is written to a file, and how a file is run.

    Attributes:
        suffix: of the file's name.
        packages: that are needed beside torch, by the names that Python imports.
        precisions: that the file can have.
        write: writes a program with these names of outputs to a path, at a precision of fp32 or fp16.
        open: returns the file at a path as a function, for a number of threads, 0 for the runtime's choice, and for as
            many calls of it at once as its last argument says, which share these threads.
    """

    suffix: str
    packages: tuple[str, ...]
    precisions: tuple[Precision, ...]
    write: Callable[[ExportedProgram, Sequence[str], Path, Precision], None]
    open: Callable[[Path, Sequence[str], int, int], Run]


def onnx_model(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """Return a program as an ONNX model, its weights inside."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter tells every node that it leaves alone
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            written = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=list(outputs), external_data=False
            )
    finally:
        logging.disable(disabled)
    assert written is not None
    return written.model_proto


def halve_weights(model: Any) -> None:
    """Store an ONNX model's large weights in half precision; a runtime widens them when it loads the model."""
    import onnx

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < HALVED:
            continue
        name = weight.name
        half = onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def write_onnx(program: ExportedProgram, outputs: Sequence[str], path: Path, precision: Precision) -> None:
    """Write a program as one ONNX file."""
    model = onnx_model(program, outputs)
    if precision == "fp16":
        halve_weights(model)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def open_onnx(path: Path, outputs: Sequence[str], threads: int, calls: int) -> Run:
    """Return an ONNX file as a function, run by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads // calls
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(list(outputs), {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run


def write_openvino(program: ExportedProgram, outputs: Sequence[str], path: Path, precision: Precision) -> None:
    """Write a program as OpenVINO's pair of files, PATH.xml and PATH.bin."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(program, outputs, Path(folder, "graph.onnx"), "fp32")
        model = openvino.convert_model(Path(folder, "graph.onnx"))
    save_openvino(model, path, half=precision == "fp16")


def save_openvino(model: Any, path: Path, half: bool) -> None:
    """Write an OpenVINO model as a pair of files; both are there or neither."""
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        openvino.save_model(model, Path(folder, "graph.xml"), compress_to_fp16=half)
        for suffix in (".bin", ".xml"):  # what names the other comes last
            os.replace(Path(folder, f"graph{suffix}"), path.with_suffix(suffix))


def open_openvino(path: Path, outputs: Sequence[str], threads: int, calls: int) -> Run:
    """Return OpenVINO's files as a function; in float32, since its default on some processors is bfloat16."""
    import openvino

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": calls}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", options)
    free = Queue[Any]()
    for _ in range(calls):
        free.put(compiled.create_infer_request())

    def run(images: Tensor) -> dict[str, Tensor]:
        request = free.get()
        try:
            found = request.infer(images.numpy())
            return {name: torch.from_numpy(found[name].copy()) for name in outputs}
        finally:
            free.put(request)

    return run


def write_torch_export(program: ExportedProgram, outputs: Sequence[str], path: Path, precision: Precision) -> None:
    """Write a program as an archive of torch.export, which numbers its outputs instead of naming them."""
    with atomic_path(path) as temporary, open(temporary, "wb") as sink:
        torch.export.save(program, sink)


def open_torch_export(path: Path, outputs: Sequence[str], threads: int, calls: int) -> Run:
    """Return an archive of torch.export as a function; torch's own number of threads holds."""
    with open(path, "rb") as source:
        module = torch.export.load(source).module()
    return lambda images: dict(zip(outputs, module(images), strict=True))


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", ONNX, ("fp32", "fp16"), write_onnx, open_onnx),
    "openvino": Format(".xml", (*ONNX[:2], "openvino"), ("fp32", "fp16", "int8"), write_openvino, open_openvino),
    "torch_export": Format(".pt2", (), ("fp32",), write_torch_export, open_torch_export),
}
EXTRAS = {"openvino": "openvino", "nncf": "openvino"}  # package to extra, if not "export"


def check_packages(name: str, value: str, packages: Sequence[str]) -> None:
    """Check that packages are installed.

    Args:
        name: of the parameter that asks for them.
        value: of that parameter.
        packages: by the names that Python imports.

    Raises:
        ParameterError: one is missing.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            problem = not_installed(error.name or package, EXTRAS.get(package, "export"))
            raise ParameterError(name, value, problem) from error
