"""What several tests share: an untrained detector, the command lines called in this process."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from texture_ad.cli.entry import CONF
from texture_ad.data.drift import brightness, training_statistics
from texture_ad.data.embedded import ensure
from texture_ad.methods.fusion.detector import Detector
from texture_ad.models.backbone import Backbone
from texture_ad.models.flow import Flow
from texture_ad.models.whitening import Whitening


def make(group: str, overrides: Sequence[str] = (), **arguments: object) -> Any:
    """Make the object that a group of conf/ describes, with its defaults.

    Args:
        group: such as "data".
        overrides: of the configuration, as on a command line.
        arguments: that replace those of the group.
    """
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", list(overrides))
    return instantiate(config[group], **arguments)


def untrained_detector(size: int = 64, paths=None, images=None, **options) -> Detector:
    """A detector of random weights, its scores about standardised; `paths` and `images` make its statistics."""
    torch.manual_seed(0)
    backbone = Backbone("efficientnet_lite0", ["block2", "block4"], "none").eval()
    probe = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        dim = backbone.patch_features(backbone(probe)).shape[1]
    options = {"atoms": 12, "nonzeros": 3, "size": size, **options}
    detector = Detector(backbone, Whitening(dim, "none"), Flow(dim, 2, 16), **options).eval()
    with torch.no_grad():
        detector.set_atoms(F.normalize(torch.randn(detector.atoms.shape), dim=1))
        scores = torch.stack(detector.patch_scores(detector.patch_features(probe)[0]))
        detector.patch_statistics.copy_(torch.stack((scores.mean(1), scores.std(1)), 1))
        detector.threshold.copy_(detector(probe).scores.max())
    detector.meta = {"data_source": "a test", "quantile": 0.95}
    if paths:
        detector.meta["training_images"] = training_statistics(paths, brightness(images)).to_dict()
    return detector.requires_grad_(False)


def command(monkeypatch, capsys, module: str, *args: str) -> tuple[int, str, str]:
    """`python -m texture_ad.<module> args` without a new process: exit code, stdout, stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it; here it is taken back
    monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
    monkeypatch.setattr(sys, "argv", [f"texture_ad.{module}", *args])
    capsys.readouterr()
    try:
        importlib.import_module(f"texture_ad.{module}").main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def few_photographs(root: Path) -> Path:
    """A few of the embedded photographs, so that a run takes seconds."""
    whole = ensure("carpet")
    for pattern, count in (("train/good", 14), ("test/good", 4), ("test/hole", 4), ("ground_truth/hole", 4)):
        source = whole / pattern
        if not source.is_dir():
            source = sorted(p for p in (whole / pattern.split("/")[0]).iterdir() if p.name != "good")[0]
        target = root / pattern
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[:count]:
            (target / path.name).write_bytes(path.read_bytes())
    return root


def arguments(data, run_dir, *more):
    """A command line of texture_ad.run that takes seconds."""
    return [
        sys.executable,
        "-m",
        "texture_ad.run",
        "data=folder",
        f"data.root={data}",
        f"run_dir={run_dir}",
        "data.size=64",
        "backbone=resnet18",
        "backbone.weights=none",
        "backbone.layers=[layer1,layer2]",
        "data.batch_size=4",
        "data.eval_batch_size=4",
        "trainer.max_epochs=3",
        "flow.blocks=2",
        "dictionary.atoms=16",
        "dictionary.epochs=2",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
        *more,
    ]


MEASURED = ("seconds", "memory", "loader_share")  # in the names of metrics that differ from run to run


def repeatable(metrics: dict) -> dict:
    """The metrics that the same run gives to the last digit."""
    return {k: v for k, v in metrics.items() if not any(word in k for word in MEASURED)}


def environment(**more):
    return {k: v for k, v in os.environ.items() if k != "MVTEC_AD_ROOT"} | {"OMP_NUM_THREADS": "1"} | more
