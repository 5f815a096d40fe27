"""The baselines: each against an independent reference, and all of them through the real command lines."""

import contextlib
import io
import json
import os

import lightning as L
import numpy as np
import pytest
import torch
from helpers import arguments, baseline, composed, read_scores, scored_on_meta, tiny_backbone
from omegaconf import OmegaConf
from PIL import Image
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM as SklearnSVM
from torch.utils.data import DataLoader
from torchvision.transforms.functional import gaussian_blur

from texture_ad.deploy import export as exporting
from texture_ad.deploy.graph import MeasuringGraph, trace
from texture_ad.deploy.runtimes import FORMATS
from texture_ad.errors import ParameterError, UserError
from texture_ad.methods.base import smooth
from texture_ad.methods.baseline import image_features, nearest
from texture_ad.methods.patchcore import core_set
from texture_ad.methods.registry import METHODS, load, method_class
from texture_ad.models.resizing import resize_square

NAMES = [name for name in METHODS if name != "fusion"]
WITHOUT_MAP = {"one_nn", "oc_svm", "ganomaly"}


def textures(count, seed=0, size=64):
    """Smooth coloured noise, uint8 (count, 3, size, size)."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.interpolate(torch.rand(count, 3, size // 4, size // 4, generator=g), size)
    return (160 * noise + 40 * torch.rand(count, 3, size, size, generator=g)).to(torch.uint8)


@pytest.fixture(scope="module")
def loader():
    return [{"image": part} for part in textures(24).split(8)]


@pytest.fixture(scope="module")
def images():
    return textures(5, seed=1)


@pytest.fixture(scope="module")
def backbone():
    """What no method changes: its random weights take a quarter of a second."""
    torch.manual_seed(0)
    return tiny_backbone("resnet18", ["layer1", "layer2"]).eval()


def fitted(detector, loader):
    detector.eval().learn(loader)
    return detector


def measured(detector, images):
    """Image scores and patch maps (B, h, w) before anything is made of them."""
    scores, parts = detector.measure(images)
    return scores, None if parts is None else parts[:, 0]


@torch.no_grad()
def features(backbone, images):
    return image_features(backbone, images).numpy()


# --- against references -------------------------------------------------------------------------------


def test_nearest_is_scikit_learns():
    x = torch.randn(70, 12)
    bank = torch.randn(300, 12)
    x[0] = bank[7]
    distances, indices = nearest(x, bank, 4, chunk=32)
    expected = NearestNeighbors(n_neighbors=4).fit(bank).kneighbors(x)
    assert np.allclose(distances, expected[0], atol=1e-5) and np.array_equal(indices, expected[1])
    assert distances[0, 0] == 0 and nearest(x, bank[:2], 4)[0].shape == (70, 2)


def test_core_set_is_greedy_k_center():
    x = torch.randn(200, 8)
    found = core_set(x, 20, torch.Generator().manual_seed(3)).tolist()
    expected = found[:1]
    while len(expected) < 20:
        expected.append(int(torch.cdist(x, x[expected]).amin(1).argmax()))
    assert found == expected
    assert sorted(core_set(x[:9], 9, torch.Generator()).tolist()) == list(range(9))


def test_core_set_covers_wide_features_better_than_chance():
    torch.manual_seed(0)  # of 200 draws two are not
    x = torch.randn(400, 300) * torch.rand(400, 1) ** 4
    radius = torch.cdist(x, x[core_set(x, 40, torch.Generator().manual_seed(0))]).amin(1).max()
    assert radius < torch.cdist(x, x[:40]).amin(1).max()


def test_patchcore_by_its_equations(backbone, loader, images):
    detector = fitted(baseline("patchcore", backbone, coreset=0.2, neighbors=3), loader)
    assert len(detector.memory) == round(0.2 * 24 * 256)
    scores, maps = measured(detector, images)
    patches = detector.patches(images)[0].detach()
    distances, index = NearestNeighbors(n_neighbors=1).fit(detector.memory).kneighbors(patches)
    assert np.allclose(maps.detach().flatten(), distances[:, 0], atol=1e-5)
    for i in range(len(images)):
        position = i * 256 + int(distances[i * 256 : (i + 1) * 256].argmax())
        memory = detector.memory[index[position, 0]]
        around = NearestNeighbors(n_neighbors=3).fit(detector.memory).kneighbors(memory[None])[1][0]
        crowd = np.exp(np.linalg.norm(patches[position].numpy() - detector.memory[around].numpy(), axis=1)).sum()
        expected = (1 - np.exp(distances[position, 0]) / crowd) * distances[position, 0]
        assert float(scores[i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("options", [{"neighbors": 1, "coreset": 0.01}, {"coreset": 1e-6}])
def test_patchcore_without_a_crowd_scores_by_the_distance(backbone, loader, images, options):
    detector = fitted(baseline("patchcore", backbone, **options), loader)
    scores, maps = measured(detector, images)
    assert torch.equal(scores, maps.amax((1, 2))) and (scores > 0).all()


def test_patchcore_in_parts_is_as_large(backbone, loader):
    whole = fitted(baseline("patchcore", backbone), loader)
    parts = fitted(baseline("patchcore", backbone, max_patches=1000), loader)
    assert abs(len(parts.memory) - len(whole.memory)) <= 3


def test_padim_is_mahalanobis(backbone, loader, images):
    detector = fitted(baseline("padim", backbone, channels=10), loader)
    _, maps = measured(detector, images)
    with torch.no_grad():
        train = torch.cat([detector.features(b["image"])[0] for b in loader]).double().numpy()
        x = detector.features(images)[0].double().numpy()
    for position in (0, 17, 255):
        covariance = np.cov(train[:, position].T) + 0.01 * np.eye(10)
        for i in range(len(images)):
            expected = mahalanobis(x[i, position], train[:, position].mean(0), np.linalg.inv(covariance))
            assert float(maps[i].flatten()[position]) == pytest.approx(expected, rel=1e-3)


def test_padim_updated_is_padim_fitted_on_all_images(backbone, loader, images):
    updated = fitted(baseline("padim", backbone, channels=10), loader[:1])
    updated.update([batch["image"] for batch in loader[1:]])
    expected = fitted(baseline("padim", backbone, channels=10), loader)
    assert torch.allclose(updated(images).scores, expected(images).scores, rtol=1e-4)


def test_a_method_without_moments_cannot_be_updated(backbone, images):
    with pytest.raises(ParameterError, match=r"method=patchcore: can't be updated; fit it again on all images"):
        baseline("patchcore", backbone).update([images])


def test_padim_scores_the_maximum_of_its_smoothed_map(backbone, loader, images):
    found = fitted(baseline("padim", backbone, channels=10), loader)(images)
    assert torch.equal(found.scores, found.anomaly_maps.amax((1, 2)))


@pytest.mark.parametrize("sigma", [0.5, 4.0, 6.857])
def test_smoothing_along_rows_and_columns_is_torchvisions(sigma):
    maps = torch.rand(2, 60, 70)
    side = 2 * int(4 * sigma + 0.5) + 1
    expected = gaussian_blur(maps[:, None], [side, side], [sigma, sigma])[:, 0]
    torch.testing.assert_close(smooth(maps, sigma), expected)


def test_one_nn_is_scikit_learns(backbone, loader, images):
    detector = fitted(baseline("one_nn", backbone, components=6), loader)
    train = np.concatenate([features(backbone, b["image"]) for b in loader])
    scaler = StandardScaler().fit(train)
    pca = PCA(6, svd_solver="full").fit(scaler.transform(train))
    reduced = [pca.transform(scaler.transform(x)) for x in (train, features(backbone, images))]
    expected = NearestNeighbors(n_neighbors=1).fit(reduced[0]).kneighbors(reduced[1])[0][:, 0]
    # Its standard deviation is the sample's, with N - 1.
    assert np.allclose(detector(images).scores, expected * (23 / 24) ** 0.5, rtol=1e-3)
    assert torch.allclose(detector(loader[0]["image"]).scores, torch.zeros(8), atol=1e-4)


def test_oc_svm_is_scikit_learns(backbone, loader, images):
    detector = fitted(baseline("oc_svm", backbone, nu=0.3), loader)
    train = np.concatenate([features(backbone, b["image"]) for b in loader])
    mean = train.mean(0)
    scale = train.std(0, ddof=1)
    svm = SklearnSVM(gamma=1 / train.shape[1], nu=0.3).fit((train - mean) / scale)
    expected = -svm.decision_function((features(backbone, images) - mean) / scale)
    assert np.allclose(detector(images).scores, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["one_nn", "oc_svm", "cutpaste"])
def test_a_single_training_image_is_the_most_normal_one(backbone, images, name):
    detector = fitted(baseline(name, backbone), [{"image": images[:1]}])
    scores = detector(images).scores
    assert scores.isfinite().all() and (scores[0] < scores[1:]).all()


@pytest.mark.parametrize("name", ["one_nn", "oc_svm"])
def test_copies_of_a_training_image_leave_scores_their_scale(backbone, images, name):
    single, copies = (
        fitted(baseline(name, backbone), [{"image": images[:1].repeat(count, 1, 1, 1)}])(images).scores
        for count in (1, 7)
    )
    assert copies[0] < copies[1:].min() < copies[1:].max() < 100 * single.max()


@torch.no_grad()
def rectified_backbone(loader, still, margin):
    """Return a backbone as AlexNet's own weights make it: channels that are zero all over the training images.

    They answer to what lies this far beyond what those images hold.
    """
    torch.manual_seed(0)
    backbone = tiny_backbone("alexnet", ["conv1"]).eval()
    convolution = backbone.network.stages[0][0]
    convolution.bias[:still] += 10  # so that none is rectified meanwhile
    highest = torch.cat([backbone(batch["image"])[0] for batch in loader]).amax((0, 2, 3))
    convolution.bias[:still] -= highest[:still] + margin
    return backbone


@pytest.mark.parametrize("name", ["one_nn", "oc_svm"])
def test_a_channel_that_is_zero_in_all_training_images_does_not_decide_alone(loader, images, name):
    answering, still = (rectified_backbone(loader, 12, margin) for margin in (0.15, 10))
    seen, found = (torch.from_numpy(features(answering, x)) for x in (torch.cat([b["image"] for b in loader]), images))
    # The answers are weak: a sixteenth of what the other channels vary by.
    assert not seen[:, :12].any() and 0 < found[:, :12].max() < 0.06 * seen[:, 12:].std(0).mean()
    scores, expected = (fitted(baseline(name, backbone), loader)(images).scores for backbone in (answering, still))
    assert torch.allclose(scores, expected, rtol=0.01, atol=0.15)


def test_sparse_coding_finds_what_its_atoms_cant_explain(loader):
    detector = fitted(baseline("sparse_coding", num_atoms=48, nonzeros=3), loader)
    assert torch.allclose(detector.atoms.norm(dim=1), torch.ones(48), atol=1e-5)
    images = textures(2, seed=2)
    patches = detector.patches(images).view(2, 15, 15, 3, 8, 8)
    assert torch.allclose(patches[1, 2, 5], images[1, :, 8:16, 20:28] / 255 - 0.5)
    images[1, :, 20:36, 20:36] = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    found = detector(images)
    assert found.scores[1] > found.scores[0] and (found.positions[1] * 4 - 26).abs().max() < 16


def test_dsebm_reconstructs_by_the_energys_gradient():
    torch.manual_seed(0)
    detector = baseline("dsebm", widths=(4, 6, 8))
    x = torch.randn(3, 3, 44, 52, requires_grad=True)
    energy, reconstruction = detector.energy_and_reconstruction(x)
    gradient = torch.autograd.grad(energy.sum() * x[0].numel(), x)[0]
    assert torch.allclose(reconstruction, x - gradient, atol=1e-5)


def test_cutpaste_scores_by_mahalanobis_and_maps_by_gradcam(backbone, loader, images):
    detector = fitted(baseline("cutpaste", backbone), loader)
    scores, maps = measured(detector, images)
    with torch.enable_grad():
        deepest = backbone(images)[-1].detach().requires_grad_()
        off = deepest.mean((2, 3)) - detector.mean
        total = torch.einsum("bc,cd,bd->b", off, detector.precision, off) / 2
        gradient = torch.autograd.grad(total.sum(), deepest)[0]
    weights = gradient.sum((2, 3), keepdim=True)
    assert torch.allclose(
        maps, (weights * (deepest - detector.mean[:, None, None])).sum(1).relu(), rtol=1e-3, atol=1e-3
    )
    x = features(backbone, images)
    expected = [mahalanobis(v, detector.mean.numpy(), detector.precision.numpy()) ** 2 / 2 for v in x]
    assert np.allclose(scores.detach(), expected, rtol=1e-3)


@torch.no_grad()
def test_patch_svdd_encodes_an_image_as_it_does_its_patches(images):
    torch.manual_seed(0)
    detector = baseline("patch_svdd", stride=16).eval()
    x = detector.pixels(images)
    large, small = detector.embeddings(images)
    assert large.shape == (5, 13, 13, 64) and small.shape == (5, 15, 15, 64)
    for row, column in ((0, 0), (3, 7), (12, 12)):
        y = 16 * row
        z = 16 * column
        assert torch.allclose(large[:, row, column], detector.encode(x[:, :, y : y + 64, z : z + 64]), atol=1e-5)
        assert torch.allclose(small[:, row, column], detector.encode(x[:, :, y : y + 32, z : z + 32]), atol=1e-5)


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dsebm", {"widths": (8, 16), "epochs": 12, "lr": 5e-3}),
        ("ganomaly", {"input_size": 32, "width": 8, "epochs": 12, "lr": 2e-3}),
        ("cutpaste", {"task": "binary", "epochs": 8, "lr": 5e-3}),
    ],
)
def test_the_loss_falls(name, options, loader, images):
    torch.manual_seed(0)
    parts = [tiny_backbone("efficientnet_lite0", ["block2"], "pretrained")] if method_class(name).uses_backbone else []
    detector = baseline(name, *parts, **options)
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=options["epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
    )
    trainer.fit(detector, DataLoader(loader, batch_size=None))
    assert np.mean(losses.values[-3:]) < 0.9 * np.mean(losses.values[:3])
    scores, maps, *_ = fitted(detector, loader)(images)
    assert scores.shape == (5,) and scores.isfinite().all()
    assert (maps is None) if name in WITHOUT_MAP else maps.shape == (5, 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_one_graph(name, loader, tmp_path, monkeypatch):
    torch.manual_seed(0)
    parts = [tiny_backbone("resnet18", ["layer1", "layer2"])] if method_class(name).uses_backbone else []
    small = {"dsebm": {"widths": (4, 8)}, "sparse_coding": {"num_atoms": 16}, "patchcore": {"coreset": 0.01}}
    detector = baseline(name, *parts, **small.get(name, {}))
    if name == "dsebm":
        detector.scale.fill_(0.2)  # which training takes from its first batch
    detector = fitted(detector, loader).requires_grad_(False)
    opened = []  # the written file, as export opens it for its own comparison: to open it again takes seconds
    kind = FORMATS["torch_export"]
    watched = kind._replace(open=lambda *given: opened.append(kind.open(*given)) or opened[-1])
    monkeypatch.setattr(exporting, "FORMATS", {**FORMATS, "torch_export": watched})
    written = exporting.export(detector, tmp_path / "graph.pt2", "torch_export", list(textures(4, seed=2)))
    maps = () if name in WITHOUT_MAP else ("anomaly_maps", "masks")
    assert written.outputs == ("scores", "labels", *maps) and written.photographs == 8
    if os.environ.get("TEXTURE_AD_LONG"):  # ten seconds each; each is compared before it is written
        for kind in ("onnx", "openvino"):
            path = tmp_path / f"graph{FORMATS[kind].suffix}"
            assert exporting.export(detector, path, kind, list(textures(4, seed=2))).outputs == written.outputs
    for count in (1, 30):
        images = textures(count, seed=3)
        outputs = opened[0](images)
        for key, expected in zip(("scores", "anomaly_maps"), detector(images)[: 1 + bool(maps)], strict=False):
            found = outputs[key]
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "options"), [("dsebm", {"widths": (4, 8)}), ("ganomaly", {"width": 4}), ("patch_svdd", {})]
)
def test_openvino_measures_images_that_a_method_makes_smaller(name, options, tmp_path):
    with contextlib.redirect_stderr(io.StringIO()):  # absl's log handler closes what it finds there, pytest's own file
        for package in FORMATS["openvino"].packages:
            pytest.importorskip(package)
    torch.manual_seed(0)
    size = 320 if name == "patch_svdd" else 96
    detector = baseline(name, size=size, **options).eval().requires_grad_(False)
    if name == "dsebm":
        detector.scale.copy_(torch.tensor([0.1, 0.2, 0.3])[None, :, None, None])
    elif name == "patch_svdd":
        detector.normals_64 = torch.rand(3, 64)
        detector.normals_32 = torch.rand(3, 64)
    images = textures(2, size=size)
    expected = detector.measure(images)
    path, outputs = tmp_path / "graph.xml", MeasuringGraph.names(expected)
    FORMATS["openvino"].write(trace(MeasuringGraph(detector), (size, size)), outputs, path, "fp32")
    found = FORMATS["openvino"].open(path, outputs, 1, 1)(images)
    for output in outputs:
        right = getattr(expected, output)
        assert torch.allclose(found[output], right, rtol=1e-5, atol=1e-5 * float(right.abs().max())), output


@pytest.mark.parametrize(("height", "width", "side"), [(96, 96, 64), (100, 333, 64), (40, 50, 64), (64, 64, 64)])
def test_resizing_by_matrices_is_torchs(height, width, side):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    assert torch.allclose(resize_square(images, side), expected, rtol=0, atol=1e-6)


# --- through the command lines ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "wall"
    for part, images in (("train/good", textures(8)), ("test/good", textures(2, 5)), ("test/hole", textures(2, 6))):
        (root / part).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / part / f"{i}.png")
    (root / "ground_truth/hole").mkdir(parents=True)
    for i in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:20, 10:20] = 255
        Image.fromarray(mask).save(root / f"ground_truth/hole/{i}_mask.png")
    return root


QUICK = {
    "dsebm": ["method.epochs=1"],
    "ganomaly": ["method.epochs=1", "method.width=4"],
    "patch_svdd": ["method.epochs=1", "method.stride=32"],
    "cutpaste": ["method.epochs=1"],
    "sparse_coding": ["method.num_atoms=8", "method.epochs=1"],
}


def of_method(name, folder, run_dir):
    """Arguments of a quick run of a method; the settings of fusion's parts are left alone."""
    layers = "backbone.layers=[layer1,layer2]"
    return arguments(folder, run_dir, f"method={name}", layers, "data.eval_batch_size=32", *QUICK.get(name, []))


