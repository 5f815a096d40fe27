"""CutPaste: the paper's baseline in its Table 1.

Li, Sohn, Yoon, Pfister: CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021 (the
paper's [20]). As there: a network tells normal images from pasted ones (binary, scar or 3-way), its learning rate under
a cosine, then a Gaussian density of the averaged deepest layer scores images, and GradCAM of that score makes the map.
The backbone is ours, pretrained, its batch normalisation fixed, and it trains for far fewer steps: by AdamW, since SGD
with the 0.03 given there diverges on it.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.data.cutpaste import TASKS, pretext_batch
from texture_ad.errors import UserError, check_number
from texture_ad.methods.base import Baseline, feature_dims, image_features
from texture_ad.models.backbone import Backbone


class CutPaste(Baseline, L.LightningModule):
    """
    Args:
        backbone: pretrained.
        size: see Baseline.
        task: "binary", "scar" or "3way".
        lr: AdamW's, above 0; weight_decay: at least 0; epochs: at least 1.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "cutpaste"
    uses_backbone = True
    sigma = 4.0

    def __init__(
        self,
        backbone: Backbone,
        size: int = 256,
        task: str = "3way",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        epochs: int = 4,
    ):
        super().__init__(size=size, task=task, lr=lr, weight_decay=weight_decay, epochs=epochs)
        if task not in TASKS:
            raise UserError(f"method.task={task}: expected one of {', '.join(TASKS)}")
        check_number("method.lr", lr, 0, above=True)
        check_number("method.weight_decay", weight_decay, 0)
        check_number("method.epochs", epochs, 1, whole=True)
        self.backbone = backbone
        dim = feature_dims(backbone)[-1]
        classes = 1 + len(TASKS[task])
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("precision", torch.eye(dim))

    def train(self, mode: bool = True):
        super().train(mode)
        self.backbone.eval()
        return self

    def configure_optimizers(self):
        s = self.settings
        tuned = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(tuned, s["lr"], weight_decay=s["weight_decay"])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        images, classes, _ = pretext_batch(batch["image"].float() / 255, self.settings["task"])
        loss = F.cross_entropy(self.head(image_features(self.backbone, images * 255)), classes)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def fit(self, loader) -> None:
        from sklearn.covariance import LedoitWolf

        device = self.mean.device
        x = torch.cat([image_features(self.backbone, b["image"].to(device)) for b in loader]).cpu().numpy()
        # Shrunk, for there may be fewer images than features.
        density = LedoitWolf().fit(x)
        self.mean.copy_(torch.from_numpy(density.location_))
        self.precision.copy_(torch.from_numpy(density.precision_))

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        deepest = self.backbone.in_slices(lambda part: self.backbone(part)[-1].float(), images)
        off = deepest.mean((2, 3)) - self.mean
        gradient = off @ self.precision
        scores = (gradient * off).sum(1) / 2
        # GradCAM: the score's gradient with respect to each channel's mean weighs the channel's activations.
        maps = torch.einsum("bc,bchw->bhw", gradient, deepest - self.mean[:, None, None]).relu()
        return scores, maps
