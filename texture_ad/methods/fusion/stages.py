"""The two stages of our method's fit: the representation, then the dictionary."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from texture_ad.methods.base import Fitting
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.methods.fusion.model import FusionModel
from texture_ad.methods.fusion.representation import Representation
from texture_ad.training.cache import FeatureCache
from texture_ad.training.callbacks import LoaderTime, StopDivergence
from texture_ad.training.checkpoints import AtomicCheckpoints, SaveEpochs, last_checkpoint
from texture_ad.training.resources import peak_memory


def fit_stages(detector: FusionModel, fitting: Fitting) -> dict[str, float]:
    """Fit a detector in two stages; return the loader's share of stage 1, its seconds, memory and validation AUROC."""
    features = fitting.make("features", detector=detector)
    start = fitting.clock()
    metrics = train_representation(detector, features, fitting)
    metrics["stage1_seconds"] = fitting.clock() - start
    if fitting.cache is not None:
        detector.feature_cache = FeatureCache(fitting.cache, detector.backbone)
    train_dictionary(detector, features, fitting)
    return metrics


def train_representation(detector: FusionModel, features: TrainingFeatures, fitting: Fitting) -> dict[str, float]:
    """Train stage 1, or take it from the cache; leave the weights that scored best on synthetic defects."""
    pretext = fitting.make("cutpaste", dim=len(detector.whitening.mean))
    module = fitting.make("representation", detector=detector, pretext=pretext, features=features)
    learnt = "CutPaste and the flow" if module.learns else "the flow"
    print(f"stage 1  representation: {learnt}", flush=True)
    folder = fitting.folder / "stage1"
    best = ModelCheckpoint(folder, "best", monitor="val/auroc", mode="max", enable_version_counter=False)
    waiting = LoaderTime()
    trainer = fitting.trainer("stage1", [best, SaveEpochs(folder), StopDivergence()], profiler=waiting)

    def train() -> dict[str, Any]:
        start = time.perf_counter()
        trainer.fit(module, datamodule=fitting.data, ckpt_path=last_checkpoint(folder), weights_only=True)
        metrics = {"stage1_loader_share": waiting.seconds / (time.perf_counter() - start)}
        _load_best(module, folder)
        if best.best_model_score is not None:
            metrics["val_auroc_stage1"] = float(best.best_model_score)
        return {"state": module.state_dict(), "metrics": metrics | peak_memory()}

    if trainer.world_size > 1:  # each of several processes would have to find the same
        return train()["metrics"]
    found = fitting.get_or_create_stage1(module.state_dict(), train)
    module.load_state_dict(found["state"])
    return found["metrics"]


def _load_best(module: Representation, folder: Path) -> None:
    # Not the callback's own path: the folder may have been moved since.
    path = folder / "best.ckpt"
    if path.is_file():
        module.load_state_dict(AtomicCheckpoints().load_checkpoint(str(path))["state_dict"])


def train_dictionary(detector: FusionModel, features: TrainingFeatures, fitting: Fitting) -> None:
    """Train stage 2."""
    print("stage 2  detection: the dictionary", flush=True)
    module = fitting.make("detection", detector=detector, features=features)
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
    trainer.fit(module, train_dataloaders=batches, ckpt_path=last_checkpoint(folder), weights_only=True)
    module.to(trainer.strategy.root_device)
    features.clear()
