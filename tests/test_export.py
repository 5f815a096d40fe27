"""A detector as a file for other runtimes, and other runtimes as engines of predict: the same decisions or none."""

import math
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import read_rows, untrained_detector
from PIL import Image, ImageOps

from texture_ad.data.geometry import Geometry
from texture_ad.data.images import read_image, resize
from texture_ad.data.roi import Roi
from texture_ad.deploy import engines
from texture_ad.deploy import export as exporting
from texture_ad.deploy.graph import DecidingGraph, resize_images, trace
from texture_ad.deploy.runtimes import FORMATS
from texture_ad.errors import UserError
from texture_ad.methods.registry import load


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs of one size, so that they are a batch too; half of them with a spot."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(60, 180, (80, 90, 3), np.uint8)
        if i % 2:
            pixels[20:50, 30:60] = 20 * i
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def saved(photographs, tmp_path_factory):
    paths = sorted(photographs.iterdir())
    images = torch.stack([resize(read_image(path), (64, 64)) for path in paths])
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    # A small network: to export one of many layers takes far longer.
    detector = untrained_detector(64, paths, images, ("resnet18", ("layer1",)))
    detector.roi = Roi(torch.arange(64)[:, None].expand(64, 64) < 56)  # which every format has to keep
    scores = detector(images).scores
    detector.threshold.copy_(scores.sort().values[3:5].mean())
    detector.pixel_threshold.copy_(detector(images).anomaly_maps.flatten().quantile(0.9))
    detector.calibration_maxima = detector(images).anomaly_maps.amax((1, 2))
    maps = detector.fuse(detector.measure(detector.fill(images)).parts)
    detector.area_limits.copy_(torch.stack((maps.quantile(0.6), maps.max())))
    raised = (detector.raised(maps) != maps).flatten(1).any(1)
    assert 0 < raised.sum() < 8  # which the files have to do as well
    detector.save(path)
    return path


@pytest.fixture(scope="module")
def onnx_file(saved, photographs, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    target = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    exporting.export(load(saved), target, "onnx", pixels_of(photographs))
    return target


def spread(values):
    return float(values.max() - values.min())


def pixels_of(folder):
    return [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("shape", [(80, 90), (64, 64), (200, 64), (40, 500), (128, 240), (96, 128)])
def test_resizing_by_matrices_is_that_of_reading_a_file_bit_by_bit(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for size in ((64, 96), (96, 192)):  # at ratios such as 2 to 3 many values lie half-way
        assert torch.equal(resize_images(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0], resize(image, size))
    large = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), np.uint8)
    found = resize_images(torch.from_numpy(large).permute(2, 0, 1)[None], (64, 96))[0].int()
    assert (found - resize(large, (64, 96)).int()).abs().sum() <= 5


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("openvino", "fp32"), ("torch_export", "fp32")])
def test_the_file_decides_as_the_detector(saved, photographs, tmp_path, format, precision, command):
    for package in FORMATS[format].packages:
        pytest.importorskip(package)
    target = tmp_path / f"graph{FORMATS[format].suffix}"
    code, out, errors = command(
        "export", f"detector={saved}", f"format={format}", f"precision={precision}", f"output={target}"
    )
    assert code == 0, errors
    # Eight examples and an enlarged one, each once more with a defect.
    assert "scores, labels, anomaly_maps, masks" in out and "on 18 photographs" in out
    decision = load(saved).decision()
    told = f"{decision.threshold:.4g}, pixel threshold {decision.pixel_threshold:.4g}; {decision.promise()}"
    assert out.splitlines()[-1] == f"decision threshold {told}"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == (
        [".bin", ".xml"] if format == "openvino" else [target.suffix]
    )
    detector = load(saved)
    outputs = ("scores", "labels", "anomaly_maps", "masks")
    run = FORMATS[format].open(target, outputs, 1, 1)
    found = run(torch.stack(pixels_of(photographs)))
    expected = detector(detector.read(*sorted(photographs.iterdir())))
    near = 1e-2 if precision == "fp16" else 1e-3
    assert (found["scores"] - expected.scores).abs().max() <= near * spread(expected.scores)
    assert found["labels"].tolist() == (expected.scores > detector.threshold).tolist()
    assert 0 < sum(found["labels"]) < 8
    close = near * spread(expected.anomaly_maps)
    assert torch.allclose(found["anomaly_maps"], expected.anomaly_maps, atol=close)
    clear = (expected.anomaly_maps - detector.pixel_threshold).abs() > close
    marked = (expected.anomaly_maps > detector.pixel_threshold) & (expected.scores > detector.threshold)[:, None, None]
    assert torch.equal(found["masks"][clear] > 0, marked[clear])
    assert (marked != (expected.anomaly_maps > detector.pixel_threshold)).any()  # a normal photograph has no mask
    one = run(torch.stack(pixels_of(photographs)[:1]))
    assert (one["scores"] - found["scores"][:1]).abs().max() <= 1e-3 * spread(expected.scores)


