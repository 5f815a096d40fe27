"""The methods by name, of plugins too: building them, and loading a saved detector, which a stranger may have made."""

import inspect
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from texture_ad.data.geometry import Geometry
from texture_ad.environment import is_allowed, plugins
from texture_ad.errors import ParameterError, UserError, first_line
from texture_ad.methods.base import FORMAT, VERSION, AnomalyDetector
from texture_ad.models.backbone import Backbone
from texture_ad.training.resources import compute_in_float32

# Name to module and class; a module is imported when its method is asked for.
METHODS = {
    "fusion": "fusion.detector.FusionDetector",
    "one_nn": "one_nn.OneNN",
    "oc_svm": "oc_svm.OneClassSVM",
    "sparse_coding": "sparse_coding.SparseCoding",
    "dsebm": "dsebm.DSEBM",
    "ganomaly": "ganomaly.GANomaly",
    "patch_svdd": "patch_svdd.PatchSVDD",
    "cutpaste": "cutpaste.CutPaste",
    "patchcore": "patchcore.PatchCore",
    "padim": "padim.PaDiM",
}


def method_class(name: str) -> type[AnomalyDetector]:
    """Return the class of a method; import its module alone.

    Raises:
        ParameterError: another name than those of METHODS and of installed plugins.
    """
    if name in METHODS:
        module, _, kind = METHODS[name].rpartition(".")
        return getattr(import_module(f"texture_ad.methods.{module}"), kind)
    points = {point.name: point for point in plugins()}
    if name not in points:
        raise ParameterError("name", name, f"expected one of {', '.join([*METHODS, *points])}")
    return _plugin_class(points[name])


def _plugin_class(point: EntryPoint) -> type[AnomalyDetector]:
    """Return the class that an installed package offers as a method.

    Raises:
        ParameterError: it can't be imported, or is no method of this name.
    """
    try:
        kind = point.load()
    except Exception as error:
        raise ParameterError("name", point.name, f"{point.value} can't be imported ({error})") from error
    if not (inspect.isclass(kind) and issubclass(kind, AnomalyDetector) and kind.name == point.name):
        problem = f"{point.value} is no subclass of AnomalyDetector with the name {point.name!r}"
        raise ParameterError("name", point.name, problem)
    return kind


def build(name: str, make: Callable[..., Any], geometry: Geometry, **options: Any) -> AnomalyDetector:
    """Return an untrained detector of the method `name`.

    Args:
        name: of the method.
        make: returns the part of a name, such as "backbone".
        geometry: from photographs to images.
        options: the method's own settings.

    Raises:
        ParameterError: an option that the method doesn't have, or one out of its range.
    """
    kind = method_class(name)
    known = inspect.signature(kind.__init__).parameters
    for option in options.keys() - known.keys():
        raise ParameterError(option, options[option], f"no such parameter of {name}")
    try:
        detector = kind.assemble(make, **options)
    except TypeError as error:
        if "missing a required argument" not in str(error):
            raise
        raise ParameterError("name", name, f"{error}; choose a method with its settings by method={name}") from error
    detector.set_geometry(geometry)
    return detector.eval()


def load(detector: Path | str, device: str = "cpu", allow: Sequence[str] = ()) -> AnomalyDetector:
    """Read a saved detector of any method.

    Args:
        detector: the file.
        device: "cpu", "cuda", "cuda:1", ...
        allow: modules, or single names in them, whose code is trusted: those of a backbone of your own.

    Raises:
        ParameterError: the file is missing, no detector, of another version or damaged, or the device is not there; or
            its backbone is of a class that isn't allowed, or can't be imported.
    """
    path = Path(detector)
    content = _read(path)
    backbone = _backbone_class(content, path, allow)
    try:
        _check_state(content["state"], path.stat().st_size)
        found = method_class(content["method"]).from_content(content, backbone)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        raise ParameterError("detector", path, f"damaged ({first_line(error)}); train it again") from error
    return on_device(found, device)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a detector's file; refuse one that holds code, without running it."""
    if not path.is_file():
        raise ParameterError("detector", path, "no such file; give the detector.pt of a finished run")
    try:
        with zipfile.ZipFile(path) as parts:
            # torch stores uncompressed; a compressed part is a bomb.
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("compressed")
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = (content["format"], content["version"])
    except Exception as error:
        problem = "not a detector file, or damaged; give a run's detector.pt"
        raise ParameterError("detector", path, problem) from error
    if found != (FORMAT, VERSION):
        problem = f"format {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}"
        is_newer = found[0] == FORMAT and isinstance(found[1], int) and found[1] > VERSION
        advice = "it is newer than this program; upgrade texture_ad" if is_newer else "train it again with this version"
        raise ParameterError("detector", path, f"{problem}; {advice}")
    return content


def _backbone_class(content: dict[str, Any], path: Path, allow: Sequence[str]) -> type[Backbone]:
    """Return the class of a file's backbone, which is imported only if it is allowed."""
    options = content.get("backbone")
    target = options.get("_target_") if isinstance(options, dict) else None
    if target is None:
        return Backbone
    module, _, name = str(target).rpartition(".")
    if not is_allowed(str(target), allow):
        problem = f"its backbone is {target}; if you trust its code, add allow=[{module}]"
        raise ParameterError("detector", path, problem)
    try:
        kind = getattr(import_module(module), name)
    except Exception as error:
        raise ParameterError("detector", path, f"its backbone {target} can't be imported ({error})") from error
    if not (inspect.isclass(kind) and issubclass(kind, Backbone)):
        raise ParameterError("detector", path, f"its backbone {target} is no subclass of Backbone")
    return kind


def _check_state(state: Any, file_size: int) -> None:
    """Raise ValueError where the tensors of a file are none, or larger than the file."""
    if not all(isinstance(value, Tensor) and value.is_contiguous() for value in state.values()):
        raise ValueError("its state holds more than tensors")
    if sum(value.numel() * value.element_size() for value in state.values()) > file_size:
        raise ValueError("its tensors are larger than the file")


def on_device(detector: AnomalyDetector, device: str) -> AnomalyDetector:
    """Return the detector on a device, ready for scoring."""
    compute_in_float32()
    try:
        return detector.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError("device", device, f"not available ({reason}); use device=cpu") from error
