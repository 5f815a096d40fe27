"""Let several processes work as one run: each takes its share of every batch, and results are gathered in order.

Batch sizes count all devices together, so a run on several devices sees the batches of a run on one. Three things
differ: the last digits, CutPaste's random draws, and the weight of shares that differ by one image.
"""

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from texture_ad.errors import ParameterError


def is_rank_zero() -> bool:
    """Return whether this is the process that writes files and prints; known before the processes are joined, too."""
    return getattr(rank_zero_only, "rank", 0) == 0


def gather(rows: Tensor) -> Tensor:
    """Return all processes' rows (N_i, ...), in the processes' order, on each of them: (sum of N_i, ...)."""
    if not dist.is_initialized():
        return rows
    return torch.cat(gather_all_tensors(rows.byte() if rows.dtype == torch.bool else rows)).to(rows.dtype)


def check_processes(trainer: L.Trainer, strategy: str, in_sweep: bool) -> None:
    """Check that a trainer of several processes is one that this program can work with.

    Args:
        trainer: of the run.
        strategy: that was asked for.
        in_sweep: whether the run is one job of a sweep.

    Raises:
        ParameterError: another strategy than DDP, or a sweep's job whose further processes would be sweeps too.
    """
    if trainer.world_size == 1:
        return
    if strategy not in ("auto", "ddp"):
        raise ParameterError("strategy", strategy, f"expected auto or ddp with {trainer.world_size} processes")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if in_sweep and not (environment and environment.creates_processes_externally):
        raise ParameterError("devices", trainer.num_devices, "a sweep's job takes one device; run it by itself")