def test_the_pages_lines_of_python_use_the_file(saved, onnx_file, photographs, tmp_path, monkeypatch, capsys):
    (tmp_path / "detector.onnx").write_bytes(onnx_file.read_bytes())
    page = (Path(__file__).parents[1] / "docs/export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    picture = Image.open(photographs / "1.png")
    picture.putalpha(Image.fromarray(np.tri(80, 90, dtype=np.uint8) * 200 + 55))  # as `predict` does, laid over black
    picture.save("photograph.png")
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], scope)
    detector = load(saved)
    expected = detector(detector.read("photograph.png"))
    assert scope["score"] == pytest.approx(float(expected.scores), rel=1e-4)
    assert ("anomalous" if scope["anomalous"] else "normal") in capsys.readouterr().out
    assert Image.open("mask.png").size == (64, 64) and scope["anomaly_map"].shape == (64, 64)


def test_a_few_pixels_of_the_maps_may_differ_and_no_score():
    maps = torch.arange(4000.0).reshape(1, 40, 100)
    expected = {"scores": torch.arange(10.0), "anomaly_maps": maps}
    other = maps.clone()
    other[0, 0, :4] += 1000
    few = exporting.largest_difference(expected | {"anomaly_maps": other}, expected)
    other[0, 0, 4] += 1000
    more = exporting.largest_difference(expected | {"anomaly_maps": other}, expected)
    assert (few, more) == (0, pytest.approx(1000 / 3999))
    assert exporting.largest_difference(expected | {"anomaly_maps": other}, expected, exporting.STRAY["fp16"]) == 0
    assert exporting.largest_difference(expected | {"anomaly_maps": maps / 0}, expected) == math.inf
    scores = expected["scores"] + torch.tensor([0.9] + 9 * [0.0])
    assert exporting.largest_difference(expected | {"scores": scores}, expected) == pytest.approx(0.1)


def test_of_a_small_map_every_pixel_counts():
    expected = {"scores": torch.arange(2.0), "anomaly_maps": torch.arange(100.0).reshape(1, 10, 10)}
    other = expected["anomaly_maps"].clone()
    other[0, 4, 4] += 99
    assert exporting.largest_difference(expected | {"anomaly_maps": other}, expected) == pytest.approx(1)


def test_labels_may_differ_only_where_the_tolerance_covers_both():
    scores = torch.tensor([0.0, 499.0, 501.0, 1000.0])
    expected = {"scores": scores, "labels": (scores > 500).byte()}
    for changed, found in (([], 0), ([1, 2], 0), ([0], 1), ([0, 2, 3], 2)):
        labels = expected["labels"].clone()
        labels[changed] = 1 - labels[changed]
        assert exporting.deciding_otherwise({"labels": labels}, expected, 500.0, 0.0015) == found
    labels = 1 - expected["labels"]
    assert exporting.deciding_otherwise({"labels": labels}, expected, 500.0, 0.0005) == 4


def test_a_detector_of_tiles_is_no_graph(saved, photographs, tmp_path):
    detector = load(saved)
    detector.set_geometry(Geometry((64, 64), 16, (130, 170)))
    with pytest.raises(UserError, match="format=torch_export: a detector with tiles joins their maps outside"):
        exporting.export(detector, tmp_path / "graph.pt2", "torch_export", pixels_of(photographs))


