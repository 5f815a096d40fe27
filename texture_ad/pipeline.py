"""One experiment, from configuration to results: read this page first.

data -> fit -> calibration -> test -> files. The fusion is fitted in two stages, Representation and
Dictionary; `method=NAME` fits one of the systems that the paper compares with (baselines/) instead.
"""

import json
import time
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.drift import brightness, training_statistics
from texture_ad.data.layouts import duplicates
from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.files import csv_text, write_atomic, write_text
from texture_ad.methods.base import Baseline
from texture_ad.methods.evaluation import Test
from texture_ad.methods.fusion.detection import Dictionary
from texture_ad.methods.fusion.detector import Detector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.methods.fusion.representation import Representation
from texture_ad.methods.registry import baseline_class
from texture_ad.models.flow import Flow
from texture_ad.models.whitening import Whitening
from texture_ad.reporting.features import write_feature_figures
from texture_ad.reporting.loggers import log_results, open_loggers
from texture_ad.reporting.results import versions, write_results
from texture_ad.reporting.tables import metrics_table
from texture_ad.training.cache import Cache, share_features, stage1_address
from texture_ad.training.callbacks import AtomicCheckpoints, LoaderTime, Repeatable, StopDivergence, prepare_folder
from texture_ad.training.distributed import check_processes, gather, is_rank_zero
from texture_ad.training.progress import StageProgress
from texture_ad.training.resources import peak_memory, reset_peak_memory

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # of stage 1; what comes after it, and its scores, have all digits
FIT = ("lambda1", "iterations", "batch", "threads", "epochs")  # what the dictionary's fit takes, its detector doesn't


