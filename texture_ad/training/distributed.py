"""Several processes as one run: each batch is shared out, what comes of it is brought together in its order.

A run on several devices so sees the batches of a run on one; batch sizes count all devices together. What differs are
last digits, CutPaste's chance, and that shares which differ by an image weigh the same in DDP's mean of gradients.
"""

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from texture_ad.cli.entry import in_sweep
from texture_ad.errors import UserError


def is_rank_zero() -> bool:
    """Whether this is the process that writes files and prints; known before the processes are joined, too."""
    return rank_zero_only.rank == 0


def gather(rows: Tensor) -> Tensor:
    """All processes' rows (N_i, ...) in the processes' order, on each of them: (sum of N_i, ...)."""
    if not dist.is_initialized():
        return rows
    return torch.cat(gather_all_tensors(rows.byte() if rows.dtype == torch.bool else rows)).to(rows.dtype)


def check_processes(trainer: L.Trainer, strategy: str) -> None:
    """Holds a trainer of several processes to what this program does with them.

    Raises:
        UserError: another strategy than DDP, or a sweep's job whose further processes would be sweeps too.
    """
    if trainer.world_size == 1:
        return
    if strategy not in ("auto", "ddp"):
        raise UserError(f"trainer.strategy={strategy}: expected auto or ddp with {trainer.world_size} processes")
    if in_sweep() and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: a sweep's job takes one device; run it by itself, or "
            "several jobs side by side with hydra/launcher=joblib"
        )
