"""Several processes as one run: each batch is shared out, what comes of it is brought together in its order.

A run on several devices so sees the batches of a run on one; batch sizes count all devices together. What differs are
last digits, CutPaste's chance, and that shares which differ by an image weigh the same in DDP's mean of gradients.
"""

from collections.abc import Iterator
from itertools import pairwise

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Sampler
from torchmetrics.utilities.distributed import gather_all_tensors

from texture_ad.errors import ParameterError, UserError


def is_rank_zero() -> bool:
    """Return whether this is the process that writes files and prints; known before the processes are joined, too."""
    return rank_zero_only.rank == 0


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


class SharedBatches(Sampler[list[int]]):
    """Batches of indices, of which each process takes its part: no sample is lost, none is seen twice.

    A last batch with fewer samples than there are processes joins the one before, so that none has nothing to do.

    Args:
        sampler: of the whole data set, in the same order in every process.
        batch_size: of all processes together.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int):
        self.sampler = sampler
        self.batch_size = batch_size

    def _bounds(self) -> list[int]:
        count = len(self.sampler)
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if min(count, self.batch_size) < processes:
            raise UserError(
                f"trainer.devices={processes}: more than there are images in a batch (batch size "
                f"{self.batch_size}, {count} images); use fewer devices or a larger batch"
            )
        bounds = list(range(0, count, self.batch_size))
        if len(bounds) > 1 and count - bounds[-1] < processes:
            bounds.pop()
        return [*bounds, count]

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[list[int]]:
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        order = list(self.sampler)
        for start, end in pairwise(self._bounds()):
            size = end - start
            yield order[start + size * rank // processes : start + size * (rank + 1) // processes]
