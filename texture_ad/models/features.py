"""Patch features of the training images, extracted once while they fit a budget."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from texture_ad.distributed import gather


class TrainingFeatures:
    """Patch features of the training images by their number, which is a batch's `index`.

    Args:
        extract: images, uint8 (B, 3, H, W), to patch features (B h w, C).
        memory_mb: budget for what is kept, at least 0.
    """

    def __init__(self, extract: Callable[[Tensor], Tensor], memory_mb: int):
        self.extract, self.budget = extract, memory_mb * 2**20
        self.kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Of this process's images, (B, P, C)."""
        numbers = batch["index"].tolist()
        if all(n in self.kept for n in numbers):
            return torch.stack([self.kept[n] for n in numbers])
        return self.extract(batch["image"].to(device)).unflatten(0, (len(numbers), -1))

    def of_all_processes(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Of all processes' images, in their order, (sum of B, P, C)."""
        numbers = gather(batch["index"].to(device)).tolist()
        if all(n in self.kept for n in numbers):
            return torch.stack([self.kept[n] for n in numbers])
        patches = gather(self(batch, device))
        held = sum(p.nbytes for p in self.kept.values())
        if held + patches.nbytes <= self.budget:
            self.kept.update(zip(numbers, patches, strict=True))
        return patches

    def stream(self, loader, device: torch.device) -> Iterator[Tensor]:
        """`of_all_processes` of every batch."""
        return (self.of_all_processes(batch, device) for batch in loader)

    def clear(self) -> None:
        """For a backbone that has learnt, or where the fit is over."""
        self.kept.clear()
