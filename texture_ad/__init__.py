"""Find defects on textured surfaces from defect-free photographs alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from texture_ad.methods.base import AnomalyDetector
    from texture_ad.methods.registry import load

__version__ = "0.1.0"
__all__ = ["AnomalyDetector", "load"]

_HOMES = {"AnomalyDetector": "texture_ad.methods.base", "load": "texture_ad.methods.registry"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: this package must not import torch by itself."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
