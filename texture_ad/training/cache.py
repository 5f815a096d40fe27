"""What runs share: stage 1's result and the patch features, each under an address made of all that it depends on.

An entry is one file in the folder `shared` of `environment.cache_folder()`, complete or absent. An entry that can't be
read counts as missing; a cache that can't be written is left alone.
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
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from texture_ad.environment import cache_folder, versions
from texture_ad.files import reason, save_atomic
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Positive, checked

LOCK_DIGITS = 3  # of a digest: 4096 locks of each kind, so that jobs side by side seldom share one


@cache
def machine_and_source() -> tuple[str, ...]:
    """Return what else the last digit depends on: this package's source, the libraries, the processor or GPU."""
    source = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    found = [source.hexdigest(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    found += [f"{package} {number}" for package, number in versions().items()]
    if torch.cuda.is_available():
        found += [torch.cuda.get_device_name(), str(torch.backends.cudnn.version())]
    return tuple(found)


def digest(*parts: object) -> str:
    """Return the digest of plain values, tensors and dicts of them, of the number of threads, of machine and source."""
    total = hashlib.sha256(repr((machine_and_source(), torch.get_num_threads())).encode())
    for part in parts:
        for name, value in part.items() if isinstance(part, Mapping) else [("", part)]:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous()
                total.update(repr((name, value.dtype, tuple(value.shape))).encode())
                total.update(value.view(-1).view(torch.uint8).numpy().data)
            else:
                total.update(json.dumps([name, value], sort_keys=True, default=str).encode())
    return total.hexdigest()


@checked
class Cache:
    """Keep files by name; those not used for longest go first. Processes may share it.

    Args:
        cache_gb: size of all files together, in GiB.

    Attributes:
        saved: seconds that were not spent because an entry was there.
        broken: whether it could not be written.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(self, cache_gb: Positive):
        self.root = cache_folder() / "shared"
        self.limit = cache_gb * 2**30
        self.saved = 0.0
        self.broken = False

    def clock(self) -> float:
        """Return seconds, as `time.perf_counter` would count them if this process made all that it found or awaited."""
        return time.perf_counter() + self.saved

    def get_or_create(self, name: str, create: Callable[[], dict]) -> dict:
        """Return the entry of this name (tensors and plain values); create and store it if it is missing.

        If several processes need it, one creates it and the others wait. The operating system releases the lock when
        its process ends.

        Args:
            name: kind and digest, such as "stage1-0a1b...".
            create: may ask for entries of another kind, which in turn may ask for none.
        """
        start = time.perf_counter()
        path = self.root / f"{name}.pt"
        found = self._read(path)
        if found is None:
            with self._lock(name):
                found = self._read(path)
                if found is None:
                    begun = time.perf_counter()
                    self.saved -= begun - start  # what was waited for was no work of this process
                    content = create()
                    self._write(path, {"seconds": time.perf_counter() - begun, "content": content})
                    return content
        self.saved += found["seconds"] - (time.perf_counter() - start)
        return found["content"]

    def _lock(self, name: str) -> AbstractContextManager:
        """Lock an entry by a file that it shares with few others: an entry's own would stay when the entry goes.

        No two kinds share one, so that an entry that is created may wait for entries of another kind.
        """
        kind, _, digits = name.rpartition("-")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return FileLock(self.root / f"{kind}-{digits[:LOCK_DIGITS]}.lock").acquire()
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
                f"warning: {self.root}: can't be written ({reason(error)}); nothing new is shared between runs; set "
                "TEXTURE_AD_CACHE to a folder with room",
                file=sys.stderr,
            )
        self.broken = True


class FeatureCache:
    """Look patch features up: they depend on the backbone's weights and settings, and on the images.

    Args:
        cache: that holds them.
        backbone: that extracts them, with the weights that it keeps.
        quarters: whether those of the finest layer's quarters are among them.
    """

    def __init__(self, cache: Cache, backbone: Backbone, quarters: bool):
        self.cache = cache
        self.weights = digest(backbone.state_dict(), backbone.settings, quarters)

    def __call__(self, images: Tensor, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the patch features (B, C, h, w) of images uint8 (B, 3, H, W), by `extract` where they are missing."""
        if images.device.type != "cpu":  # a GPU extracts them faster than a disk gives them
            return extract(images)
        precision = torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))
        name = f"features-{digest(self.weights, precision, images)}"
        return self.cache.get_or_create(name, lambda: {"features": extract(images)})["features"]
