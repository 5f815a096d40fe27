"""Saved detectors of every method: reading a file that someone else may have written, and which class it is of."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from texture_ad.errors import UserError


def read_saved(path: Path, versions: dict[str, int]) -> dict:
    """The content of a detector's file; a file that holds code is refused, not run.

    Args:
        path: of the file.
        versions: of each format that is read.

    Raises:
        UserError: missing, no detector, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"detector={path}: no such file; give the detector.pt of a finished run")
    try:
        with zipfile.ZipFile(path) as parts:
            # torch stores uncompressed; a compressed part is a bomb.
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("compressed")
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = (content["format"], content["version"])
        right = found in versions.items()
    except Exception as error:
        raise UserError(f"detector={path}: not a detector file, or damaged; give a run's detector.pt") from error
    if not right:
        expected = " or ".join(f"{name} version {version}" for name, version in versions.items())
        raise UserError(
            f"detector={path}: format {found[0]} version {found[1]}, expected {expected}; train it again with this "
            "version"
        )
    return content


def check_state(content: dict, file_size: int) -> None:
    """Holds the tensors of a file to its size.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the file was not written by a detector.
    """
    state = content["state"]
    if not all(isinstance(v, Tensor) and v.is_contiguous() for v in state.values()):
        raise ValueError("its state holds more than tensors")
    if sum(v.numel() * v.element_size() for v in state.values()) > file_size:
        raise ValueError("its tensors are larger than the file")
    if not isinstance(content["meta"], dict):
        raise TypeError("its meta is no dict")


def on_device(detector: nn.Module, device: str) -> nn.Module:
    """`detector` on a device, ready for scoring.

    Raises:
        UserError: a device that is not there.
    """
    try:
        return detector.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: not available ({reason}); use device=cpu") from error


def load_detector(path: Path, device: str = "cpu", coder: str | None = None) -> nn.Module:
    """Reads a detector of any method.

    Args:
        path: of the file.
        device: "cpu", "cuda", "cuda:1", ...
        coder: of sparse codes, instead of the one it was saved with.

    Raises:
        UserError: missing, no detector, of another version, damaged, or a device that is not there.
    """
    from texture_ad.methods.base import BASELINE_FORMAT, BASELINE_VERSION
    from texture_ad.methods.fusion.detector import FORMAT, VERSION, Detector
    from texture_ad.methods.registry import baseline_class

    content = read_saved(path, {FORMAT: VERSION, BASELINE_FORMAT: BASELINE_VERSION})
    try:
        check_state(content, Path(path).stat().st_size)
        if coder is not None and "coder" in content["settings"]:
            content["settings"]["coder"] = coder
        kind = Detector if content["format"] == FORMAT else baseline_class(content["method"])
        detector = kind.from_content(content)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"detector={path}: damaged ({reason}); train it again") from error
    detector.meta = content["meta"]
    return on_device(detector, device)