def test_a_file_that_says_something_else_is_refused(saved, photographs, tmp_path, monkeypatch):
    detector = load(saved)
    other = load(saved)
    other.whitening.mean += 0.02
    monkeypatch.setattr(exporting, "trace", lambda graph, size: trace(DecidingGraph(other, detector.decision()), size))
    with pytest.raises(UserError, match=r"precision=fp32: differs from the detector by .* nothing was written"):
        exporting.export(detector, tmp_path / "new/folder/graph.pt2", "torch_export", pixels_of(photographs))
    assert not list(tmp_path.iterdir())


def test_other_decisions_alone_are_refused_too(saved, photographs, tmp_path, monkeypatch):
    detector = load(saved)
    shifted = detector.decision(threshold=float(detector.threshold) + 0.3 * spread(detector(detector.examples).scores))
    monkeypatch.setattr(exporting, "trace", lambda graph, size: trace(DecidingGraph(detector, shifted), size))
    with pytest.raises(UserError, match=r"decides otherwise than the detector on \d+ of 16 photographs"):
        exporting.export(detector, tmp_path / "graph.pt2", "torch_export", pixels_of(photographs))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=tflite"], "format=tflite: expected one of onnx, openvino, torch_export"),
        (["format=onnx", "precision=int8"], "precision=int8: format=onnx has fp32, fp16"),
        (["images=/nowhere"], "images=/nowhere: no such file or folder"),
        (["format=torch_export", "output=a.bin"], "output=a.bin: expected a file named *.pt2 with format=torch_export"),
    ],
)
def test_bad_arguments_are_named(saved, command, arguments, message):
    code, _, errors = command("export", f"detector={saved}", *arguments)
    assert code == 2 and message in errors


UNWRITABLE = {
    "folder.onnx": "is a folder; give another file",
    "file/a.onnx": "can't be written (a file is in the way); give another file",
    "file/b/a.onnx": "can't be written (a file is in the way); give another file",
    "/proc/a/b/c.onnx": "can't be written (No such file or directory); give another file",
}


@pytest.mark.parametrize("place", UNWRITABLE)
def test_a_place_that_cant_be_written_is_told_before_the_work(tmp_path, command, place):
    """The detector, which is missing, would be told first if anything had been read."""
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / place
    for name, rest in (("export", ["format=onnx"]), ("update", [f"images={tmp_path}", "overwrite=true"])):
        code, _, errors = command(name, f"detector={tmp_path / 'missing.pt'}", f"output={target}", *rest)
        assert code == 2 and errors == f"error: output={target}: {UNWRITABLE[place]}\n"
    code, _, errors = command("export", f"detector={tmp_path / 'missing.pt'}", f"output={tmp_path / 'a/b/c.onnx'}")
    assert code == 2 and "no such file; give the detector.pt" in errors and not (tmp_path / "a").exists()


def test_a_folder_in_the_way_of_the_weights_is_told_before_the_work(tmp_path, command):
    pytest.importorskip("openvino")
    (tmp_path / "a.bin").mkdir()
    arguments = ("format=openvino", f"output={tmp_path / 'a.xml'}")
    code, _, errors = command("export", f"detector={tmp_path / 'missing.pt'}", *arguments)
    assert code == 2 and errors == f"error: output={tmp_path / 'a.bin'}: is a folder; give another file\n"


def test_int8_needs_photographs(saved, command, tmp_path):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    arguments = ("format=openvino", "precision=int8", f"output={tmp_path / 'a.xml'}")
    code, _, errors = command("export", f"detector={saved}", *arguments)
    assert code == 2 and "9 photographs, int8 needs 16; give images=FOLDER" in errors


