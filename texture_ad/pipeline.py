"""One experiment, from configuration to results: read this page first.

data -> fit -> calibration on held-out normals -> test -> files. The fusion is fitted in two stages, Representation and
Dictionary; `method=NAME` fits one of the systems that the paper compares with (baselines/) instead.
"""

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn

from texture_ad.baselines import peer_class
from texture_ad.baselines.peer import Peer
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.drift import brightness, training_statistics
from texture_ad.data.mvtec import duplicates
from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import region_mask
from texture_ad.evaluation.metrics import image_metrics, pixel_metrics
from texture_ad.evaluation.testing import Test
from texture_ad.files import csv_text, write_whole
from texture_ad.guards import Repeatable, StopDivergence, WholeCheckpoints, prepare_folder
from texture_ad.models.detector import Detector
from texture_ad.models.dictionary import Dictionary
from texture_ad.models.flow import Flow
from texture_ad.models.representation import Representation
from texture_ad.reporting import figures
from texture_ad.reporting.tables import metrics_table


def build(config: DictConfig, size: int) -> tuple[Representation, Dictionary]:
    """Both stages' modules for images of `size` pixels."""
    backbone = instantiate(config.backbone)
    with torch.no_grad():
        probe = backbone.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        dim = backbone.patch_features(probe).shape[1]
    flow = Flow(dim=dim, **config.flow)
    score = {k: config.dictionary[k] for k in ("top", "min_distance")}
    representation = Representation(backbone, flow, **config.cutpaste, **config.representation, **score)
    training = ("lambda1", "iterations", "batch", "threads", "epochs")
    options = dict(config.dictionary)
    fit = {k: options.pop(k) for k in training}
    return representation, Dictionary(Detector(backbone, flow, size=size, **options), **fit, seed=config.seed)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("texture_ad", "torch", "torchvision", "lightning", "spams-bin", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _trainer(config: DictConfig, folder: Path, loggers: list, callbacks: list, **options) -> L.Trainer:
    check_number("trainer.max_epochs", config.trainer.max_epochs, 1, whole=True)
    check_number("trainer.accumulate_grad_batches", config.trainer.accumulate_grad_batches, 1, whole=True)
    if config.trainer.gradient_clip_val is not None:
        check_number("trainer.gradient_clip_val", config.trainer.gradient_clip_val, 0)
    return instantiate(config.trainer, default_root_dir=str(folder), logger=loggers or False, log_every_n_steps=1,
                       enable_model_summary=False, plugins=[WholeCheckpoints()],
                       callbacks=[*callbacks, Repeatable(config.seed)], **options)  # fmt: skip


def _last(folder: Path) -> str | None:
    path = folder / "last.ckpt"
    return str(path) if path.is_file() else None


class _SaveEpochs(Checkpoint):
    """Every epoch's end, which ModelCheckpoint leaves out where no optimizer has stepped or nothing improved.

    A Checkpoint, because those come after the module's own end of the epoch.
    """

    def __init__(self, folder: Path):
        self.path = folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def train_representation(config: DictConfig, module: Representation, data: TextureDataModule, folder: Path,
                         loggers: list) -> dict[str, float]:  # fmt: skip
    """Stage 1; leaves the module with the weights that scored best on synthetic defects."""
    best = ModelCheckpoint(folder, "best", monitor="val/auroc", mode="max", enable_version_counter=False)
    trainer = _trainer(config, folder, loggers, [best, _SaveEpochs(folder), StopDivergence()])
    trainer.fit(module, datamodule=data, ckpt_path=_last(folder), weights_only=True)
    # Not best.best_model_path: the folder may have been moved since.
    if (folder / "best.ckpt").is_file():
        module.load_state_dict(WholeCheckpoints().load_checkpoint(str(folder / "best.ckpt"))["state_dict"])
    return {} if best.best_model_score is None else {"val_auroc_stage1": float(best.best_model_score)}


def train_dictionary(config: DictConfig, module: Dictionary, data: TextureDataModule, folder: Path,
                     loggers: list) -> L.Trainer:  # fmt: skip
    """Stage 2, then the standardisation of both scores on held-out normal images."""
    trainer = _trainer(config, folder, loggers, [_SaveEpochs(folder)], max_epochs=1 + module.epochs,
                       gradient_clip_val=None, accumulate_grad_batches=1, limit_val_batches=0)  # fmt: skip
    trainer.fit(module, train_dataloaders=data.normal_dataloader(), ckpt_path=_last(folder), weights_only=True)
    module.to(trainer.strategy.root_device)
    module.standardise(data.held_out_dataloader())
    return trainer


def fit_fusion(config: DictConfig, data: TextureDataModule, folder: Path,
               loggers: list) -> tuple[Detector, L.Trainer, dict]:  # fmt: skip
    """The main detector: stage 1, then stage 2."""
    representation, dictionary = build(config, data.size)
    start = time.perf_counter()
    print("stage 1  representation: CutPaste and the flow", flush=True)
    metrics = train_representation(config, representation, data, folder / "stage1", loggers)
    metrics["stage1_seconds"] = time.perf_counter() - start
    print("stage 2  detection: the dictionary", flush=True)
    trainer = train_dictionary(config, dictionary, data, folder / "stage2", loggers)
    return dictionary.detector, trainer, metrics


def build_peer(config: DictConfig) -> Peer:
    """The peer that `config.method` names."""
    options = OmegaConf.to_container(config.method, resolve=True)
    kind = peer_class(options.pop("name"))
    backbone = [instantiate(config.backbone)] if kind.uses_backbone else []
    return kind(*backbone, size=config.data.size, **options).eval()


def fit_peer(config: DictConfig, data: TextureDataModule, folder: Path,
             loggers: list) -> tuple[Peer, L.Trainer, dict]:  # fmt: skip
    """A peer: what gradients train, by Lightning, then what passes over the images fit."""
    peer = build_peer(config)
    trained = isinstance(peer, L.LightningModule)
    trainer = _trainer(config, folder, loggers, [_SaveEpochs(folder)] if trained else [],
                       max_epochs=peer.settings.get("epochs"), gradient_clip_val=None, accumulate_grad_batches=1,
                       limit_val_batches=0, enable_checkpointing=trained)  # fmt: skip
    print(f"fit      {peer.name}", flush=True)
    if trained:
        trainer.fit(peer, datamodule=data, ckpt_path=_last(folder), weights_only=True)
    peer.to(trainer.strategy.root_device).eval()
    peer.fit(data.normal_dataloader())
    return peer, trainer, {}


def fit(config: DictConfig, data: TextureDataModule, folder: Path,
        loggers: list) -> tuple[nn.Module, L.Trainer, dict]:  # fmt: skip
    """The detector by the method that `config.method` names, the trainer to test it, and the fit's own metrics."""
    if config.method.name == "fusion":
        return fit_fusion(config, data, folder, loggers)
    return fit_peer(config, data, folder / "stage1", loggers)


def calibrate(detector: nn.Module, loader, quantile: float) -> None:
    """Sets the threshold: a quantile of the scores of held-out normal images.

    Raises:
        UserError: scores that are not finite.
    """
    scores = torch.cat([detector(b["image"].to(detector.threshold.device)).scores for b in loader])
    if not scores.isfinite().all():
        raise UserError(
            "the scores of held-out normal images are not finite: training diverged; lower the learning rate"
        )
    detector.threshold.copy_(scores.quantile(quantile))


def synthetic_auroc(detector: nn.Module, data: TextureDataModule) -> float:
    """Image AUROC of the finished detector on held-out normals against synthetic defects."""
    scores, labels = [], []
    for batch in data.val_dataloader():
        scores.append(detector(batch["image"].to(detector.threshold.device)).scores.cpu())
        labels.append(batch["label"])
    return image_metrics(torch.cat(scores).numpy(), torch.cat(labels).numpy(), float(detector.threshold))["image_auroc"]


def write_results(predictions: dict, grid: tuple[int, int] | None, threshold: float, data: TextureDataModule,
                  folder: Path, metrics: dict, pictures: bool) -> dict:  # fmt: skip
    """Metrics, scores and pictures of the test images into the run folder."""
    merged = predictions
    scores, labels, maps = merged["score"], merged["label"], merged["map"]
    metrics |= image_metrics(scores, labels, threshold)
    if maps is not None and data.has_masks:
        metrics |= pixel_metrics(maps, merged["mask"])
    rows = [("path", "kind", "label", "score", "threshold", "anomalous", "source")]
    for i, score, label in zip(merged["index"], scores, labels, strict=True):
        sample = data.test_samples[i]
        name = sample.path.relative_to(data.folder)
        rows.append(
            (name, sample.kind, label, f"{score:.8g}", f"{threshold:.8g}", int(score > threshold), data.source_name)
        )
    write_whole(folder / "scores.csv", csv_text(rows))
    if pictures and maps is not None:
        low, high = float(maps.min()), float(max(maps.max(), threshold))
        for row, (sample, image) in enumerate(data.test_images()):
            region = region_mask(merged["locations"][row], grid, (data.size, data.size))
            mask = merged["mask"][row] if sample.mask else None
            target = folder / "overlays" / sample.kind / f"{sample.path.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            figures.localization_panel(image.permute(1, 2, 0).numpy(), maps[row], region, mask, float(scores[row]),
                                       threshold, int(labels[row]), target, low, high, data.source_name)  # fmt: skip
    if pictures:
        for name, draw in (("scores", figures.score_line_graph), ("histogram", figures.score_histogram)):
            draw(scores, labels, threshold, folder / f"{name}.png", data.source_name)
        if 0 < labels.sum() < len(labels):
            figures.roc_pr(scores, labels, threshold, folder / "roc_pr.png", data.source_name)
    _write(folder / "metrics.json", json.dumps(metrics, indent=2, default=float) + "\n")
    return metrics


