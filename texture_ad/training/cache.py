"""What runs share: stage 1's result and the patch features, each under an address made of all that it depends on.

An entry is one file below `$TEXTURE_AD_CACHE/shared` (else ~/.cache/texture_ad/shared), there whole or not at all. An
entry that can't be read counts as missing; a cache that can't be written is left alone.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock
from omegaconf import DictConfig
from torch import Tensor

from texture_ad.cli.settings import among, flatten
from texture_ad.errors import check_number
from texture_ad.files import save_atomic
from texture_ad.methods.fusion.detector import Detector

# The only settings that stage 1 does not depend on; every other, also one that is yet to come, changes its address.
IRRELEVANT = (
    "run_dir",
    "name",
    "pictures",
    "cache",
    "cache_gb",
    "logger",
    "quantile",
    "data.root",  # the images' fingerprint stands for it
    "data.num_workers",
    "data.cache_mb",
    "trainer.enable_progress_bar",
    # All of the dictionary's but `top` and `min_distance`, by which stage 1 is validated.
    *(
        f"dictionary.{key}"
        for key in (
            "atoms",
            "features",
            "nonzeros",
            "error",
            "fusion",
            "coder",
            "lambda1",
            "iterations",
            "batch",
            "threads",
            "epochs",
            "memory_mb",
        )
    ),
)


@cache
def environment() -> tuple[str, ...]:
    """What else the last digit depends on: this package's source, the libraries, the processor or GPU."""
    source = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    found = [source.hexdigest(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    for package in ("torch", "torchvision", "lightning", "numpy", "spams-bin", "efficientnet-lite-pytorch"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    if torch.cuda.is_available():
        found += [torch.cuda.get_device_name(), str(torch.backends.cudnn.version())]
    return tuple(found)


def digest(*parts: object) -> str:
    """Of plain values, tensors and dicts of tensors; the number of threads and the environment always belong to it."""
    total = hashlib.sha256(repr((environment(), torch.get_num_threads())).encode())
    for part in parts:
        for name, value in part.items() if isinstance(part, Mapping) else [("", part)]:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous()
                total.update(repr((name, value.dtype, tuple(value.shape))).encode())
                total.update(value.view(-1).view(torch.uint8).numpy())
            else:
                total.update(json.dumps([name, value], sort_keys=True, default=str).encode())
    return total.hexdigest()


def stage1_address(config: DictConfig, state: Mapping[str, Tensor], fingerprint: str) -> str:
    """Where stage 1's result lies.

    Args:
        config: the run's, of which all but IRRELEVANT counts.
        state: of the untrained modules; it stands for the pretrained weights, whatever file they came from.
        fingerprint: of the images.
    """
    relevant = {key: value for key, value in flatten(config).items() if not among(key, IRRELEVANT)}
    return digest("stage 1", relevant, state, fingerprint)


class Cache:
    """Files by name, at most `cache_gb` GiB together; those not used for longest go first. Processes may share it.

    Raises:
        UserError: `cache_gb` is not above 0.
    """

    def __init__(self, cache_gb: float = 20):
        check_number("cache_gb", cache_gb, 0, above=True)
        home = os.environ.get("TEXTURE_AD_CACHE") or Path.home() / ".cache" / "texture_ad"
        self.root = Path(home) / "shared"
        self.limit = cache_gb * 2**30
        self.saved = 0.0  # seconds
        self.broken = False

    def clock(self) -> float:
        """Seconds, as `time.perf_counter` would count them if this process made everything that it found or awaited."""
        return time.perf_counter() + self.saved

    def get_or_create(self, name: str, make: Callable[[], dict]) -> dict:
        """The entry of this name, tensors and plain values; made and stored where it is missing.

        Of the processes that need the same one makes it while the others wait. The lock is the system's and goes with
        the process that holds it.
        """
        start = time.perf_counter()
        path = self.root / f"{name}.pt"
        found = self._read(path)
        if found is None:
            with self._lock(path):
                found = self._read(path)
                if found is None:
                    start = time.perf_counter()
                    content = make()
                    self._write(path, {"seconds": time.perf_counter() - start, "content": content})
                    return content
        self.saved += found["seconds"] - (time.perf_counter() - start)
        return found["content"]

    def _lock(self, path: Path) -> AbstractContextManager:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return FileLock(f"{path}.lock").acquire()
        except OSError as error:
            self._give_up(error)
            return nullcontext()

    def _read(self, path: Path) -> dict | None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            os.utime(path)
            return found
        except Exception:  # missing, damaged, or removed meanwhile
            return None

    def _write(self, path: Path, entry: dict) -> None:
        try:
            save_atomic(path, entry)
            self._shrink(path)
        except OSError as error:
            self._give_up(error)

    def _shrink(self, newest: Path) -> None:
        files = []
        for file in self.root.iterdir():
            with suppress(FileNotFoundError):  # another process shrinks too
                if file.suffix != ".lock" and file != newest:
                    files.append((file.stat().st_mtime, file.stat().st_size, file))
        total = newest.stat().st_size + sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= size

    def _give_up(self, error: OSError) -> None:
        if not self.broken:
            print(
                f"warning: {self.root}: can't be written ({error.strerror}); nothing new is shared between runs; set "
                "TEXTURE_AD_CACHE to a folder with room",
                file=sys.stderr,
            )
        self.broken = True


def share_features(detector: Detector, backbone: DictConfig, shared: Cache) -> None:
    """Lets a detector look its patch features up: they depend on the backbone's weights and settings and the images."""
    extract = detector.patch_features
    weights = digest(detector.backbone.state_dict(), flatten(backbone))

    def patch_features(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if images.device.type != "cpu":  # a GPU extracts them faster than a disk gives them
            return extract(images)
        precision = torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))
        content = shared.get_or_create(
            f"features-{digest(weights, precision, images)}",
            lambda: dict(zip(("patches", "grid"), extract(images), strict=True)),
        )
        return content["patches"], tuple(content["grid"])

    detector.patch_features = patch_features
