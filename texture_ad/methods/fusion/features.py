"""Patch features of the training images, extracted once while they fit a budget."""

from collections.abc import Iterator

import torch
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.fusion.detector import Detector
from texture_ad.training.distributed import gather


class TrainingFeatures:
    """Patch features of the training images by their number, which is a batch's `index`.

    Args:
        detector: whose backbone gives them.
        memory_mb: budget for what is kept, at least 0.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, detector: Detector, memory_mb: int):
        check_number("dictionary.memory_mb", memory_mb, 0, whole=True)
        self.detector = detector
        self.budget = memory_mb * 2**20
        self.kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Of this process's images, (B, P, C)."""
        numbers = batch["index"].tolist()
        if all(n in self.kept for n in numbers):
            return torch.stack([self.kept[n] for n in numbers])
        return self.detector.patch_features(batch["image"].to(device))[0].unflatten(0, (len(numbers), -1))

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
