"""The comparison with anomalib: what its table says, and where anomalib is installed, that both compute the same."""

import importlib.util
import sys

import pytest
import torch
from helpers import baseline, composed, tiny_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from experiments.anomalib import BATCHES, ENGINES, differences, rows, with_theirs
from experiments.anomalib import main as compare
from experiments.anomalib_run import ImageBatches, make_model, score, use_plain_convolutions
from experiments.runs import Job
from texture_ad.errors import UserError
from texture_ad.evaluation.metrics import image_metrics, pixel_metrics

SIZE = 224  # pixels, at which anomalib's smoothing is ours


def run(texture, method, auroc, **values):
    costs = {"fit_seconds": None, "peak_memory_mb": 100.0, "pixel_auroc": 0.5, "aupro": None}
    return {"texture": texture, "method": method, "image_auroc": auroc, **costs, **values}


def test_without_anomalib_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["experiments.anomalib", f"root={tmp_path}"])
    with pytest.raises(UserError, match=r'^anomalib is not installed; in a checkout, pip install "\.\[compare\]"$'):
        compare()


def test_anomalibs_run_has_the_settings_of_ours(tmp_path):
    jobs = {("rug", m, "0"): Job(tmp_path / f"rug-{m}-seed0", [f"method={m}"]) for m in ("fusion", "patchcore")}
    found = with_theirs(jobs, "0.01")
    assert [method for _, method, _ in found] == ["fusion", "patchcore", "patchcore of anomalib"]
    ours, theirs = found["rug", "patchcore", "0"], found["rug", "patchcore of anomalib", "0"]
    assert ours.overrides == theirs.overrides == ["method=patchcore", "method.coreset=0.01"]
    assert (ours.module, theirs.module) == ("texture_ad.run", "experiments.anomalib_run")
    assert theirs.folder != ours.folder and found["rug", "fusion", "0"].overrides == ["method=fusion"]


def test_the_table_sets_anomalibs_figures_beside_ours():
    runs = [
        run("rug", "padim", 0.9, fit_seconds=2.0),
        run("rug", "padim", 0.8, fit_seconds=4.0),
        run("rug", "padim of anomalib", 0.82),
        run("mat", "padim", 0.7),
    ]
    engines = [f"{engine}, {count} at once" for engine in ENGINES for count in BATCHES]
    measured = dict(zip(engines, (0.05, 0.0125, 0.03, 0.025), strict=True))
    ours, theirs, other, mean = rows(runs, {"rug": {"padim": measured}})
    assert ours["image AUROC"] == [0.9, 0.8] and ours["training, s"] == [2.0, 4.0]
    columns = [f"processor ms an image, {name}" for name in engines]
    assert [ours[column] for column in columns] == [50, 12.5, 30, 25]
    assert theirs["training, s"] is None and theirs[columns[0]] is None and other["texture"] == "mat"
    assert (mean["texture"], mean["method"], mean["training, s"]) == ("mean of 2", "padim", None)
    assert mean["image AUROC"] == pytest.approx((0.85 + 0.7) / 2)
    assert differences(runs) == "- padim less padim of anomalib, image AUROC: mean +0.0300; rug +0.0300"


def test_the_default_network_can_be_traced_as_anomalib_does_it():
    network = tiny_backbone("efficientnet_lite0", ["block2", "block4"]).eval().network
    images = torch.rand(1, 3, 96, 96)
    before = network(images)
    use_plain_convolutions(network)
    traced = create_feature_extractor(network, [f"stages.{tap}" for tap in network.taps])
    for ours, theirs in zip(before, traced(images).values(), strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_anomalibs_model_computes_what_ours_does(method, tmp_path):
    """The same network, channels and patches give the same scores and maps: any difference is the method's."""
    pytest.importorskip("anomalib")
    from anomalib.engine import Engine

    torch.manual_seed(0)
    backbone = tiny_backbone("resnet18", ["layer1", "layer2", "layer3"]).eval()
    config = composed(f"method={method}", *(["method.coreset=1"] if method == "patchcore" else []))
    model = make_model(config, backbone, (SIZE, SIZE))
    ours = baseline(method, backbone, size=SIZE, **({"coreset": 1.0} if method == "patchcore" else {})).eval()
    if method == "padim":
        model.model.idx = ours.chosen
    images = (torch.rand(9, 3, 14, 14) * 255).byte().repeat_interleave(16, 2).repeat_interleave(16, 3)
    loader = [{"image": images[:3]}, {"image": images[3:6]}]
    ours.learn(loader)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet).fit(
        model, train_dataloaders=ImageBatches(loader)
    )
    model.eval()
    scores, maps = score(model, images[6:])
    found = ours(images[6:])
    torch.testing.assert_close(torch.from_numpy(scores), found.scores, rtol=0.01, atol=0.01)
    inside = (slice(None), slice(20, -20), slice(20, -20))  # away from the edges, where the smoothing differs
    limits = {"rtol": 0.01, "atol": 0.01} if method == "padim" else {"rtol": 0.2, "atol": 0.1}
    torch.testing.assert_close(torch.from_numpy(maps)[inside], found.anomaly_maps[inside], **limits)


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_metrics_are_those_of_anomalib(limit):
    pytest.importorskip("anomalib")
    from anomalib.data import ImageBatch
    from anomalib.metrics import AUPRO, AUROC, F1Max

    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(6, 40, 50, dtype=torch.bool)
    for number in range(4):
        masks[number, 5 : 15 + number, 10:20] = True
        masks[number, 25:30, 30 : 33 + number] = True
    maps = torch.rand(masks.shape, generator=generator) + 0.4 * masks
    labels, scores = masks.amax((1, 2)), torch.tensor([0.9, 0.3, 0.6, 0.7, 0.5, 0.2])
    image = torch.zeros(6, 3, 40, 50)
    batch = ImageBatch(image=image, anomaly_map=maps, gt_mask=masks, gt_label=labels, pred_score=scores)

    def theirs(metric):
        metric.update(batch)
        return metric.compute().item()

    ours = pixel_metrics(maps.numpy(), masks.numpy(), [0.5] * len(maps))
    pixels = ["anomaly_map", "gt_mask"]
    name = {0.05: "aupro_05", 0.3: "aupro"}[limit]
    assert ours[name] == pytest.approx(theirs(AUPRO(fields=pixels, fpr_limit=limit)), rel=5e-3)
    assert ours["pixel_auroc"] == pytest.approx(theirs(AUROC(fields=pixels)), rel=1e-4)
    found = image_metrics(scores.numpy(), labels.numpy(), 0.5)
    images = ["pred_score", "gt_label"]
    assert found["image_auroc"] == pytest.approx(theirs(AUROC(fields=images)), rel=1e-5)
    assert found["image_f1_max"] == pytest.approx(theirs(F1Max(fields=images)), rel=1e-5)