def test_int8_quantises_the_convolutions_and_nothing_else(saved, photographs, tmp_path, command, monkeypatch):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    monkeypatch.setattr(exporting, "MAX_LOSS", 1)  # of a network without training
    (tmp_path / "photographs").mkdir()
    for path in photographs.iterdir():
        picture = Image.open(path)
        picture.save(tmp_path / f"photographs/{path.name}")
        ImageOps.mirror(picture).save(tmp_path / f"photographs/mirrored_{path.name}")
    target = tmp_path / "a.xml"
    arguments = ("format=openvino", "precision=int8", f"images={tmp_path / 'photographs'}", f"output={target}")
    code, out, errors = command("export", f"detector={saved}", *arguments)
    assert code == 0 and "on 32 photographs" in out and "AUROC lower by" in out, errors
    graph = ElementTree.parse(target)
    kinds = {layer.get("id"): layer.get("type") for layer in graph.iter("layer")}
    edges = [(kinds[edge.get("from-layer")], kinds[edge.get("to-layer")]) for edge in graph.iter("edge")]
    count = list(kinds.values()).count("Convolution")
    assert count == edges.count(("FakeQuantize", "Convolution")) == 5
    assert {kind for before, kind in edges if before == "FakeQuantize"} <= {"Convolution", "Add"}
    run = FORMATS["openvino"].open(target, ("scores",), 1, 1)
    found = run(torch.stack(pixels_of(photographs)))["scores"]
    expected = load(saved)(load(saved).read(*sorted(photographs.iterdir()))).scores
    assert 0 < (found - expected).abs().max() < spread(expected)


def test_int8_is_judged_by_the_auroc_that_it_loses_and_its_labels_are_counted(saved):
    scores = torch.cat((torch.linspace(0, 1, 20), torch.linspace(1.1, 2, 20)))  # normal ones, then defects
    expected = {"scores": scores, "labels": (scores > 1.05).byte()}
    decision = load(saved).decision()
    shifted = scores + torch.cat((torch.full((20,), 0.08), torch.zeros(20)))  # the order is as before
    judged = exporting._judged({"scores": shifted, "labels": (shifted > 1.05).byte()}, expected, decision, "int8")
    assert judged.loss == 0 and judged.others == 1 and judged.photographs == 40
    shifted[:3] = 1.5
    with pytest.raises(UserError, match="loses 0.0[0-9]* of the AUROC on 40 photographs"):
        exporting._judged({"scores": shifted, "labels": (shifted > 1.05).byte()}, expected, decision, "int8")


def test_a_detector_without_examples_asks_for_photographs(saved, photographs, tmp_path, command):
    detector = load(saved)
    detector.examples = detector.examples[:0]
    detector.save(tmp_path / "bare.pt")
    arguments = (f"detector={tmp_path / 'bare.pt'}", "format=torch_export")
    code, _, errors = command("export", *arguments)
    assert code == 2 and "holds no examples; give a folder" in errors
    code, _, errors = command("export", *arguments, f"images={photographs}")
    assert code == 0 and (tmp_path / "bare.pt2").is_file(), errors


# --- engines of predict -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(saved, tmp_path_factory):
    """The detector's file, with the file of an engine beside it."""
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("engine") / "detector.pt"
    file.write_bytes(saved.read_bytes())
    assert engines.use_engine(load(file), file, "onnx", 1).startswith("onnx")
    return file


def test_a_runtime_leaves_torch_one_thread(engine):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        detector = load(engine)
        engines.leave_cores(detector)
        assert torch.get_num_threads() == 2
        engines.use_engine(detector, engine, "onnx", 1)
        engines.leave_cores(detector)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_file_has_a_name_in_a_checkout_that_is_not_installed(engine, monkeypatch):
    before = engines.engine_file(engine, "onnx")

    def missing(package):
        if package == "texture_ad":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(engines, "version", missing)
    assert engines.engine_file(engine, "onnx") == before


def test_a_folder_that_cant_be_written_is_told_before_the_work_and_left_to_torch(saved, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(engines, "trace", lambda *_: pytest.fail("traced"))
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())
    (tmp_path / "detector.pt.engines").write_text("in the way")
    told = r"engine=onnx: can't be made \(.*a file is in the way.*\); use engine=torch"
    with pytest.raises(UserError, match=told):
        engines.use_engine(load(file), file, "onnx", 1)
    assert re.match(f"torch, since {told}", engines.use_engine(load(file), file, "auto", engines.MANY))


