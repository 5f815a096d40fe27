"""What several tests share: parts made with the configuration's defaults, an untrained detector, small data sets."""

import csv
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from texture_ad import pipeline
from texture_ad.cli.entry import CONF
from texture_ad.data.drift import brightness, training_statistics
from texture_ad.data.embedded import ensure
from texture_ad.data.geometry import Geometry
from texture_ad.data.images import header
from texture_ad.environment import cache_folder
from texture_ad.methods.base import AnomalyDetector, Provenance
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.registry import method_class
from texture_ad.models.backbone import Backbone

MEASURED = ("seconds", "memory", "loader_share")  # in the names of metrics that differ from run to run


@cache
def composed(*overrides: str) -> DictConfig:
    """Return the configuration that these overrides give. Do not change it: tests share it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["run_dir=none", *overrides])


def make(group: str, overrides: Sequence[str] = (), **arguments: Any) -> Any:
    """Return the object that a group of conf/ describes.

    Args:
        group: such as "data".
        overrides: of the configuration, as on a command line.
        arguments: that replace those of the group, or stand beside them.
    """
    options = OmegaConf.to_container(composed(*overrides)[group], resolve=True)
    return pipeline.make(group, options | arguments)


def tiny_backbone(name: str, layers: Sequence[str], weights: str = "none", **options: int) -> Backbone:
    """Return a backbone that never enlarges its images; without weights it is drawn by torch's seed."""
    return Backbone(
        "texture_ad",
        name,
        layers,
        weights,
        **{"neighborhood": 3, "min_size": 0, "scale": "root", "grid": layers[0], "frozen": 0, **options},
    )


def baseline(name: str, *backbone: Backbone, size: int = 64, **options: Any) -> AnomalyDetector:
    """Return an untrained baseline with the defaults of its method, but for these options."""
    defaults = OmegaConf.to_container(composed(f"method={name}").method, resolve=True)
    for key in ("_target_", "name"):
        del defaults[key]
    detector = method_class(name)(*backbone, **(defaults | options))
    detector.set_geometry(Geometry((size, size)))
    return detector


def untrained_fusion(backbone: Backbone, size: int, **options: Any) -> FusionDetector:
    """Return a fusion of this backbone with a small flow and dictionary, without whitening.

    Args:
        backbone: of the detector.
        size: of the images.
        options: of the dictionary (num_atoms, nonzeros, error, features) and of the score (its weights, top, ...).
    """
    dim = sum(backbone.num_channels)
    dictionary = {"num_atoms": 12, "nonzeros": 3, "last": 0} | options
    score = {key: dictionary.pop(key) for key in composed().score if key in dictionary}
    parts = {
        "backbone": backbone,
        "whitening": make("whitening", channels=[dim], mode="none"),
        "head": make("head", dim=dim, hidden=4),
        "flow": make("flow", channels=[dim], blocks=2, hidden=16),
        "dictionary": make("dictionary", channels=[dim], **dictionary),
    }
    detector = make("score", **parts, **score).eval()
    detector.set_geometry(Geometry((size, size)))
    return detector


def untrained_detector(
    size: int = 64,
    paths: Sequence[Path] = (),
    images: torch.Tensor | None = None,
    backbone: tuple[str, Sequence[str]] = ("efficientnet_lite0", ("block2", "block4")),
    **options: Any,
) -> FusionDetector:
    """Return a detector of random weights, its scores about standardised; `paths` and `images` make its statistics.

    Args:
        size: of the images.
        paths: of photographs.
        images: of the same.
        backbone: name and layers.
        options: of `untrained_fusion`.
    """
    torch.manual_seed(0)
    network = tiny_backbone(*backbone).eval()
    probe = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    detector = untrained_fusion(network, size, **options)
    with torch.no_grad():
        detector.dictionary.set_atoms(F.normalize(torch.randn(detector.dictionary.atoms.shape), dim=1))
        measured = detector.measure(probe)
        detector.standardise(measured.parts)
        detector.map_floor.copy_(detector.fuse(measured.parts).median())
        prediction = detector(probe)
        detector.calibrate(prediction.scores, prediction.anomaly_maps.amax((1, 2)), 0.05, 0.2)
    detector.examples = probe if images is None else images
    statistics = (
        training_statistics([header(path) for path in paths], brightness(images)) if images is not None else None
    )
    detector.provenance = Provenance("a test", "test", "0" * 16, 0, 0.05, 0.2, {}, statistics)
    return detector.requires_grad_(False)


def scored_on_meta(detector: AnomalyDetector, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score on torch's meta device, where nothing is computed, but a tensor that was left on the CPU is refused."""
    monkeypatch.setattr("texture_ad.evaluation.localization._check_maps", lambda maps: None)  # which asks for values
    prediction = detector.to("meta")(images.to("meta"))
    assert prediction.scores.is_meta and (prediction.anomaly_maps is None or prediction.anomaly_maps.is_meta)


def few_photographs(root: Path) -> Path:
    """Return a folder with a few of the embedded photographs, so that a run takes seconds."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "tests.lock"):  # one process builds it, with all cores, and the others wait
        complete = ensure("carpet")
    for pattern, count in (("train/good", 14), ("test/good", 4), ("test/hole", 4), ("ground_truth/hole", 4)):
        source = complete / pattern
        if not source.is_dir():
            source = sorted(p for p in (complete / pattern.split("/")[0]).iterdir() if p.name != "good")[0]
        target = root / pattern
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[:count]:
            (target / path.name).write_bytes(path.read_bytes())
    return root


def arguments(data: Path, run_dir: Path | str, *more: str) -> list[str]:
    """Return the arguments of a run that takes seconds; `more` come last, so that they win."""
    return [
        "data=folder",
        f"data.root={data}",
        f"run_dir={run_dir}",
        "data.size=64",
        "data.eval_batch_size=4",
        "backbone=resnet18",
        "backbone.weights=none",
        "backbone.layers=[layer1]",
        "flow.blocks=2",
        "density.epoch_steps=3",
        "density.batch=64",
        "dictionary.num_atoms=16",
        "detection.epochs=2",
        "trainer.max_epochs=3",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
        *more,
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each a column's name to its value."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_scores(path: Path) -> dict[str, float]:
    """Return the score of each image in a scores.csv, by its path."""
    return {row["path"]: float(row["score"]) for row in read_rows(path)}


def repeatable(metrics: dict) -> dict:
    """Return the metrics that the same run gives to the last digit."""
    return {k: v for k, v in metrics.items() if not any(word in k for word in MEASURED)}


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment for a command, without what points at the user's own data and accounts."""
    own = {k: v for k, v in os.environ.items() if k not in ("MVTEC_AD_ROOT", "WANDB_API_KEY")}
    return own | {"OMP_NUM_THREADS": "1"} | more


def printed_random(seed: int | None = None) -> random.Random:
    """Return a generator for moments of kills; its seed is printed, so that a failure can be repeated.

    Args:
        seed: by default TEXTURE_AD_KILL_SEED, else another at every call.
    """
    if seed is None:
        seed = int(os.environ.get("TEXTURE_AD_KILL_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"kills by seed {seed}; TEXTURE_AD_KILL_SEED={seed} repeats them")
    return random.Random(seed)