@pytest.mark.parametrize("name", NAMES)
def test_run_and_predict(name, folder, tmp_path, command, monkeypatch):
    run_dir = tmp_path / "run"
    output = tmp_path / "predictions"
    code, _, errors = command("run", *of_method(name, folder, run_dir))
    assert code == 0, errors
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["method"] == name and metrics["data_source"] == "folder wall"
    assert ("pixel_auroc" in metrics) is (name not in WITHOUT_MAP) and metrics["fit_seconds"] > 0
    assert len(list((run_dir / "overlays").rglob("*.jpg"))) == (0 if name in WITHOUT_MAP else 4)
    assert (run_dir / "scores.png").is_file() and not list(run_dir.rglob("*.partial"))
    code, _, errors = command(
        "predict",
        f"detector={run_dir / 'detector.pt'}",
        f"input={folder / 'test'}",
        f"output={output}",
        "batch_size=3",
    )
    assert code == 0, errors
    expected = read_scores(run_dir / "scores.csv")
    found = read_scores(output / "scores.csv")
    assert {f"test/{path}" for path in found} == expected.keys()
    for path, score in found.items():
        assert score == pytest.approx(expected[f"test/{path}"], rel=1e-5, abs=1e-5)
    content = torch.load(run_dir / "detector.pt", weights_only=True)
    assert content["method"] == name and content["geometry"]["size"] == [64, 64]
    scored_on_meta(load(run_dir / "detector.pt"), textures(2), monkeypatch)


