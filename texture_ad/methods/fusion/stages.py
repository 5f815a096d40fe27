"""The two stages of our method's fit: the representation, then the dictionary."""

import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from texture_ad.errors import ParameterError
from texture_ad.methods.base import Fitting
from texture_ad.methods.fusion.density import Density
from texture_ad.methods.fusion.detection import Detection
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.methods.fusion.representation import Representation
from texture_ad.training.cache import FeatureCache
from texture_ad.training.callbacks import LoaderTime, SameBackbone, StopDivergence
from texture_ad.training.checkpoints import AtomicCheckpoints, SaveEpochs, last_checkpoint
from texture_ad.training.resources import peak_memory


class StopEarly(EarlyStopping):
    """Stop training early; a resumed run stays stopped where the run before it had stopped."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the patience was used up before the checkpoint."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class StopAfter(L.Callback):
    """Stop training after some epochs, however many the schedule is made for; a resumed run too.

    Args:
        epochs: at least 1.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the checkpoint is of the last epoch."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch >= self.epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after the last epoch."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs


def make_stages(
    detector: FusionDetector, fitting: Fitting
) -> tuple[TrainingFeatures, Density | Representation, Detection | None]:
    """Return what a fit trains, all of it before any trains, so that no refusal costs training.

    Returns:
        The training images' features, stage 1, and stage 2: None where the dictionary has no weight.

    Raises:
        ParameterError: a setting out of its range, or one that does not go with a backbone that learns.
    """
    features = fitting.make("features", detector=detector)
    pretext = fitting.make("cutpaste", dim=len(detector.whitening.mean))
    second = fitting.make("detection", detector=detector, features=features) if detector.weight("dictionary") else None
    if pretext.task == "none":
        return features, fitting.make("density", detector=detector, features=features), second
    if detector.weight("head"):
        problem = "expected 0 where the backbone learns CutPaste itself"
        raise ParameterError("head_weight", detector.weight("head"), problem)
    if detector.flow.dim != detector.whitening.length:
        problem = "expected 0 where the backbone learns: the likelihood of all its layers chooses its weights"
        raise ParameterError("flow.first", detector.flow.first, problem)
    return features, fitting.make("representation", detector=detector, pretext=pretext, features=features), second


def fit_stages(detector: FusionDetector, fitting: Fitting) -> dict[str, float]:
    """Fit a detector in two stages; return what stage 1 took and reached."""
    features, first, second = make_stages(detector, fitting)
    start = fitting.clock()
    metrics = _train_stage1(first, detector, fitting)
    metrics["stage1_seconds"] = fitting.clock() - start
    if fitting.cache is not None:
        detector.feature_cache = FeatureCache(fitting.cache, detector.backbone, detector.whitening.quarters)
    elif isinstance(first, Density):
        detector.feature_cache = first.calibration_features
    if second is not None:
        train_dictionary(second, detector, features, fitting)
    features.clear()
    detector.whitening.folds.clear()
    return metrics


def _train_stage1(module: Density | Representation, detector: FusionDetector, fitting: Fitting) -> dict[str, float]:
    """Train a module of stage 1, or take it from the cache; leave the weights that were best by what is monitored.

    That is the likelihood of calibration patches, and for a backbone that learns the AUROC on synthetic defects. Where
    the number of epochs is given, nothing is monitored, and the last weights stay.
    """
    monitor: str
    mode: Literal["min", "max"]
    if isinstance(module, Density):
        print(f"stage 1  representation: the flow{', and the head by CutPaste' * module.taught}", flush=True)
        monitor, mode = "val/nll", "min"
    else:
        print("stage 1  representation: CutPaste and the flow", flush=True)
        monitor, mode = "val/auroc", "max"
    folder = fitting.folder / "stage1"
    best = ModelCheckpoint(folder, "best", monitor=monitor, mode=mode, enable_version_counter=False)
    callbacks: list[L.Callback] = [SameBackbone(detector.backbone)]
    waiting = LoaderTime()
    options: dict[str, Any] = {"profiler": waiting}
    if fitting.stage1_epochs is not None:
        callbacks.append(StopAfter(fitting.stage1_epochs))
        options["limit_val_batches"] = 0
    else:
        callbacks.append(best)
        if isinstance(module, Density):
            callbacks.append(StopEarly(monitor, patience=module.patience))
    pruning = (
        [] if fitting.trial is None else [fitting.make("pruning", trial=fitting.trial, monitor=monitor, mode=mode)]
    )
    trainer = fitting.trainer("stage1", [*callbacks, *pruning, SaveEpochs(folder), StopDivergence()], **options)

    def train() -> dict[str, Any]:
        start = time.perf_counter()
        loaders: dict[str, Any] = {"datamodule": fitting.data}
        if isinstance(module, Density):
            training, calibration = module.prepare(fitting.data, trainer.strategy.root_device, fitting.seed)
            loaders = {"train_dataloaders": training, "val_dataloaders": calibration}
        trainer.fit(module, **loaders, ckpt_path=last_checkpoint(folder), weights_only=True)
        metrics = {"stage1_loader_share": waiting.seconds / (time.perf_counter() - start)}
        if fitting.stage1_epochs is None:
            metrics["stage1_epochs"] = _load_best(module, folder) or trainer.current_epoch
        if best.best_model_score is not None:
            metrics[f"{monitor.replace('/', '_')}_stage1"] = float(best.best_model_score)
        for callback in pruning:
            if callback.pruned_epoch is not None:
                metrics["pruned_epoch"] = callback.pruned_epoch
        return {"state": module.state_dict(), "metrics": metrics | peak_memory()}

    if trainer.world_size > 1:  # each of several processes would have to find the same
        found = train()
    else:
        # Density's own state lacks the backbone's.
        state = detector.backbone.state_dict(prefix="detector_backbone.") | module.state_dict()
        found = fitting.get_or_create_stage1(state, train)
        module.load_state_dict(found["state"])
    detector.set_trust(fitting.data.num_originals)
    detector.to(trainer.strategy.root_device)  # Lightning left the module's parts of it on the CPU
    return found["metrics"]


def _load_best(module: Density | Representation, folder: Path) -> int:
    """Take over the best weights where there are some; return after how many epochs they were, else 0."""
    # Not the callback's own path: the folder may have been moved since.
    path = folder / "best.ckpt"
    if not path.is_file():
        return 0
    checkpoint = AtomicCheckpoints().load_checkpoint(str(path))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return checkpoint["epoch"] + 1


def train_dictionary(module: Detection, detector: FusionDetector, features: TrainingFeatures, fitting: Fitting) -> None:
    """Train stage 2."""
    print("stage 2  detection: the dictionary", flush=True)
    folder = fitting.folder / "stage2"
    trainer = fitting.trainer(
        "stage2",
        [SameBackbone(detector.backbone), SaveEpochs(folder)],
        max_epochs=module.epochs,
        gradient_clip_val=None,
        accumulate_grad_batches=1,
        limit_val_batches=0,
        precision="32-true",
    )
    batches = fitting.data.normal_dataloader()
    if not detector.whitening.folds:  # of a stage 1 that was found in the cache
        device = trainer.strategy.root_device
        detector.to(device).whitening.refit(features.stream(batches, device), fitting.data.picture_numbers)
    trainer.fit(module, train_dataloaders=batches, ckpt_path=last_checkpoint(folder), weights_only=True)
    module.to(trainer.strategy.root_device)
