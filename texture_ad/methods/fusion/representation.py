"""Stage 1 with a backbone that learns CutPaste, while the flow learns the density of its patch features."""

from collections.abc import Iterator
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.evaluation.localization import image_scores, top_positions
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.methods.fusion.pretext import Pretext
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.flow import negative_log_likelihood
from texture_ad.parameters import NonNegative, Positive, Range, checked
from texture_ad.training.distributed import gather
from texture_ad.training.schedules import one_cycle

TRACKING = 0.05  # momentum of the flow's input statistics, which follow the backbone as it learns


def limit_gradient(x: Tensor, weight: float) -> Tensor:
    """Return features (N, C) unchanged; their gradient, scaled by `weight`, leaves mean and covariance as they are.

    A likelihood would reward a backbone without end for shrinking its features, or for making them follow one another.
    """
    if weight == 0:
        return x.detach()
    centred = (x - x.mean(0)).T
    covariance = centred @ centred.T / len(x)
    ridge = 1e-4 * covariance.diagonal().mean().detach() * torch.eye(len(covariance), device=x.device)
    factor = torch.linalg.cholesky(covariance + ridge)
    held = (factor.detach() @ torch.linalg.solve_triangular(factor, centred, upper=False)).T
    return x.detach() + weight * (held - held.detach())


@checked
class Representation(L.LightningModule):
    """Train the backbone and the flow: stage 1 with CutPaste.

    The loss is the pretext's (see Pretext), plus the flow's negative log-likelihood per dimension (equation 6). That
    likelihood by itself would reward a backbone that maps every image to one point: see `limit_gradient`.

    Args:
        detector: whose backbone, whitening and flow are trained. Its whitening is fitted at the start, and after every
            epoch.
        pretext: what the backbone learns.
        features: the training images' patch features, as this backbone gives them.
        lr: of heads and flow, peak of a one-cycle schedule.
        backbone_lr: of the backbone, likewise.
        weight_decay: of AdamW.
        flow_patches: patch features drawn for the flow in each step.
        flow_weight: of the flow's likelihood in what the backbone learns.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(
        self,
        detector: FusionDetector,
        pretext: Pretext,
        features: TrainingFeatures,
        lr: Positive,
        backbone_lr: Positive,
        weight_decay: NonNegative,
        flow_patches: Annotated[int, Range(2)],
        flow_weight: NonNegative,
    ):
        super().__init__()
        self.backbone = detector.backbone
        self.whitening = detector.whitening
        self.flow = detector.flow
        self.pretext = pretext
        self.features = features
        self.lr = lr
        self.backbone_lr = backbone_lr
        self.weight_decay = weight_decay
        self.flow_patches = flow_patches
        self.flow_weight = flow_weight
        self.top = detector.top
        self.min_distance = detector.min_distance
        self.val_auroc = BinaryAUROC()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with a rate for heads and flow and one for the backbone, and its one-cycle schedule."""
        heads = [*self.pretext.parameters(), *self.flow.parameters()]
        tuned = [p for p in self.backbone.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": heads, "lr": self.lr},
            {"params": tuned, "lr": self.backbone_lr},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        return one_cycle(optimizer, self.trainer.estimated_stepping_batches, rise=0.2)

    def train(self, mode: bool = True) -> "Representation":
        """Set the mode of all but the backbone."""
        super().train(mode)
        # Batches are small and half of them pasted: batch normalisation keeps its ImageNet statistics.
        self.backbone.eval()
        return self

    @property
    def _data(self) -> TextureDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _training_features(self) -> Iterator[Tensor]:
        return self.features.stream(self._data.normal_dataloader(), self.device)

    def on_train_epoch_start(self) -> None:
        """Fit the whitening before the first epoch."""
        if self.current_epoch == 0:
            self.whitening.fit(self._training_features, self._data.picture_numbers)

    def on_validation_epoch_start(self) -> None:
        """Fit the whitening anew, since the backbone has learnt."""
        if not self.trainer.sanity_checking:
            self._refit_whitening()

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Fit the whitening anew where no validation has."""
        if not self.trainer.enable_validation:
            self._refit_whitening()

    def _refit_whitening(self) -> None:
        self.features.clear()
        self.whitening.refit(self._training_features(), self._data.picture_numbers)

    def on_fit_end(self) -> None:
        """Drop the features and folds of the last epoch's backbone: the best checkpoint's may be another."""
        self.features.clear()
        self.whitening.folds.clear()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the loss of the pretext and the flow."""
        losses, loss, features = self.pretext(self.backbone, batch["image"].float() / 255)
        self.log_dict(losses, sync_dist=True)
        patches = flatten_patches(features).float()
        with torch.autocast(self.device.type, enabled=False):
            nll = self._flow_loss(patches)
        self.log("train/nll", nll, prog_bar=True, sync_dist=True)
        loss = loss + nll
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def _flow_loss(self, patches: Tensor) -> Tensor:
        """Return the mean negative log-likelihood per dimension of some patch features (N, C) of whole images."""
        whitened = self.whitening(limit_gradient(patches, self.flow_weight))
        drawn = self.flow_patches // self.trainer.world_size
        whitened = whitened[torch.randperm(len(whitened), device=whitened.device)[:drawn]]
        self.flow.track(gather(whitened.detach()), 1.0 if self.global_step == 0 else TRACKING)
        return negative_log_likelihood(*self.flow(whitened)).mean() / whitened.shape[1]

    def patch_maps(self, images: Tensor) -> Tensor:
        """Return the negative log-likelihood of every position, (B, h, w), of images uint8 (B, 3, H, W)."""
        features = self.backbone.extract(images)
        with torch.autocast(self.device.type, enabled=False):
            nll = negative_log_likelihood(*self.flow(self.whitening(flatten_patches(features))))
        return nll.view(len(images), *features.shape[-2:])

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Update the image AUROC of the flow's likelihood on calibration images and synthetic defects."""
        _positions, top_scores = top_positions(self.patch_maps(batch["image"]), self.top, self.min_distance)
        # A sigmoid inside the metric would saturate; the rank is all that AUROC needs.
        ranks = torch.sigmoid(image_scores(top_scores) / (10 * len(self.flow.center)))
        self.val_auroc.update(ranks, batch["label"])
        self.log("val/auroc", self.val_auroc, prog_bar=True)