def build(config: DictConfig, size: int) -> tuple[Representation, Dictionary]:
    """Both stages' modules for images of `size` pixels."""
    backbone = instantiate(config.backbone)
    with torch.no_grad():
        dim = backbone.eval().extract(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
    whitening = Whitening(dim, **config.whitening)
    flow = Flow(dim=whitening.length, **config.flow)
    options = dict(config.dictionary)
    memory_mb = options.pop("memory_mb")
    fit = {k: options.pop(k) for k in FIT}
    detector = Detector(backbone, whitening, flow, size=size, **options)
    features = TrainingFeatures(detector, memory_mb)
    score = {k: options[k] for k in ("top", "min_distance")}
    representation = Representation(
        backbone, whitening, flow, features, **config.cutpaste, **config.representation, **score
    )
    return representation, Dictionary(detector, features, **fit, seed=config.seed)


def _trainer(config: DictConfig, folder: Path, loggers: list, callbacks: list, **options) -> L.Trainer:
    check_number("trainer.max_epochs", config.trainer.max_epochs, 1, whole=True)
    check_number("trainer.accumulate_grad_batches", config.trainer.accumulate_grad_batches, 1, whole=True)
    if config.trainer.gradient_clip_val is not None:
        check_number("trainer.gradient_clip_val", config.trainer.gradient_clip_val, 0)
    if config.trainer.precision not in PRECISIONS:
        raise UserError(f"trainer.precision={config.trainer.precision}: expected one of {', '.join(PRECISIONS)}")
    if config.trainer.enable_progress_bar:
        callbacks = [*callbacks, StageProgress(folder.name.replace("stage", "stage "))]
    trainer = instantiate(
        config.trainer,
        default_root_dir=str(folder),
        logger=loggers or False,
        log_every_n_steps=1,
        enable_model_summary=False,
        plugins=[AtomicCheckpoints()],
        use_distributed_sampler=False,
        callbacks=[*callbacks, Repeatable(config.seed)],
        **options,
    )
    check_processes(trainer, config.trainer.strategy)
    return trainer


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


def train_representation(
    config: DictConfig,
    module: Representation,
    data: TextureDataModule,
    folder: Path,
    loggers: list,
    cache: Cache | None = None,
) -> dict[str, float]:
    """Stage 1; leaves the module with the weights that scored best on synthetic defects, trained or from the cache."""
    best = ModelCheckpoint(folder, "best", monitor="val/auroc", mode="max", enable_version_counter=False)
    waiting = LoaderTime()
    trainer = _trainer(config, folder, loggers, [best, _SaveEpochs(folder), StopDivergence()], profiler=waiting)

    def train() -> dict:
        start = time.perf_counter()
        trainer.fit(module, datamodule=data, ckpt_path=_last(folder), weights_only=True)
        measured = {"stage1_loader_share": waiting.seconds / (time.perf_counter() - start)}
        # Not best.best_model_path: the folder may have been moved since.
        if (folder / "best.ckpt").is_file():
            module.load_state_dict(AtomicCheckpoints().load_checkpoint(str(folder / "best.ckpt"))["state_dict"])
        if best.best_model_score is not None:
            measured["val_auroc_stage1"] = float(best.best_model_score)
        return {"state": module.state_dict(), "metrics": measured | peak_memory()}

    if cache is None or trainer.world_size > 1:  # of several processes each would have to find the same
        return train()["metrics"]
    address = stage1_address(config, module.state_dict(), data.fingerprint)
    found = cache.get_or_create(f"stage1-{address}", train)
    module.load_state_dict(found["state"])
    return found["metrics"]


def train_dictionary(
    config: DictConfig, module: Dictionary, data: TextureDataModule, folder: Path, loggers: list
) -> L.Trainer:
    """Stage 2, then the standardisation of both scores on calibration images."""
    trainer = _trainer(
        config,
        folder,
        loggers,
        [_SaveEpochs(folder)],
        max_epochs=module.epochs,
        gradient_clip_val=None,
        accumulate_grad_batches=1,
        limit_val_batches=0,
        precision="32-true",
    )
    trainer.fit(module, train_dataloaders=data.normal_dataloader(), ckpt_path=_last(folder), weights_only=True)
    module.to(trainer.strategy.root_device)
    module.features.clear()
    module.standardise(data.calibration_dataloader())
    return trainer


def fit_fusion(
    config: DictConfig, data: TextureDataModule, folder: Path, loggers: list, cache: Cache | None = None
) -> tuple[Detector, L.Trainer, dict]:
    """The main detector: stage 1, then stage 2."""
    representation, dictionary = build(config, data.size)
    clock = cache.clock if cache else time.perf_counter
    start = clock()
    print("stage 1  representation: CutPaste and the flow", flush=True)
    metrics = train_representation(config, representation, data, folder / "stage1", loggers, cache)
    metrics["stage1_seconds"] = clock() - start
    if cache:
        share_features(dictionary.detector, config.backbone, cache)
    print("stage 2  detection: the dictionary", flush=True)
    trainer = train_dictionary(config, dictionary, data, folder / "stage2", loggers)
    return dictionary.detector, trainer, metrics


def build_baseline(config: DictConfig) -> Baseline:
    """The baseline that `config.method` names."""
    options = OmegaConf.to_container(config.method, resolve=True)
    kind = baseline_class(options.pop("name"))
    backbone = [instantiate(config.backbone)] if kind.uses_backbone else []
    return kind(*backbone, size=config.data.size, **options).eval()


def fit_baseline(
    config: DictConfig, data: TextureDataModule, folder: Path, loggers: list
) -> tuple[Baseline, L.Trainer, dict]:
    """A baseline: what gradients train, by Lightning, then what passes over the images fit."""
    if config.trainer.precision != "32-true":
        raise UserError(
            f"trainer.precision={config.trainer.precision}: expected 32-true with method={config.method.name}"
        )
    baseline = build_baseline(config)
    trained = isinstance(baseline, L.LightningModule)
    trainer = _trainer(
        config,
        folder,
        loggers,
        [_SaveEpochs(folder)] if trained else [],
        max_epochs=baseline.settings.get("epochs"),
        gradient_clip_val=None,
        accumulate_grad_batches=1,
        limit_val_batches=0,
        enable_checkpointing=trained,
    )
    if trainer.world_size > 1:
        raise UserError(f"method={baseline.name}: fitted by one process alone; use trainer.devices=1")
    print(f"fit      {baseline.name}", flush=True)
    if trained:
        trainer.fit(baseline, datamodule=data, ckpt_path=_last(folder), weights_only=True)
    baseline.to(trainer.strategy.root_device).eval()
    baseline.fit(data.normal_dataloader())
    return baseline, trainer, {}


def fit(
    config: DictConfig, data: TextureDataModule, folder: Path, loggers: list, cache: Cache | None = None
) -> tuple[nn.Module, L.Trainer, dict]:
    """The detector by the method that `config.method` names, the trainer to test it, and the fit's own metrics."""
    if config.method.name == "fusion":
        return fit_fusion(config, data, folder, loggers, cache)
    return fit_baseline(config, data, folder / "stage1", loggers)


def calibrate(detector: nn.Module, loader, quantile: float) -> None:
    """Sets the threshold: a quantile of the scores of calibration images.

    Raises:
        UserError: scores that are not finite.
    """
    scores = gather(torch.cat([detector(b["image"].to(detector.threshold.device)).scores for b in loader]))
    if not scores.isfinite().all():
        raise UserError("the scores of calibration images are not finite: training diverged; lower the learning rate")
    detector.threshold.copy_(scores.quantile(quantile))


def synthetic_auroc(detector: nn.Module, data: TextureDataModule) -> float:
    """Image AUROC of the finished detector on calibration images against synthetic defects."""
    scores = []
    labels = []
    for batch in data.val_dataloader():
        scores.append(gather(detector(batch["image"].to(detector.threshold.device)).scores).cpu())
        labels.append(gather(batch["label"].to(detector.threshold.device)).cpu())
    return image_metrics(torch.cat(scores).numpy(), torch.cat(labels).numpy(), float(detector.threshold))["image_auroc"]


def run(config: DictConfig, cache: Cache | None = None) -> dict:
    """Runs one experiment and fills its run folder; returns what metrics.json holds.

    Times and peaks of memory are those of a run that shares nothing, also where it finds stage 1 in the cache.

    Raises:
        UserError: input that can't be worked with.
    """
    reset_peak_memory()
    folder = Path(config.run_dir)
    check_number("seed", config.seed, 0, 2**32 - 1, whole=True)
    check_number("quantile", config.quantile, 0, 1, above=True)
    if is_rank_zero():
        prepare_folder(folder, config)
    with open_loggers(config.logger) as loggers:
        return experiment(config, folder, loggers, cache)


def experiment(config: DictConfig, folder: Path, loggers: list, cache: Cache | None = None) -> dict:
    """`run` in a folder that is ready, with loggers that are open."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: TextureDataModule = instantiate(config.data)
    data.setup()
    print(
        f"data     {data.source_name}: {len(data.train_samples)} training, {len(data.calibration_samples)} calibration, "
        f"{len(data.test_samples)} test images, {data.size} px\nrun      {folder}",
        flush=True,
    )
    copies = duplicates(data.layout)
    for train, test in copies[:5]:
        print(f"warning: {test} is a copy of the training image {train}", flush=True)
    if copies and is_rank_zero():
        print(
            f"warning: {len(copies)} test images are copies of training images, all listed in duplicates.csv; the "
            "metrics are too good",
            flush=True,
        )
        write_atomic(folder / "duplicates.csv", csv_text([("train", "test"), *copies]))
    if is_rank_zero():
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    for logger in loggers:
        logger.log_hyperparams({**OmegaConf.to_container(config, resolve=True), "data_source": data.source_name})
    metrics = {
        "method": config.method.name,
        "data_source": data.source_name,
        "category": data.category,
        "data_fingerprint": data.fingerprint,
        "seed": config.seed,
    }
    clock = cache.clock if cache else time.perf_counter
    start = clock()
    detector, trainer, fitted = fit(config, data, folder, loggers, cache)
    calibrate(detector, data.calibration_dataloader(), config.quantile)
    metrics |= fitted | {"fit_seconds": clock() - start, "synthetic_auroc": synthetic_auroc(detector, data)}
    metrics["threshold_origin"] = f"{config.quantile:g} quantile of calibration images"
    metrics["versions"] = versions()
    metrics["threads"] = torch.get_num_threads()
    detector.meta = {k: metrics[k] for k in ("data_source", "category", "data_fingerprint", "seed", "versions")}
    levels = torch.cat(
        [gather(brightness(b["image"].to(detector.threshold.device))) for b in data.normal_dataloader()]
    ).cpu()
    detector.meta["training_images"] = training_statistics([s.path for s in data.train_samples], levels).to_dict()
    detector.meta["quantile"] = float(config.quantile)
    if is_rank_zero():
        detector.save(folder / "detector.pt")
    if data.test_samples:
        start = clock()
        test = Test(detector)
        trainer.test(test, data.test_dataloader(), verbose=False)
        metrics["test_seconds_per_image"] = (clock() - start) / len(data.test_samples)
        if not is_rank_zero():
            return metrics
        metrics |= {key: max(value, metrics.get(key, 0)) for key, value in peak_memory().items()}
        if config.pictures and config.method.name == "fusion":
            write_feature_figures(config, detector, data, folder)
        metrics = write_results(
            test.predictions(), detector.grid(), float(detector.threshold), data, folder, metrics, config.pictures
        )
        print(
            metrics_table({k: v for k, v in metrics.items() if k not in ("data_source", "category")}, data.source_name)
        )
    elif is_rank_zero():
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        print(f"{data.folder} has no test images: no metrics")
    log_results(loggers, folder, metrics)
    if data.test_samples:
        print(f"report   {folder / 'report.html'}")
    print(f"detector {folder / 'detector.pt'}")
    print(f"next     python -m texture_ad.predict detector={folder / 'detector.pt'} input=FILE_OR_FOLDER")
    return metrics
