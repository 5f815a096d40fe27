"""CutPaste as self-supervision: heads that tell pasted images, and pasted positions, from normal ones.

Li, Sohn, Yoon, Pfister: CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.data.cutpaste import TASKS, pretext_batch
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Count, NonNegative, checked

# Pasted positions are few; five to one brings the two classes to the same order.
PASTED_WEIGHT = 5.0


@checked
class Pretext(nn.Module):
    """Ask of whole images and of every position: was something pasted?

    Args:
        dim: C, of the patch features.
        task: which pasted images are told from normal ones; "none" leaves the backbone as it is.
        patch_weight: weight of the same question asked of every position.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(self, dim: Count, task: Literal["none", "binary", "scar", "3way"], patch_weight: NonNegative):
        super().__init__()
        self.task = task
        self.patch_weight = patch_weight
        self.image_head = nn.Linear(dim, 1 + len(TASKS.get(task, ())))
        self.patch_head = nn.Conv2d(dim, 1, 1)

    def forward(self, backbone: Backbone, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the losses of images, float (B, 3, H, W) in 0..1, and of pasted copies of them.

        Returns:
            The losses by name, their weighted sum, and the patch features (B, C, h, w) of the normal images.
        """
        flip = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        batch, classes, masks = pretext_batch(images, self.task)
        features = backbone.patch_features(backbone(batch * 255))
        image_loss = F.cross_entropy(self.image_head(features.amax((2, 3))), classes)
        target = F.adaptive_max_pool2d(masks[:, None].float(), features.shape[-2:])
        weight = target.new_tensor(PASTED_WEIGHT)
        patch_loss = F.binary_cross_entropy_with_logits(self.patch_head(features), target, pos_weight=weight)
        losses = {"train/pretext": image_loss, "train/patch": patch_loss}
        return losses, image_loss + self.patch_weight * patch_loss, features[: len(images)]
