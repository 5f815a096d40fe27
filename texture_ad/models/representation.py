"""Stage 1: the backbone learns CutPaste while the flow learns the density of its patch features."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from texture_ad.data.cutpaste import TASKS, pretext_batch
from texture_ad.distributed import gather
from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import image_scores, top_locations_batch
from texture_ad.models.backbone import Backbone
from texture_ad.models.flow import Flow, negative_log_likelihood

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


def flatten_patches(features: Tensor) -> Tensor:
    """(B, C, h, w) to patch features (B h w, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


class Representation(L.LightningModule):
    """Thin: says when the pretext task, the flow and the validation run.

    The loss is the pretext's cross-entropy over whole images, plus `patch_weight` times the same question put
    to every patch (was it pasted?), plus the flow's negative log-likelihood per dimension (equation 6). That
    likelihood by itself would reward a backbone that maps every image to one point: see `limit_gradient`.

    Args:
        backbone: gives the patch features.
        flow: over those features.
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

    def __init__(self, backbone: Backbone, flow: Flow, task: str = "3way", patch_weight: float = 1.0,
                 lr: float = 2e-3, backbone_lr: float = 1e-3, weight_decay: float = 1e-4, flow_patches: int = 4096,
                 flow_weight: float = 0.0, top: int = 5, min_distance: int = 2):  # fmt: skip
        super().__init__()
        if task != "none" and task not in TASKS:
            raise UserError(f"cutpaste.task={task}: expected one of none, {', '.join(TASKS)}")
        check_number("representation.lr", lr, 0, above=True)
        check_number("representation.backbone_lr", backbone_lr, 0, above=True)
        check_number("representation.weight_decay", weight_decay, 0)
        check_number("representation.flow_patches", flow_patches, 2, whole=True)
        check_number("representation.flow_weight", flow_weight, 0)
        check_number("cutpaste.patch_weight", patch_weight, 0)
        self.backbone, self.flow, self.task = backbone, flow, task
        self.patch_weight, self.lr, self.backbone_lr, self.weight_decay = patch_weight, lr, backbone_lr, weight_decay
        self.flow_patches, self.flow_weight, self.top, self.min_distance = flow_patches, flow_weight, top, min_distance
        dim = len(flow.center)
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
        images = batch["image"].float() / 255
        if self.task == "none":
            with torch.no_grad():
                loss, features = 0.0, self.backbone.patch_features(self.backbone(images * 255))
        else:
            loss, features = self._pretext(images)
        patches = flatten_patches(features).float()
        drawn = self.flow_patches // self.trainer.world_size
        patches = patches[torch.randperm(len(patches), device=patches.device)[:drawn]]
        self.flow.track(gather(patches.detach()), 1.0 if self.global_step == 0 else TRACKING)
        patches = limit_gradient(patches, self.flow_weight)
        nll = negative_log_likelihood(*self.flow(patches)).mean() / patches.shape[1]
        self.log("train/nll", nll, prog_bar=True, sync_dist=True)
        loss = loss + nll
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Negative log-likelihood of every patch, uint8 (B, 3, H, W) to (B, h, w)."""
        features = self.backbone.patch_features(self.backbone(images))
        nll = negative_log_likelihood(*self.flow(flatten_patches(features).float()))
        return nll.view(len(images), *features.shape[-2:])

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        _, top = top_locations_batch(self.anomaly_maps(batch["image"]), self.top, self.min_distance)
        # A sigmoid inside the metric would saturate; the rank is all that AUROC needs.
        scores = image_scores(top)
        self.val_auroc.update(torch.sigmoid(scores / (10 * len(self.flow.center))), batch["label"])
        self.log("val/auroc", self.val_auroc, prog_bar=True)