def test_a_trained_baseline_is_not_trained_again(folder, tmp_path, command):
    for _ in range(2):
        code, _, errors = command("run", *of_method("ganomaly", folder, tmp_path), "pictures=false")
        assert code == 0, errors
        scores = (tmp_path / "scores.csv").read_text()
        before = (tmp_path / "stage1/last.ckpt").stat().st_mtime_ns
        assert scores and before
    other = command("run", *of_method("dsebm", folder, tmp_path))
    assert other[0] == 2 and "holds a run with method.name=ganomaly, not dsebm; give another run_dir" in other[2]


def test_a_finished_run_without_checkpoints_is_not_written_over_by_other_settings(folder, tmp_path, command):
    quick = [*of_method("sparse_coding", folder, tmp_path), "pictures=false"]
    for _ in range(2):
        code, _, errors = command("run", *quick)
        assert code == 0, errors
    before = (tmp_path / "detector.pt").read_bytes()
    code, _, errors = command("run", *quick, "seed=5")
    assert code == 2 and "holds a run with data.seed=0, not 5" in errors
    assert (tmp_path / "detector.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["padim", "dsebm"])
def test_settings_that_change_nothing_are_named(folder, tmp_path, command, name):
    useless = ["flow.blocks=2", "trainer.max_epochs=3"] + ["data.batch_size=3"] * (name == "padim")
    code, out, errors = command("run", *of_method(name, folder, tmp_path), "pictures=false", "seed=1", *useless)
    assert code == 0, errors
    told = [line for line in out.splitlines() if "nothing with" in line]
    assert len(told) == 1 and told[0].endswith(f"change nothing with method={name}")
    assert all(one.partition("=")[0] in told[0] for one in useless) and "seed" not in told[0]


def settings(name):
    return OmegaConf.to_container(composed(f"method={name}").method, resolve=True)


NUMBERS = [(name, key) for name in NAMES for key, value in settings(name).items() if isinstance(value, int | float)]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
@pytest.mark.parametrize("value", ["text", float("nan"), -2, True])
def test_every_number_is_checked(name, key, value, backbone):
    parts = [backbone] if method_class(name).uses_backbone else []
    with pytest.raises(ParameterError, match=f"^{key}=.*expected "):
        baseline(name, *parts, **{key: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_keeps_all_its_settings(name, backbone):
    parts = [backbone] if method_class(name).uses_backbone else []
    configured = {key: value for key, value in settings(name).items() if key not in ("_target_", "name")}
    assert baseline(name, *parts).settings == configured


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["method=cutpaste", "method.task=none"], "method.task=none: expected one of binary, scar, 3way"),
        (["method=dsebm", "method.criterion=mean"], "method.criterion=mean: expected one of energy, reconstruction"),
        (["method=patch_svdd", "method.stride=12"], "method.stride=12: expected one of 8, 16, 32"),
        (["method=ganomaly", "method.input_size=48"], "method.input_size=48: expected a power of two"),
        (["method.name=knn"], "method.name=knn: expected one of fusion, one_nn"),
        (["false_alarm_rate=2"], "false_alarm_rate=2: expected a number above 0 and at most 0.5"),
    ],
)
def test_bad_parameters(args, message, folder, tmp_path, command):
    rest = [a for a in of_method("fusion", folder, tmp_path) if not a.startswith("method=")]
    code, _, errors = command("run", *rest, *args)
    assert code == 2 and message in errors and "Traceback" not in errors


