"""What the baselines share: training by Lightning where a gradient trains them, then passes over the images."""

from collections.abc import Iterable

import torch
from torch import Tensor

from texture_ad.methods.base import AnomalyDetector, Fitting
from texture_ad.models.backbone import Backbone

Batches = Iterable[dict[str, Tensor]]

# Up to a fifth of AlexNet's rectified features are zero in all images of a texture. Divided by next to nothing, one
# answer would decide alone.
STILL = 0.01  # of the features' deviation (root mean square): what each is taken to vary at least


def image_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the deepest layer averaged over all positions, (B, C), of images uint8 (B, 3, H, W)."""
    return backbone.in_slices(lambda part: backbone(part)[-1].float().mean((2, 3)), images)


def deviations(x: Tensor) -> Tensor:
    """Return the standard deviation of each feature, (C,), of images (N, C), at least STILL of what they vary by.

    Of a single image, or of copies of one, which have none, it is 1.
    """
    std = x.std(0) if len(x) > 1 else torch.zeros_like(x[0])
    spread = std.square().mean().sqrt()
    if spread <= 1e-6 * x.abs().max():
        return torch.ones_like(std)
    return std.clamp(min=STILL * spread)


def distances(x: Tensor, bank: Tensor) -> Tensor:
    """Return Euclidean distances (N, M) of the rows of x (N, C) and bank (M, C)."""
    # By itself torch decides by the number of rows, which an exported graph leaves open.
    exported = torch.compiler.is_compiling()
    return torch.cdist(
        x,
        bank,
        compute_mode="use_mm_for_euclid_dist" if exported else "use_mm_for_euclid_dist_if_necessary",
    )


def nearest(x: Tensor, bank: Tensor, count: int = 1, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Return Euclidean distances and indices of the nearest rows of `bank` to each row of `x`.

    Args:
        x: (N, C).
        bank: (M, C).
        count: of the rows to find.
        chunk: rows of x that are compared at a time; an exported graph, of any N, compares all at once.

    Returns:
        Distances, ascending, and indices, both (N, min(count, M)).
    """
    found = []
    indices = []
    for part in (x,) if torch.compiler.is_compiling() else x.split(chunk):
        index = distances(part, bank).topk(min(count, len(bank)), largest=False).indices
        # Again from the difference: cdist's products lose half the digits of a small distance.
        found.append((part[:, None] - bank[index]).norm(dim=2))
        indices.append(index)
    return torch.cat(found), torch.cat(indices)


class Baseline(AnomalyDetector):
    """Score images by another method than ours.

    A subclass defines `measure`, and `learn` where it has something to fit in passes over the images. If it is a
    LightningModule as well, Lightning trains it for `settings["epochs"]` epochs before.
    """

    # The baselines' own; those of the fusion are settings.
    top = 5
    min_distance = 2

    def fit(self, fitting: Fitting) -> dict[str, float]:
        """Train by Lightning what gradients train, then learn from passes over the training images."""
        import lightning as L

        from texture_ad.training.checkpoints import SaveEpochs, last_checkpoint

        trained = isinstance(self, L.LightningModule)
        folder = fitting.folder / "stage1"
        trainer = fitting.trainer(
            "stage1",
            [SaveEpochs(folder)] if trained else [],
            max_epochs=self.settings.get("epochs"),
            gradient_clip_val=None,
            accumulate_grad_batches=1,
            limit_val_batches=0,
            enable_checkpointing=trained,
        )
        print(f"fit      {self.name}", flush=True)
        if isinstance(self, L.LightningModule):
            trainer.fit(self, datamodule=fitting.data, ckpt_path=last_checkpoint(folder), weights_only=True)
        self.to(trainer.strategy.root_device).eval()
        self.learn(fitting.data.normal_dataloader())
        return {}

    def learn(self, batches: Batches) -> None:
        """Fit what no gradient trains.

        Args:
            batches: of the normal training images in fixed order, as TextureDataModule gives them, for any number of
                passes.
        """