def run(config: DictConfig) -> dict:
    """Runs one experiment and fills its run folder; returns what metrics.json holds.

    Raises:
        UserError: input that can't be worked with.
    """
    folder = Path(config.run_dir)
    check_number("seed", config.seed, 0, 2**32 - 1, whole=True)
    check_number("quantile", config.quantile, 0, 1, above=True)
    prepare_folder(folder, config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: TextureDataModule = instantiate(config.data)
    data.setup()
    print(f"data     {data.source_name}: {len(data.train_samples)} training, {len(data.val_samples)} held-out normal, "
          f"{len(data.test_samples)} test images, {data.size} px\nrun      {folder}", flush=True)  # fmt: skip
    copies = duplicates(data.layout)
    for train, test in copies[:5]:
        print(f"warning: {test} is a copy of the training image {train}", flush=True)
    if copies:
        print(f"warning: {len(copies)} test images are copies of training images, all listed in duplicates.csv; the "
              "metrics are too good", flush=True)  # fmt: skip
        write_whole(folder / "duplicates.csv", csv_text([("train", "test"), *copies]))
    _write(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    loggers = [instantiate(options) for options in (config.logger or {}).values()]
    for logger in loggers:
        logger.log_hyperparams({**OmegaConf.to_container(config, resolve=True), "data_source": data.source_name})
    metrics = {"method": config.method.name, "data_source": data.source_name, "category": data.category,
               "data_fingerprint": data.fingerprint, "seed": config.seed}  # fmt: skip
    start = time.perf_counter()
    detector, trainer, fitted = fit(config, data, folder, loggers)
    calibrate(detector, data.held_out_dataloader(), config.quantile)
    metrics |= fitted | {"fit_seconds": time.perf_counter() - start, "synthetic_auroc": synthetic_auroc(detector, data)}
    metrics["threshold_origin"] = f"{config.quantile:g} quantile of held-out normal images"
    metrics["versions"] = _versions()
    detector.meta = {k: metrics[k] for k in ("data_source", "category", "data_fingerprint", "seed", "versions")}
    levels = torch.cat([brightness(b["image"]) for b in data.normal_dataloader()])
    detector.meta["training_images"] = training_statistics([s.path for s in data.train_samples], levels)
    detector.meta["quantile"] = float(config.quantile)
    detector.save(folder / "detector.pt")
    if data.test_samples:
        start = time.perf_counter()
        test = Test(detector)
        trainer.test(test, data.test_dataloader(), verbose=False)
        metrics["test_seconds_per_image"] = (time.perf_counter() - start) / len(data.test_samples)
        metrics = write_results(test.predictions(), detector.grid(), float(detector.threshold), data, folder, metrics,
                                config.pictures)  # fmt: skip
        print(
            metrics_table({k: v for k, v in metrics.items() if k not in ("data_source", "category")}, data.source_name)
        )
    else:
        _write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        print(f"{data.folder} has no test images: no metrics")
    for logger in loggers:
        logger.log_metrics({f"test/{k}": v for k, v in metrics.items() if isinstance(v, float)})
        logger.finalize("success")
    print(f"detector {folder / 'detector.pt'}")
    print(f"next     python -m texture_ad.predict detector={folder / 'detector.pt'} input=FILE_OR_FOLDER")
    return metrics