@pytest.fixture
def made(engine, monkeypatch):
    """The file of the engine, of which a copy stands for each that would be made: that takes long."""
    path = engines.engine_file(engine, "onnx")

    def write(program, outputs, target, precision):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)

    monkeypatch.setattr(engines, "FORMATS", {**FORMATS, "onnx": FORMATS["onnx"]._replace(write=write)})
    monkeypatch.setattr(engines, "trace", lambda *_: None)
    return path


def test_an_engine_is_made_once_and_decides_as_torch(saved, made, photographs, tmp_path, command):
    outputs = {}
    before = torch.get_num_threads()
    for number, name in enumerate(("torch", "onnx", "onnx")):
        output = tmp_path / str(number)
        torch.set_num_threads(2)
        code, outputs[number], errors = command(
            "predict", f"detector={saved}", f"input={photographs}", f"output={output}", f"engine={name}"
        )
        assert code == 0, errors
        assert torch.get_num_threads() == (2 if name == "torch" else 1)
    torch.set_num_threads(before)
    assert "engine   torch" in outputs[0] and "is made from" in outputs[1] and "is made from" not in outputs[2]
    expected, first, second = (read_rows(tmp_path / str(number) / "scores.csv") for number in range(3))
    assert first == second and {row["anomalous"] for row in expected} == {"0", "1"}
    for found, right in zip(first, expected, strict=True):
        assert found["anomalous"] == right["anomalous"]
        assert float(found["score"]) == pytest.approx(float(right["score"]), rel=1e-3, abs=1e-3)


def test_a_service_uses_an_engine_that_is_there(saved, engine, tmp_path, monkeypatch, command):
    server = pytest.importorskip("texture_ad.deploy.service.server")
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())
    served = []
    monkeypatch.setattr(server, "serve", lambda detector, *_: served.append(detector))
    monkeypatch.setattr(engines, "FASTEST", ("onnx",))
    faster = "torch; engine=onnx is faster"
    before = torch.get_num_threads()
    for path, name, told in ((file, "auto", faster), (engine, "onnx", "onnx, kept"), (engine, "auto", "onnx, kept")):
        torch.set_num_threads(2)
        code, out, errors = command("serve", f"detector={path}", f"engine={name}")
        assert code == 0, errors
        assert f"engine   {told}" in out and torch.get_num_threads() == (1 if "kept" in told else 2)
    torch.set_num_threads(before)
    torch_alone, *others = served
    expected = torch_alone(torch_alone.examples).scores
    for detector in others:
        assert "measure" in vars(detector) and "measure" not in vars(torch_alone)
        assert torch.allclose(detector(detector.examples).scores, expected, rtol=1e-3, atol=1e-3 * spread(expected))
    assert command("serve", f"detector={file}", "engine=tflite")[0] == 2


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_an_engine_takes_the_images_of_a_batch_apart(engine, name, monkeypatch):
    for package in FORMATS[name].packages:
        pytest.importorskip(package)
    calls = []
    opening = FORMATS[name].open

    def watched(*arguments):
        run = opening(*arguments)
        return lambda images: calls.append((arguments[-1], len(images))) or run(images)

    monkeypatch.setattr(engines, "FORMATS", {**FORMATS, name: FORMATS[name]._replace(open=watched)})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        detector = load(engine)
        images = detector.examples[torch.arange(7) % len(detector.examples)]
        expected = detector(images)
        assert engines.use_engine(detector, engine, name, 1).startswith(name)
        calls.clear()
        for found in (detector(images), detector(images)):  # the second opens nothing
            assert torch.allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
            maps = expected.anomaly_maps
            assert torch.allclose(found.anomaly_maps, maps, atol=1e-3 * spread(maps))
        assert calls == [(2, 1)] * 14
        assert torch.allclose(detector(images[3:4]).scores, expected.scores[3:4], rtol=1e-3, atol=1e-3)
        assert calls[-1] == (1, 1)
    finally:
        torch.set_num_threads(before)


