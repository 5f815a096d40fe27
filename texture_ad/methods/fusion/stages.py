"""The two stages of our method's fit: the representation, then the dictionary."""

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from texture_ad.errors import ParameterError
from texture_ad.methods.base import Fitting
from texture_ad.methods.fusion.density import Density
from texture_ad.methods.fusion.detection import Detection
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.methods.fusion.model import FusionModel
from texture_ad.methods.fusion.representation import Representation
from texture_ad.training.cache import FeatureCache
from texture_ad.training.callbacks import LoaderTime, StopDivergence
from texture_ad.training.checkpoints import AtomicCheckpoints, SaveEpochs, last_checkpoint
from texture_ad.training.resources import peak_memory


class StopEarly(EarlyStopping):
    """Stop training early; a resumed run stays stopped where the run before it had stopped."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the patience was used up before the checkpoint."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class Stages(NamedTuple):
    """Hold what a fit trains, and the training images' features.

    Attributes:
        features: of both stages.
        first: trains the representation.
        second: trains the dictionary, None where it has no weight.
    """

    features: TrainingFeatures
    first: Density | Representation
    second: Detection | None


def make_stages(detector: FusionModel, fitting: Fitting) -> Stages:
    """Return both stages of a detector's fit; all of them before the first trains, so that no refusal costs training.

    Raises:
        ParameterError: a setting out of its range, or one that does not go with a backbone that learns.
    """
    features = fitting.make("features", detector=detector)
    pretext = fitting.make("cutpaste", dim=len(detector.whitening.mean))
    second = fitting.make("detection", detector=detector, features=features) if detector.weight("dictionary") else None
    if pretext.task == "none":
        return Stages(features, fitting.make("density", detector=detector, features=features), second)
    if detector.weight("head"):
        problem = "expected 0 where the backbone learns CutPaste itself"
        raise ParameterError("head_weight", detector.weight("head"), problem)
    if detector.flow.dim != detector.whitening.length:
        problem = "expected 0 where the backbone learns: the likelihood of all its layers chooses its weights"
        raise ParameterError("flow.first", detector.flow.first, problem)
    first = fitting.make("representation", detector=detector, pretext=pretext, features=features)
    return Stages(features, first, second)


def fit_stages(detector: FusionModel, fitting: Fitting) -> dict[str, float]:
    """Fit a detector in two stages; return what stage 1 took and reached."""
    features, first, second = make_stages(detector, fitting)
    start = fitting.clock()
    if isinstance(first, Density):
        metrics = train_density(first, detector, fitting)
    else:
        metrics = train_representation(first, detector, fitting)
    metrics["stage1_seconds"] = fitting.clock() - start
    if fitting.cache is not None:
        detector.feature_cache = FeatureCache(fitting.cache, detector.backbone, detector.whitening.quarters)
    if second is not None:
        train_dictionary(second, detector, features, fitting)
    features.clear()
    detector.whitening.folds.clear()
    return metrics


def train_density(module: Density, detector: FusionModel, fitting: Fitting) -> dict[str, float]:
    """Train stage 1 on a backbone that stays as it is; leave the weights that make calibration patches likeliest."""
    taught = "the flow, and the head by CutPaste" if module.taught else "the flow"
    print(f"stage 1  representation: {taught}", flush=True)
    stop = StopEarly("val/nll", patience=module.patience)
    metrics = _train_stage1(module, detector, fitting, "val/nll", "min", [stop])
    detector.feature_cache = module.calibration_features
    return metrics


def train_representation(module: Representation, detector: FusionModel, fitting: Fitting) -> dict[str, float]:
    """Train stage 1 with a backbone that learns; leave the weights that scored best on synthetic defects."""
    print("stage 1  representation: CutPaste and the flow", flush=True)
    return _train_stage1(module, detector, fitting, "val/auroc", "max", [])


def _train_stage1(
    module: Density | Representation,
    detector: FusionModel,
    fitting: Fitting,
    monitor: str,
    mode: Literal["min", "max"],
    callbacks: list[L.Callback],
) -> dict[str, float]:
    """Train a module of stage 1, or take it from the cache; leave the weights that were best by what is monitored."""
    folder = fitting.folder / "stage1"
    best = ModelCheckpoint(folder, "best", monitor=monitor, mode=mode, enable_version_counter=False)
    pruning = (
        [] if fitting.trial is None else [fitting.make("pruning", trial=fitting.trial, monitor=monitor, mode=mode)]
    )
    waiting = LoaderTime()
    trainer = fitting.trainer(
        "stage1", [best, *callbacks, *pruning, SaveEpochs(folder), StopDivergence()], profiler=waiting
    )

    def train() -> dict[str, Any]:
        start = time.perf_counter()
        loaders: dict[str, Any] = {"datamodule": fitting.data}
        if isinstance(module, Density):
            trained, watched = module.prepare(fitting.data, trainer.strategy.root_device, fitting.seed)
            loaders = {"train_dataloaders": trained, "val_dataloaders": watched}
        trainer.fit(module, **loaders, ckpt_path=last_checkpoint(folder), weights_only=True)
        metrics = {"stage1_loader_share": waiting.seconds / (time.perf_counter() - start)}
        _load_best(module, folder)
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


def _load_best(module: Density | Representation, folder: Path) -> None:
    # Not the callback's own path: the folder may have been moved since.
    path = folder / "best.ckpt"
    if path.is_file():
        checkpoint = AtomicCheckpoints().load_checkpoint(str(path))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])


def train_dictionary(module: Detection, detector: FusionModel, features: TrainingFeatures, fitting: Fitting) -> None:
    """Train stage 2."""
    print("stage 2  detection: the dictionary", flush=True)
    folder = fitting.folder / "stage2"
    trainer = fitting.trainer(
        "stage2",
        [SaveEpochs(folder)],
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
