"""Stage 1: the backbone learns CutPaste while the flow learns the density of its patch features."""

from collections import deque

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from texture_ad.data.cutpaste import TASKS, pretext_batch
from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import image_scores, top_positions
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.models.flow import Flow, negative_log_likelihood
from texture_ad.models.whitening import Whitening
from texture_ad.training.distributed import gather

TRACKING = 0.05  # momentum of the flow's input statistics, which follow the backbone as it learns


def limit_gradient(x: Tensor, weight: float) -> Tensor:
    """The features (N, C) as they are; a loss's gradient, times `weight`, as if their mean and covariance were held.

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


class Representation(L.LightningModule):
    """Thin: says when the pretext task, the flow and the validation run.

    The loss is the pretext's cross-entropy over whole images, plus `patch_weight` times the same question put
    to every patch (was it pasted?), plus the flow's negative log-likelihood per dimension (equation 6). That
    likelihood by itself would reward a backbone that maps every image to one point: see `limit_gradient`.

    Args:
        backbone: gives the patch features.
        whitening: of those features; fitted at the start, and after every epoch in which the backbone learnt.
        flow: over the whitened features.
        features: the training images' patch features, as this backbone gives them.
        task: "none" (the backbone stays as it is), "binary", "scar" or "3way".
        patch_weight: of the patch-wise pretext, at least 0.
        lr: of heads and flow; backbone_lr: of the backbone. Peaks of a one-cycle schedule; above 0.
        weight_decay: AdamW's.
        flow_patches: patch features drawn for the flow in each step.
        flow_weight: of the flow's likelihood in what the backbone learns, at least 0.
        top, min_distance: of the image score (see evaluation.localization).

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        whitening: Whitening,
        flow: Flow,
        features: TrainingFeatures,
        task: str = "3way",
        patch_weight: float = 1.0,
        lr: float = 2e-3,
        backbone_lr: float = 1e-3,
        weight_decay: float = 1e-4,
        flow_patches: int = 4096,
        flow_weight: float = 0.0,
        top: int = 5,
        min_distance: int = 2,
    ):
        super().__init__()
        if task != "none" and task not in TASKS:
            raise UserError(f"cutpaste.task={task}: expected one of none, {', '.join(TASKS)}")
        check_number("representation.lr", lr, 0, above=True)
        check_number("representation.backbone_lr", backbone_lr, 0, above=True)
        check_number("representation.weight_decay", weight_decay, 0)
        check_number("representation.flow_patches", flow_patches, 2, whole=True)
        check_number("representation.flow_weight", flow_weight, 0)
        check_number("cutpaste.patch_weight", patch_weight, 0)
        self.backbone = backbone
        self.whitening = whitening
        self.flow = flow
        self.features = features
        self.task = task
        self.patch_weight = patch_weight
        self.lr = lr
        self.backbone_lr = backbone_lr
        self.weight_decay = weight_decay
        self.flow_patches = flow_patches
        self.flow_weight = flow_weight
        self.top = top
        self.min_distance = min_distance
        dim = len(whitening.mean)
        self.image_head = nn.Linear(dim, 1 + len(TASKS.get(task, ())))
        self.patch_head = nn.Conv2d(dim, 1, 1)
        if task == "none":  # DDP waits for the gradient of every parameter that asks for one
            for module in (backbone, self.image_head, self.patch_head):
                module.requires_grad_(False)
        self.val_auroc = BinaryAUROC()

    def configure_optimizers(self):
        heads = [*self.image_head.parameters(), *self.patch_head.parameters(), *self.flow.parameters()]
        groups = [{"params": heads, "lr": self.lr}]
        if self.task != "none":
            tuned = [p for p in self.backbone.parameters() if p.requires_grad]
            groups.append({"params": tuned, "lr": self.backbone_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        # OneCycleLR divides by zero where its rise lasts exactly one step.
        rise = max(0.2, 1.5 / steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True):
        super().train(mode)
        # Batches are small and half of them pasted: batch normalisation keeps its ImageNet statistics.
        self.backbone.eval()
        return self

    def _training_features(self):
        return self.features.stream(self.trainer.datamodule.normal_dataloader(), self.device)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 0:
            self.whitening.fit(self._training_features)
        elif self.task == "none" and not self.features.kept and self.features.budget:
            # A resumed run: it keeps what an undisturbed one keeps.
            deque(self._training_features(), maxlen=0)

    def on_validation_epoch_start(self) -> None:
        if self.task != "none" and not self.trainer.sanity_checking:
            self.features.clear()
            self.whitening.refit(self._training_features())

    def on_fit_end(self) -> None:
        if self.task != "none":  # the best checkpoint's backbone may be another
            self.features.clear()

    def _pretext(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The pretext's loss and the normal images' patch features (B, C, h, w)."""
        flip = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        batch, classes, masks = pretext_batch(images, self.task)
        features = self.backbone.patch_features(self.backbone(batch * 255))
        image_loss = F.cross_entropy(self.image_head(features.amax((2, 3))), classes)
        target = F.adaptive_max_pool2d(masks[:, None].float(), features.shape[-2:])
        # Pasted patches are few; five to one brings the two classes to the same order.
        patch_loss = F.binary_cross_entropy_with_logits(
            self.patch_head(features), target, pos_weight=target.new_tensor(5.0)
        )
        self.log_dict({"train/pretext": image_loss, "train/patch": patch_loss}, sync_dist=True)
        return image_loss + self.patch_weight * patch_loss, features[: len(images)]

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        if self.task == "none":
            loss = 0.0
            patches = self.features(batch, self.device).flatten(0, 1)
        else:
            loss, features = self._pretext(batch["image"].float() / 255)
            patches = flatten_patches(features).float()
        with torch.autocast(self.device.type, enabled=False):
            nll = self._flow_loss(patches)
        self.log("train/nll", nll, prog_bar=True, sync_dist=True)
        loss = loss + nll
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def _flow_loss(self, patches: Tensor) -> Tensor:
        """Mean negative log-likelihood per dimension of some of the patch features (N, C) of whole images."""
        features = self.whitening(limit_gradient(patches, self.flow_weight))
        drawn = self.flow_patches // self.trainer.world_size
        features = features[torch.randperm(len(features), device=features.device)[:drawn]]
        self.flow.track(gather(features.detach()), 1.0 if self.global_step == 0 else TRACKING)
        return negative_log_likelihood(*self.flow(features)).mean() / features.shape[1]

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Negative log-likelihood of every patch, uint8 (B, 3, H, W) to (B, h, w)."""
        features = self.backbone.extract(images)
        with torch.autocast(self.device.type, enabled=False):
            nll = negative_log_likelihood(*self.flow(self.whitening(flatten_patches(features))))
        return nll.view(len(images), *features.shape[-2:])

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        _, top = top_positions(self.anomaly_maps(batch["image"]), self.top, self.min_distance)
        # A sigmoid inside the metric would saturate; the rank is all that AUROC needs.
        scores = image_scores(top)
        self.val_auroc.update(torch.sigmoid(scores / (10 * len(self.flow.center))), batch["label"])
        self.log("val/auroc", self.val_auroc, prog_bar=True)
