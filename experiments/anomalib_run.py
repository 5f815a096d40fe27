"""Make one run of anomalib's PaDiM or PatchCore, on the images and with the backbone of a run of ours.

    python -m experiments.anomalib_run run_dir=FOLDER data=folder data.root=FOLDER method=patchcore

Takes the overrides of `texture_ad.run`. anomalib's model is fitted by its own Engine on the same training images
(calibration images are left out, as in ours), scaled by us, with the same network, weights, layers and settings of the
method. Score and anomaly map are anomalib's own; the metrics are ours. Writes metrics.json, and the model to model.pt.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Normalize

from experiments.runs import script
from texture_ad.cli.compose import compose
from texture_ad.cli.experiment import hushed_libraries
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.geometry import Shape
from texture_ad.deploy.runtimes import open_openvino
from texture_ad.environment import not_installed, versions
from texture_ad.errors import UserError
from texture_ad.evaluation.metrics import image_metrics, metrics_at_masks
from texture_ad.files import write_text
from texture_ad.models.backbone import Backbone
from texture_ad.models.networks import Chain, Pointwise
from texture_ad.pipeline import Run, prepare_data
from texture_ad.training.resources import peak_memory, reset_peak_memory

NEIGHBORHOOD = 3  # that anomalib's PatchCore averages over, fixed in its code


def check_installed() -> None:
    """Check that anomalib is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("anomalib") is None:
        raise UserError(not_installed("anomalib", "compare"))


class ImageBatches:
    """Give the batches of a loader of ours as anomalib's.

    Args:
        loader: of dicts with "image", uint8 (B, 3, H, W).
    """

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        from anomalib.data import ImageBatch

        for batch in self.loader:
            labels = torch.zeros(len(batch["image"]), dtype=torch.bool)
            yield ImageBatch(image=in_unit_range(batch["image"]), gt_label=labels)


def in_unit_range(images: Tensor) -> Tensor:
    """Return images uint8 (B, 3, H, W) as anomalib's models take them, float in 0..1."""
    return images.float() / 255


def use_plain_convolutions(network: nn.Module) -> None:
    """Make every Pointwise convolution torch's own again, in place: anomalib traces the network, and a choice can't be.

    Its users have torch's own too.
    """
    for module in network.modules():
        if isinstance(module, Pointwise):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def make_model(config: DictConfig, backbone: Backbone, size: Shape) -> L.LightningModule:
    """Return anomalib's untrained model of the configured method.

    Args:
        config: of a run of ours.
        backbone: whose network, weights and deepest layers the model gets.
        size: (H, W) of the images.

    Raises:
        UserError: a setting that anomalib's model does not have.
    """
    from anomalib.models import Padim, Patchcore
    from anomalib.pre_processing import PreProcessor

    network = backbone.network
    options = config.method
    if options.name not in ("padim", "patchcore"):
        raise UserError(f"method={options.name}: expected padim or patchcore")
    if not isinstance(network, Chain):
        raise UserError(f"backbone={config.backbone.name}: anomalib can't trace it; choose one of this package's own")
    use_plain_convolutions(network)
    if min(size) < backbone.min_size:
        raise UserError(f"data.size={config.data.size}: give at least backbone.min_size={backbone.min_size}")
    common = {
        "backbone": network,
        "layers": [f"stages.{tap}" for tap in network.taps[-options.last :]],
        "pre_processor": PreProcessor(Normalize(network.mean, network.std)),
        "post_processor": False,  # it would cut scores off at 0 and 1
        "evaluator": False,
        "visualizer": False,
    }
    if options.name == "padim":
        channels = sum(backbone.num_channels[-options.last :])
        return Padim(n_features=min(options.channels, channels), **common)
    if options.neighborhood != NEIGHBORHOOD:
        raise UserError(f"method.neighborhood={options.neighborhood}: anomalib has {NEIGHBORHOOD} alone")
    return Patchcore(coreset_sampling_ratio=options.coreset, num_neighbors=options.neighbors, **common)


def fit(model: L.LightningModule, data: TextureDataModule, folder: Path) -> None:
    """Fit a model by anomalib's Engine on the training images."""
    from anomalib.engine import Engine

    engine = Engine(
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model, train_dataloaders=ImageBatches(data.normal_dataloader()))
    model.eval()


@torch.inference_mode()
def score(model: nn.Module, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (B,) and anomaly maps (B, H, W) of images, uint8 (B, 3, H, W)."""
    found = model(in_unit_range(images))
    return found.pred_score.flatten().numpy(), found.anomaly_map[:, 0].numpy()


def exported(model: L.LightningModule, size: Shape, folder: Path) -> Callable[[Tensor], Any]:
    """Return a model that anomalib exports to OpenVINO as a function of images, uint8 (B, 3, H, W), one at a time.

    Args:
        model: fitted.
        size: (H, W) of the images.
        folder: of its run, where the file is kept.
    """
    path = folder / "weights/openvino/model.xml"
    if not path.exists():
        # A batch of any size, its default, became one of two images in the graph of anomalib 2.7.0.
        model.to_openvino(folder, input_size=tuple(size), onnx_kwargs={"dynamic_axes": {}})  # type: ignore[operator]
    run = open_openvino(path, ("pred_score", "anomaly_map"), torch.get_num_threads(), 1)
    return lambda images: [run(image) for image in in_unit_range(images).split(1)]


def evaluate(model: nn.Module, data: TextureDataModule) -> dict[str, Any]:
    """Score the test images, and return the metrics of a run that don't depend on a threshold."""
    start = time.perf_counter()
    found = [
        (*score(model, batch["image"]), batch["label"].numpy(), batch["index"].numpy())
        for batch in data.test_dataloader()
    ]
    metrics: dict[str, Any] = {
        "test_seconds_per_image": (time.perf_counter() - start) / len(data.test_samples)
    } | peak_memory()
    scores, maps, labels, indices = map(np.concatenate, zip(*found, strict=True))
    of_images = image_metrics(scores, labels, threshold=0)
    metrics |= {key: of_images[key] for key in ("image_auroc", "image_ap")}
    if data.has_masks:
        metrics |= metrics_at_masks(maps, data.true_masks(indices))
    return metrics


def main() -> None:
    """Fit and evaluate anomalib's model, and write what was measured."""
    check_installed()
    config = compose(sys.argv[1:])
    folder = Path(config.run_dir)
    with hushed_libraries():
        # Its own start is no part of the fit's time.
        import anomalib.data
        import anomalib.engine
        import anomalib.models

        reset_peak_memory()
        L.seed_everything(config.seed, workers=True, verbose=False)
        run = Run(config, folder)
        prepare_data(run)
        if run.data.geometry.tiled or run.data.interest is not None:
            raise UserError("data.tile, data.roi: anomalib's models are given whole images; leave both null")
        start = time.perf_counter()
        model = make_model(config, run.make("backbone"), run.data.geometry.size)
        fit(model, run.data, folder)
        metrics = run.metrics | {"fit_seconds": time.perf_counter() - start}
        metrics |= evaluate(model, run.data)
    torch.save(model, folder / "model.pt")
    metrics |= {
        "method": f"anomalib's {config.method.name}",
        "threads": torch.get_num_threads(),
        "versions": versions() | {"anomalib": anomalib.__version__},
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    script(main)
