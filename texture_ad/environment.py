"""Where this program keeps what it makes once, and the versions that a run's figures depend on."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # a container's account of itself
PACKAGES = ("texture_ad", "torch", "torchvision", "lightning", "spams-bin", "numpy", "timm")


def cache_folder() -> Path:
    """Return the folder of all caches: TEXTURE_AD_CACHE, else ~/.cache/texture_ad."""
    return Path(os.environ.get("TEXTURE_AD_CACHE") or Path.home() / ".cache" / "texture_ad")


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that decide a run's figures, and of the plugins' packages."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found | {point.dist.name: point.dist.version for point in plugins() if point.dist}


def not_installed(package: str, extra: str) -> str:
    """Say that a package is missing, and which extra of this one brings it."""
    return f"{package} is not installed; {to_install(extra)}"


def to_install(extra: str) -> str:
    """Say how to install an extra of this package; no release is published."""
    return f'in a checkout, pip install ".[{extra}]"'


def plugins() -> list[EntryPoint]:
    """Return the methods that installed packages offer: the entry points of the group `texture_ad.methods`."""
    return list(entry_points(group="texture_ad.methods"))


def is_allowed(target: str, allow: Sequence[str]) -> bool:
    """Return whether a class is in, or is, what the user trusts.

    Args:
        target: a class's module and name.
        allow: modules, or single names in them.
    """
    return any(f"{target}.".startswith(f"{name}.") for name in allow)


def available_memory() -> int | None:
    """Return the bytes of memory that this process can still take, or None where the system doesn't tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        limit, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        # Files that were read count as used, though the system drops them as soon as memory is asked for.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return free