# --- files that someone else wrote --------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory, loader):
    torch.manual_seed(0)
    detector = fitted(baseline("one_nn", tiny_backbone("resnet18", ["layer1"])), loader)
    path = tmp_path_factory.mktemp("saved") / "detector.pt"
    detector.save(path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(version=99),
        lambda c: c.update(method="os"),
        lambda c: c.update(provenance=[1]),
        lambda c: c.pop("state"),
        lambda c: c["settings"].update(components=-1),
        lambda c: c["settings"].update(x=1),
        lambda c: c["geometry"].update(size=[64, 10**9]),
        lambda c: c["geometry"].update(size=[64]),
        lambda c: c["geometry"].update(size="64"),
        lambda c: c["geometry"].pop("size"),
        lambda c: c.pop("geometry"),
        lambda c: c["state"].update(mean=torch.zeros(3)),
        lambda c: c["state"].update(normals=torch.zeros(4, 3)),
        lambda c: c["state"].pop("projection"),
        lambda c: c["state"].update(normals=torch.zeros(1, 64).expand(10**9, 64)),
        lambda c: c.update(backbone=None),
    ],
)
def test_altered_files_are_refused(saved, tmp_path, change):
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "detector.pt")
    with pytest.raises(UserError, match=r"^detector=.*(damaged|expected texture_ad.detector)"):
        load(tmp_path / "detector.pt")


def test_sizes_that_a_file_claims_are_not_made(tmp_path):
    torch.manual_seed(0)
    baseline("dsebm", widths=(2, 2)).save(tmp_path / "detector.pt")
    content = torch.load(tmp_path / "detector.pt", weights_only=True)
    content["settings"]["widths"] = [10**6, 10**6]  # 64 TB of weights
    torch.save(content, tmp_path / "detector.pt")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "detector.pt")
