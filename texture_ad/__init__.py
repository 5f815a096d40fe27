"""Find defects on textured surfaces from defect-free photographs alone.

detector = texture_ad.fit("photographs/")
results = detector.predict("new/")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from texture_ad.api import fit
    from texture_ad.deploy.detector import Detector, load
    from texture_ad.deploy.results import Result
    from texture_ad.errors import UserError
    from texture_ad.methods.base import AnomalyDetector

__version__ = "0.1.0"
__all__ = ["AnomalyDetector", "Detector", "Result", "UserError", "fit", "load"]

_HOMES = {
    "AnomalyDetector": "texture_ad.methods.base",
    "Detector": "texture_ad.deploy.detector",
    "Result": "texture_ad.deploy.results",
    "UserError": "texture_ad.errors",
    "fit": "texture_ad.api",
    "load": "texture_ad.deploy.detector",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: this package must not import torch by itself."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what is imported when it is asked for, too: a notebook completes it."""
    return sorted({*globals(), *__all__})
