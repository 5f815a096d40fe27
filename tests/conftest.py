"""Fixtures of all tests: the command lines, in this process and in one of their own."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forked import run_module
from helpers import environment, few_photographs, untrained_detector
from PIL import Image

from texture_ad.data.geometry import Geometry
from texture_ad.data.roi import read_roi

# The files that take longest: begun first, none of them keeps one process busy at the end while the others wait.
LONGEST = (
    "sweep",
    "run",
    "examples",
    "resume",
    "export",
    "embedded",
    "baselines",
    "experiments",
    "backbone",
    "console",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order is kept by xdist's --no-loadscope-reorder."""
    order = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function for `python -m texture_ad.MODULE ARGUMENTS` in this process: exit code, stdout, stderr."""

    def call(module: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it; here it is taken back
        monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
        # Hydra would compose all once more to look for a hydra.mode, which conf/ does not set.
        monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        monkeypatch.setattr(sys, "argv", [f"texture_ad.{module}", *arguments])
        capsys.readouterr()
        try:
            importlib.import_module(f"texture_ad.{module}").main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function for `python -m texture_ad.MODULE ARGUMENTS` in a process of its own."""

    def call(module: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return run_module(f"texture_ad.{module}", *arguments, env=environment(**env))

    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few of the embedded photographs, which no test changes."""
    return few_photographs(tmp_path_factory.mktemp("data") / "carpet")


@pytest.fixture(scope="session")
def with_roi(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return a detector with a region of interest, a folder of three photographs, and their pixels inside, (H, W) bool.

    The photographs have twice the detector's size and differ by a white square: that of outside.png lies outside the
    region, that of inside.png crosses its edge, and own.png has none.
    """
    folder = tmp_path_factory.mktemp("roi")
    own = np.random.default_rng(0).integers(90, 140, (160, 200, 3), np.uint8)
    for name, left, top in (("own", 0, 160), ("outside", 60, 4), ("inside", 10, 64)):
        pixels = own.copy()
        pixels[top : top + 28, left : left + 40] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
    detector = untrained_detector(backbone=("resnet18", ("layer1",)), sigma=4.0)
    detector.set_geometry(Geometry((80, 100)))
    detector.roi = read_roi([20, 12, 60, 90], (80, 100), (80, 100))
    found = detector(detector.read(folder / "own.png"))
    detector.calibrate(found.scores, found.anomaly_maps.amax((1, 2)), 0.5, 0.5)
    inside = np.zeros(own.shape[:2], bool)
    inside[40:120, 24:180] = True
    return SimpleNamespace(detector=detector, folder=folder, inside=inside)
