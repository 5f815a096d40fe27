"""What several tests share: an untrained detector, the command lines called in this process."""

import importlib
import sys

import torch
import torch.nn.functional as F

from texture_ad.data.drift import brightness, training_statistics
from texture_ad.models.backbone import Backbone
from texture_ad.models.detector import Detector
from texture_ad.models.flow import Flow


def untrained_detector(size: int = 64, paths=None, images=None, **options) -> Detector:
    """A detector of random weights, its scores about standardised; `paths` and `images` make its statistics."""
    torch.manual_seed(0)
    backbone = Backbone("efficientnet_lite0", ["block2", "block4"], "none").eval()
    probe = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        dim = backbone.patch_features(backbone(probe)).shape[1]
    detector = Detector(backbone, Flow(dim, 2, 16), **{"atoms": 12, "nonzeros": 3, "size": size, **options}).eval()
    with torch.no_grad():
        detector.set_atoms(F.normalize(torch.randn(12, dim), dim=1))
        scores = torch.stack(detector.patch_scores(detector.patch_features(probe)[0]))
        detector.patch_statistics.copy_(torch.stack((scores.mean(1), scores.std(1)), 1))
        detector.threshold.copy_(detector(probe).scores.max())
    detector.meta = {"data_source": "a test", "quantile": 0.95}
    if paths:
        detector.meta["training_images"] = training_statistics(paths, brightness(images))
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