def test_a_damaged_engine_is_made_anew(saved, made, tmp_path, capsys):
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())
    damaged = engines.engine_file(file, "onnx")
    damaged.parent.mkdir()
    damaged.write_bytes(made.read_bytes()[:1000])
    detector = load(file)
    assert engines.use_engine(detector, file, "onnx", 1).startswith("onnx") and "measure" in vars(detector)
    assert "damaged" in capsys.readouterr().err and damaged.stat().st_size > 1000


def test_an_engine_measures_the_tiles_of_pictures(engine, made, tmp_path):
    detector = load(engine)
    detector.set_geometry(Geometry((64, 64), 16, (130, 170)))
    detector.roi = None  # of another size
    # A tile is measured as an image of its size: the engine that was made for these takes the place of another.
    pixels = np.random.default_rng(0).integers(0, 256, (130, 170, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    detector.save(tmp_path / "detector.pt")
    found = load(tmp_path / "detector.pt")
    assert engines.use_engine(found, tmp_path / "detector.pt", "onnx", 1).startswith("onnx")
    expected = detector(detector.read(tmp_path / "picture.png"))
    again = found(found.read(tmp_path / "picture.png"))
    assert "measure" in vars(found) and again.anomaly_maps.shape == (1, 130, 170)
    assert torch.allclose(again.scores, expected.scores, rtol=1e-3, atol=1e-3)
    assert torch.allclose(again.anomaly_maps, expected.anomaly_maps, atol=1e-3 * spread(expected.anomaly_maps))


def test_an_engine_with_other_decisions_is_refused_and_auto_stays_with_torch(saved, made, tmp_path, monkeypatch):
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())
    onnx = engines.FORMATS["onnx"]

    def opened(*arguments):
        run = onnx.open(*arguments)
        return lambda images: {name: 1.5 * value for name, value in run(images).items()}

    monkeypatch.setattr(engines, "FORMATS", {"onnx": onnx._replace(open=opened)})
    monkeypatch.setattr(engines, "FASTEST", ("onnx",))
    detector = load(file)
    line = engines.use_engine(detector, file, "auto", 10**6)
    assert re.fullmatch(
        r"torch, since engine=onnx: [1-9]\d* of 16 decisions differ, scores by .*; use engine=torch", line
    )
    assert not list(tmp_path.glob("*.engines/*"))
    assert torch.equal(detector(detector.examples).scores, load(saved)(detector.examples).scores)
    assert engines.use_engine(detector, file, "auto", engines.FEW - 1) == "torch"


def test_an_engine_that_was_never_compared_is_not_used_later(saved, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engines, "_compare", interrupted)
        engines.use_engine(load(file), file, "openvino", 1)
    assert not list(engines.engine_file(file, "openvino").parent.iterdir())
    detector = load(file)
    engines.use_engine(detector, file, "openvino", 1)
    path = engines.engine_file(file, "openvino")
    assert sorted(path.parent.iterdir()) == [path.with_suffix(".bin"), path]
    expected = load(file)(detector.examples).scores
    assert torch.allclose(detector(detector.examples).scores, expected, rtol=1e-3, atol=1e-3)


def test_an_engine_that_fails_in_its_comparison_leaves_torch_at_work(saved, made, tmp_path, monkeypatch):
    file = tmp_path / "detector.pt"
    file.write_bytes(saved.read_bytes())

    def fails(images):
        raise RuntimeError("out of registers")

    broken = engines.FORMATS["onnx"]._replace(open=lambda path, outputs, threads, calls: fails)
    monkeypatch.setattr(engines, "FORMATS", {"onnx": broken})
    monkeypatch.setattr(engines, "FASTEST", ("onnx",))
    detector = load(file)
    line = engines.use_engine(detector, file, "auto", 10**6)
    assert line == "torch, since engine=onnx: can't be made (out of registers); use engine=torch"
    assert torch.equal(detector(detector.examples).scores, load(saved)(detector.examples).scores)
