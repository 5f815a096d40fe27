"""What makes a run safe to kill and safe to start again: checkpoints written whole, chance that depends on the
step alone, and a stop when training diverges. And the time that training waits for its images."""

import math
import os
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig
from torch import Tensor

from texture_ad.cli.settings import check_same
from texture_ad.errors import UserError
from texture_ad.files import save_atomic

DIVERGED = 1e6  # a loss beyond; both stages' losses are of order one


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, and that hold no code.

    Lightning's own writer goes through the system's folder for temporary files, from which a file can't be renamed
    where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options: object = None) -> None:
        save_atomic(Path(path), checkpoint)

    def load_checkpoint(self, path: str, map_location: object = None, weights_only: bool | None = True) -> dict:
        try:
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)
        except Exception as error:
            raise UserError(
                f"{path}: not a checkpoint of this program, or damaged; remove it to train the stage anew"
            ) from error


class Repeatable(L.Callback):
    """Seeds every step by its number, so that a resumed run draws what an undisturbed one would have drawn."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, index: int) -> None:
        step = (self.seed * 100_003 + trainer.current_epoch) * 1_000_003 + index
        torch.manual_seed((step * 64 + trainer.global_rank) % 2**63)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # What Lightning saved when a cluster preempted the job; from here on the epoch's checkpoint is newer.
        if trainer.is_global_zero:
            for old in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                old.unlink()


class StopDivergence(L.Callback):
    """Ends training when the loss is not finite or beyond DIVERGED, and saves the batch for study."""

    batch: dict[str, Tensor] | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, index: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        value = float(trainer.strategy.reduce(loss.detach().clone()))  # the mean over processes: all stop, or none
        if math.isfinite(value) and abs(value) < DIVERGED:
            return
        path = Path(trainer.default_root_dir) / "diverged_batch.pt"
        samples = trainer.datamodule.train_samples
        if trainer.is_global_zero:
            save_atomic(
                path,
                {
                    "image": self.batch["image"].cpu(),
                    "epoch": trainer.current_epoch,
                    "step": trainer.global_step,
                    "paths": [str(samples[i].path) for i in self.batch["index"].tolist()],
                    "loss": value,
                },
            )
        raise UserError(
            f"stage 1, step {trainer.global_step}: the loss is {value:g}; the batch is saved in {path}; lower "
            f"representation.lr={module.lr:g} or representation.backbone_lr={module.backbone_lr:g}"
        )


class LoaderTime(Profiler):
    """Adds up how long training waits for its loader."""

    seconds = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds -= time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter()


def prepare_folder(folder: Path, config: DictConfig) -> None:
    """Makes a run folder ready for its first run or for resuming one.

    Half-written files that a kill left are removed, and the log of the earlier part is kept under a number.

    Raises:
        UserError: the folder holds checkpoints of a run with other settings, or can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.partial", ".*.part"):
            for leftover in folder.rglob(pattern):
                leftover.unlink()
        log = folder / "logs" / "metrics.csv"
        if log.is_file():
            number = 1 + len(list(log.parent.glob("metrics_*.csv")))
            os.replace(log, log.with_name(f"metrics_{number}.csv"))
    except OSError as error:
        raise UserError(f"run_dir={folder}: can't be written ({error.strerror}); give a writable folder") from error
    if (folder / "config.yaml").is_file() and any(folder.glob("stage*/last.ckpt")):
        check_same(folder, config)
