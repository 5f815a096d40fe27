"""What the benchmarks work on: detectors with the configuration's defaults, photographs, and their patch features."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from texture_ad import pipeline
from texture_ad.cli.compose import compose
from texture_ad.data import embedded
from texture_ad.data.batches import load_sample
from texture_ad.data.geometry import Geometry
from texture_ad.data.layouts import Sample, scan
from texture_ad.methods.fusion.detection import Detection
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.dictionary import initial_atoms, update_atoms
from texture_ad.models.whitening import Whitening

# For detectors that are quick to run: shallow layers of images that are not enlarged.
SMALL = ("backbone.neighborhood=3", "backbone.min_size=0", "flow.blocks=1")


@cache
def configuration(*overrides: str) -> DictConfig:
    """Return the configuration that these overrides give. Do not change it: benchmarks share it."""
    return compose(["run_dir=none", "cross_fit=false", *overrides])  # where a fit is timed, it is one


def make(group: str, overrides: Sequence[str] = (), **arguments: Any) -> Any:
    """Return the object that a group of conf/ describes.

    Args:
        group: such as "detection".
        overrides: of the configuration, as on a command line.
        arguments: that replace those of the group, or stand beside them.
    """
    options = pipeline.Run(configuration(*overrides), Path()).options(group)
    return pipeline.make(group, options | arguments)


def prepared_run(folder: Path, *overrides: str) -> pipeline.Run:
    """Return a run on the images of a folder, which are decoded where they fit."""
    run = pipeline.Run(configuration("data=folder", f"data.root={folder}", *overrides), folder)
    run.data = run.make("data")
    run.data.setup()
    return run


def untrained_detector(run: pipeline.Run, geometry: Geometry) -> FusionDetector:
    """Return an untrained detector with the settings of a run, for images of a geometry, in evaluation mode."""
    return run.make("method", make=run.make, geometry=geometry).eval().requires_grad_(False)


def fit_after_stage1(run: pipeline.Run, detector: FusionDetector) -> None:
    """Fit whitening and dictionary, then calibrate; `fit_seconds` of the run's metrics are those of all three."""
    loader = run.data.normal_dataloader()
    features = run.make("features", detector=detector)
    start = time.perf_counter()
    detector.whitening.fit(lambda: features.stream(loader, torch.device("cpu")))
    train_dictionary(run.make("detection", detector=detector, features=features), loader)
    run.metrics["fit_seconds"] = time.perf_counter() - start
    pipeline.calibrate(run, detector)  # adds its seconds, without those of synthetic defects


def photographs() -> tuple[str, list[Sample], list[Sample]]:
    """Return the name of a data source, its first 64 training samples, and at most 100 test samples."""
    root = os.environ.get("TEXTURE_AD_REAL_DATA")
    layout = scan(Path(root) if root else embedded.ensure("carpet"))
    name = Path(root).name if root else "embedded carpet (generated)"
    return name, layout.train[:64], layout.test[:: 1 + len(layout.test) // 100]


@cache
def images(part: str) -> Tensor:
    """Return the images of the part "train" or "test", uint8 (N, 3, 256, 256)."""
    _, train, test = photographs()
    samples = train if part == "train" else test
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(lambda sample: load_sample(sample, (256, 256))[0], samples)))


def batches(pictures: Tensor, size: int) -> DataLoader:
    """Return a loader of training batches of `size` images, as the data module gives them."""
    numbers = torch.arange(len(pictures))
    parts = zip(pictures.split(size), numbers.split(size), strict=True)
    return DataLoader([{"image": image, "index": index} for image, index in parts], batch_size=None)  # type: ignore[arg-type]


def write_noise(folder: Path, count: int, height: int, width: int) -> None:
    """Write `count` training images of random pixels into a folder, each (height, width), in the layout of MVTec AD."""
    good = folder / "train" / "good"
    good.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(good / f"{i:04d}.bmp")


def fit_whitening(whitening: Whitening, patches: Tensor, count: int) -> Tensor:
    """Fit a whitening on the patch features (N, C) of `count` images, and return them whitened, (N, c)."""

    def stream() -> Iterator[Tensor]:
        yield patches.unflatten(0, (count, -1))

    whitening.fit(stream)
    return whitening(patches)


@cache
@torch.no_grad()
def features() -> Tensor:
    """Return patch features of three layers, each whitened alike at all positions, (32768, 232) in random order."""
    layers = ["block4", "block7", "block10"]
    backbone = make("backbone", SMALL, layers=layers).eval()
    pictures = images("train")[:32]
    patches = flatten_patches(backbone.extract(pictures))
    whitening = make("whitening", channels=backbone.num_channels, mode="global", components=patches.shape[1])
    return fit_whitening(whitening, patches, len(pictures))[torch.randperm(len(patches))]


@cache
@torch.no_grad()
def default_detector() -> FusionDetector:
    """Return the default detector, its atoms those of one pass over the training images."""
    detector = untrained_detector(pipeline.Run(configuration("cutpaste=none"), Path()), Geometry((256, 256)))
    pictures = images("train")
    maps = detector.patch_features(pictures)
    whitened = fit_whitening(detector.whitening, flatten_patches(maps), len(pictures))
    x = detector.dictionary_features(whitened)
    detector.dictionary.set_atoms(learn_atoms(x, len(detector.dictionary.atoms), 3, 30, default_lambda1(), 1))
    detector.threshold.fill_(1.0)
    return detector


def default_lambda1() -> float:
    """Return the default weight of the l1 norm in equation 8."""
    return configuration().detection.lambda1


def learn_atoms(x: Tensor, count: int, parts: int, iterations: int, lambda1: float, threads: int) -> Tensor:
    """Return the atoms (count, C) that SPAMS learns from features (N, C), which it is given in parts.

    Args:
        x: the features.
        count: of atoms.
        parts: of the features, one call of SPAMS for each.
        iterations: mini-batches of 512 for each call.
        lambda1: the l1 weight.
        threads: of SPAMS, -1 for all cores.
    """
    atoms = initial_atoms(x, count, 0)
    statistics = None
    for part in x.chunk(parts):
        atoms, statistics = update_atoms(part, atoms, statistics, lambda1, iterations, 512, threads)
    return atoms


def train_dictionary(module: Detection, loader: DataLoader) -> None:
    """Train stage 2 as a run does, without its checkpoints."""
    trainer = L.Trainer(
        max_epochs=module.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
