"""What makes a run repeatable and stops it when it diverges; and how long training waits for its images."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn

from texture_ad.errors import DivergenceError, UserError
from texture_ad.files import save_atomic

DIVERGED = 1e6  # a loss beyond; stage 1's is of order one
# Steps. Where the backbone learns too, a flow's loss of single batches leaps, and clipped gradients mend it.
IN_A_ROW = 10
SAME = 1e-4  # relative: folded on another machine, the same weights differ in the last digits


class Repeatable(L.Callback):
    """Seed every step by its number, so that a resumed run draws what an undisturbed one would have drawn.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, index: int) -> None:
        """Seed the step."""
        step = (self.seed * 100_003 + trainer.current_epoch) * 1_000_003 + index
        torch.manual_seed((step * 64 + trainer.global_rank) % 2**63)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remove what Lightning saved when a cluster preempted the job; the epoch's checkpoint is newer."""
        if trainer.is_global_zero:
            for old in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                old.unlink()


class SameBackbone(L.Callback):
    """Refuse to resume on another backbone than the stage began with: the file of its weights may have changed.

    Args:
        backbone: as the stage begins with it, known by the length of each of its tensors.
    """

    def __init__(self, backbone: nn.Module):
        self.lengths = torch.stack([value.cpu().double().norm() for value in backbone.state_dict().values()])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the backbone."""
        return {"lengths": self.lengths}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the backbone is that of the checkpoint.

        Raises:
            UserError: it is another.
        """
        if not torch.allclose(state_dict["lengths"], self.lengths, rtol=SAME):
            raise UserError("backbone.weights: they changed since this run's last checkpoint; start another run")


class StopDivergence(L.Callback):
    """End training when the loss is not finite, or beyond DIVERGED IN_A_ROW times, and save the batch for study."""

    batch: dict[str, Tensor]
    beyond = 0  # steps in a row
    leaps = 0  # steps beyond in all

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Remember the batch."""
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss, averaged over processes, so that all stop or none.

        Raises:
            DivergenceError: the loss is not finite, or stays too large.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of float16, which has scaled the loss by now
        value = float(trainer.strategy.reduce(loss.detach().clone())) / (scaler.get_scale() if scaler else 1)
        leapt = abs(value) >= DIVERGED
        self.beyond = self.beyond + 1 if leapt else 0
        self.leaps += leapt
        if math.isfinite(value) and self.beyond < IN_A_ROW:
            return
        path = Path(trainer.default_root_dir) / "diverged_batch.pt"
        if trainer.is_global_zero:
            self._save(trainer, path, value)
        rates = {name: getattr(module, name) for name in ("lr", "backbone_lr") if hasattr(module, name)}
        raise DivergenceError(type(module).__name__.lower(), trainer.global_step, value, path, rates)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Tell how often the loss was beyond DIVERGED and came back."""
        if self.leaps and trainer.is_global_zero:
            print(f"warning: in {self.leaps} steps the loss was beyond {DIVERGED:g}, and came back", file=sys.stderr)

    def _save(self, trainer: L.Trainer, path: Path, loss: float) -> None:
        content: dict[str, Any] = {name: value.cpu() for name, value in self.batch.items()}
        content |= {"epoch": trainer.current_epoch, "step": trainer.global_step, "loss": loss}
        if "index" in self.batch:  # of images, and not of features
            samples = trainer.datamodule.train_samples  # type: ignore[attr-defined]
            content["paths"] = [str(samples[i].path) for i in self.batch["index"].tolist()]
        save_atomic(path, content)


class LoaderTime(Profiler):
    """Add up how long training waits for its loader.

    Attributes:
        seconds: so far.
    """

    seconds = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock before a batch is asked for."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds -= time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop the clock when the batch is there."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter()
