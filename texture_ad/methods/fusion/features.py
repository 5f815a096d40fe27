"""Patch features of the training images, extracted once while they fit a budget."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.models.backbone import flatten_patches
from texture_ad.parameters import NonNegativeInt, checked
from texture_ad.training.cache import digest
from texture_ad.training.distributed import gather


@checked
class TrainingFeatures:
    """Keep patch features of the training images by their number, which is a batch's `index`.

    They have half precision, whether they are kept or extracted anew: twice as many fit, and a result doesn't depend on
    which of them did.

    Args:
        detector: whose backbone gives them.
        memory_mb: budget for what is kept.

    Attributes:
        kept: number of an image to its patch features (P, C).

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(self, detector: FusionDetector, memory_mb: NonNegativeInt):
        self.detector = detector
        self.budget = memory_mb * 2**20
        self.kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Return the patch features (B, P, C) of this process's batch."""
        numbers = batch["index"].tolist()
        if all(n in self.kept for n in numbers):
            return torch.stack([self.kept[n] for n in numbers]).float()
        maps = self.detector.patch_features(batch["image"].to(device))
        return flatten_patches(maps).unflatten(0, (len(numbers), -1)).half().float()

    def of_all_processes(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Return the patch features (sum of B, P, C) of all processes' images, in the processes' order."""
        numbers = gather(batch["index"].to(device)).tolist()
        if all(n in self.kept for n in numbers):
            return torch.stack([self.kept[n] for n in numbers]).float()
        patches = gather(self(batch, device))
        if patches.nbytes // 2 <= self.room:
            self.kept.update(zip(numbers, patches.half(), strict=True))
        return patches

    @property
    def room(self) -> int:
        """Return how many bytes of the budget are left."""
        return self.budget - sum(p.nbytes for p in self.kept.values())

    def stream(self, batches: Iterable[dict[str, Tensor]], device: torch.device) -> Iterator[Tensor]:
        """Yield `of_all_processes` of every batch."""
        return (self.of_all_processes(batch, device) for batch in batches)

    def clear(self) -> None:
        """Drop all features. Call it when the backbone's weights change or training ends."""
        self.kept.clear()


class KeptFeatures:
    """Give the patch features of images that were kept, once each; extract those of all other images.

    Args:
        room: bytes that they may take.
    """

    def __init__(self, room: int):
        self.room = room
        self.kept: dict[str, Tensor] = {}

    def keep(self, images: Tensor, features: Tensor) -> None:
        """Keep the features of a batch of images, both (B, ...), for when it comes again, if there is room."""
        if features.nbytes <= self.room:
            self.room -= features.nbytes
            self.kept[digest(images)] = features

    def __call__(self, images: Tensor, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the patch features (B, C, h, w) of images, uint8 (B, 3, H, W)."""
        found = self.kept.pop(digest(images), None) if self.kept else None
        return extract(images) if found is None else found
