"""The region of interest: what lies outside changes nothing that is learnt, scored or drawn; what lies inside does."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from helpers import arguments, baseline, make, read_rows, tiny_backbone, untrained_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from texture_ad.data.geometry import Geometry, Window, tiles
from texture_ad.data.images import resize
from texture_ad.data.roi import Roi, gather_pixels, mirror_index, read_roi
from texture_ad.data.synthetic import synthetic_defects
from texture_ad.deploy.graph import DecidingGraph, trace
from texture_ad.deploy.outputs import Wanted
from texture_ad.deploy.scorer import Scorer
from texture_ad.deploy.watch import watch
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.metrics import pixel_metrics
from texture_ad.methods.base import Measurement
from texture_ad.methods.registry import load
from texture_ad.reporting.panels import shown_region

BOX = [20, 12, 60, 90]  # of pictures of 80 x 100 pixels
INSIDE = np.zeros((80, 100), bool)
INSIDE[20:60, 12:90] = True
SHALLOW = ("resnet18", ("layer1",))  # a backbone that costs little
masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any)


@given(masks)
def test_pixels_inside_stay_and_all_others_come_from_inside(inside):
    index = mirror_index(torch.from_numpy(inside))
    numbers = torch.arange(inside.size).view(inside.shape)
    filled = gather_pixels(numbers, index)
    assert (filled[inside] == numbers[inside]).all()
    assert inside.ravel()[filled.numpy()].all()
    assert torch.equal(gather_pixels(filled, index), filled)


def test_a_straight_edge_is_a_mirror():
    inside = torch.arange(10) >= 4
    assert gather_pixels(torch.arange(10)[None], mirror_index(inside[None])).tolist() == [[8, 7, 6, 5, *range(4, 10)]]


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([(32, 40), (80, 100), (101, 131), (33, 97)]), st.integers(0, 99))
def test_no_pixel_outside_reaches_a_scaled_one_inside(size, seed):
    roi = read_roi(BOX, (80, 100), size)
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 256, (80, 100, 3), np.uint8)
    other = np.where(INSIDE[..., None], picture, generator.integers(0, 256, picture.shape, np.uint8))
    assert torch.equal(roi.fill(resize(picture, size)), roi.fill(resize(other, size)))
    assert not torch.equal(resize(picture, size), resize(other, size))


def test_what_is_measured_outside_shifts_no_score_inside():
    detector = untrained_detector(80)
    detector.roi = read_roi(BOX, (80, 100), (80, 80))
    measured = detector.measure(torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8))
    counting = detector.counting(measured.parts.shape[-2:])
    other = measured.parts.where(counting, 100 * torch.rand_like(measured.parts))
    one, two = (detector.predict(measured._replace(parts=parts), (80, 80)) for parts in (measured.parts, other))
    assert torch.equal(one.scores, two.scores) and torch.equal(one.anomaly_maps, two.anomaly_maps)


def test_the_floor_is_that_of_maps_as_they_are_predicted():
    """What lies outside, such as the 0 of tiles that were never measured, is no normal position's value."""
    detector = untrained_detector(80)
    detector.roi = read_roi(BOX, (80, 100), (80, 80))
    counting, index = detector.roi.positions((20, 20), (80, 80))
    parts = torch.where(counting, 50 + torch.rand(2, 4, 20, 20, generator=torch.Generator().manual_seed(0)), 0.0)
    detector.calibrate_on([(Measurement(None, parts), (80, 80))], 0.5, 0.5)
    expected = detector.fuse(gather_pixels(parts, index))[:, counting].median()
    assert float(detector.map_floor) == pytest.approx(float(expected), rel=1e-5)
    assert float(detector.map_floor) != pytest.approx(float(detector.fuse(parts)[:, counting].median()), rel=0.1)


def test_outside_a_map_holds_no_more_than_what_is_typical():
    detector = untrained_detector(80)
    detector.roi = read_roi(BOX, (80, 100), (80, 80))
    parts = torch.full((1, 4, 20, 20), 40.0) + torch.rand(1, 4, 20, 20)
    for floor in (-3.0, 1e6, float("nan")):
        detector.map_floor.fill_(floor)
        maps = detector.predict(Measurement(None, parts), (80, 80)).anomaly_maps[0]
        inside, outside = maps[detector.roi.inside], maps[~detector.roi.inside]
        assert len(outside.unique()) == 1 and inside.min() > 0
        assert outside[0] == floor if floor == -3 else outside[0] <= inside.min()


def test_a_mask_a_box_and_a_border_say_the_same(tmp_path):
    Image.fromarray(INSIDE).save(tmp_path / "roi.png")
    box = read_roi(BOX, (80, 100), (40, 50)).inside
    assert torch.equal(read_roi(str(tmp_path / "roi.png"), (80, 100), (40, 50)).inside, box)
    border = read_roi(10, (80, 100), (80, 100)).inside
    assert torch.equal(border, read_roi([10, 10, 70, 90], (80, 100), (80, 100)).inside) and border.sum() == 60 * 80
    assert read_roi(None, (80, 100), (40, 50)) is None


@pytest.mark.parametrize(
    ("area", "message"),
    [
        (40, "roi=40: expected an integer from 0 to 39"),
        ([0, 0, 90, 50], r"roi=\[0, 0, 90, 50\]: expected a box within pictures of 100 x 80 pixels"),
        ([10, 10, 5, 50], "expected a box within"),
        ([1, 2, 3], "expected a mask's file"),
        (True, "expected a mask's file"),
        (0.5, "expected a mask's file"),
        ("nowhere.png", "roi=nowhere.png: no such file"),
        ([5, 5, 6, 6], "leaves nothing of a picture"),
    ],
)
def test_another_region_is_refused_in_one_line(area, message):
    with pytest.raises(ParameterError, match=message):
        read_roi(area, (80, 100), (40, 50))


@given(masks, st.integers(1, 9), st.integers(1, 9))
def test_positions_that_count_lie_inside_and_there_is_one(inside, height, width):
    counting, index = Roi(torch.from_numpy(inside)).positions((height, width), inside.shape)
    assert counting.any() and counting.flatten()[index].all()


def test_a_position_counts_where_half_of_its_cell_does():
    columns = torch.arange(32)[None].expand(32, 32)
    for edge, expected in ((11, [1, 0, 0, 0]), (12, [1, 1, 0, 0]), (24, [1, 1, 1, 0]), (2, [1, 0, 0, 0])):
        counting, _ = Roi(columns < edge).positions((4, 4), (32, 32))
        assert counting.int().tolist() == [expected] * 4
    beyond, _ = Roi(columns < 32).positions((2, 2), (40, 48))  # the map covers more than the picture
    assert beyond.tolist() == [[True, False], [True, False]]


def test_a_picture_is_dark_outside():
    image = torch.full((3, 80, 100), 200, dtype=torch.uint8)
    shown = Roi(torch.from_numpy(INSIDE)).shade(image)
    assert shown.dtype == torch.uint8 and (shown[:, INSIDE] == 200).all() and (shown[:, ~INSIDE] == 70).all()


def painted(picture, top, left):
    """Return a picture with a white square of 14 pixels."""
    other = picture.clone() if isinstance(picture, torch.Tensor) else picture.copy()
    other[..., top : top + 14, left : left + 14] = 255
    return other


@pytest.fixture(scope="module")
def picture():
    return torch.randint(90, 140, (1, 3, 80, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def detectors():
    """Return a fusion, and a baseline whose own image score comes from its highest position."""
    fusion = untrained_detector(backbone=SHALLOW, sigma=4.0, dictionary_weight=0.0)
    patchcore = baseline("patchcore", tiny_backbone(*SHALLOW).eval())
    patchcore.memory = torch.randn(30, patchcore.memory.shape[1])
    return [fusion, patchcore.eval()]


@pytest.mark.parametrize("number", [0, 1])
def test_a_defect_outside_changes_no_digit_and_one_inside_does(picture, number):
    detector = detectors()[number]
    detector.set_geometry(Geometry((80, 100)))
    detector.roi = read_roi(BOX, (80, 100), (80, 100))
    own, outside, inside = (detector(image) for image in (picture, painted(picture, 2, 2), painted(picture, 35, 40)))
    assert all(torch.equal(a, b) for a, b in zip(own[:3], outside[:3], strict=True))
    assert inside.scores > own.scores
    rows, columns = inside.positions[0].unbind(1)
    h, w = inside.grid
    assert INSIDE[((rows + 0.5) * 80 / h).long(), ((columns + 0.5) * 100 / w).long()][rows >= 0].all()
    # Outside, a map holds its lowest value.
    maps = inside.anomaly_maps[0].numpy()
    assert maps[~INSIDE].max() == maps.min() and maps.argmax() in np.flatnonzero(INSIDE)


@torch.no_grad()
def test_the_exported_graph_leaves_out_the_same(picture):
    _, detector = detectors()
    detector.calibrate(torch.rand(4), torch.rand(4), 0.05, 0.2)
    detector.set_geometry(Geometry((80, 100)))
    detector.roi = read_roi(BOX, (80, 100), (80, 100))
    graph = trace(DecidingGraph(detector, detector.decision()), (80, 100)).module()
    both = torch.cat((painted(picture, 2, 2), painted(picture, 35, 40), picture))
    scores, _, maps, _ = graph(both)
    expected = detector(both)
    torch.testing.assert_close(scores, expected.scores)
    torch.testing.assert_close(maps, expected.anomaly_maps)
    assert scores[0] == pytest.approx(float(scores[2])) and scores[1] > scores[0]


def test_tiles_leave_out_what_lies_outside_of_the_whole_picture(picture, tmp_path):
    detector = untrained_detector(size=32, backbone=SHALLOW, sigma=4.0)
    detector.set_geometry(tiles((32, 32), 8, [(80, 100)]))
    detector.roi = read_roi(BOX, (80, 100), detector.geometry.view)
    for name, pixels in (("own", picture), ("out", painted(picture, 64, 80)), ("in", painted(picture, 30, 40))):
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    detector.save(tmp_path / "detector.pt")
    detector = load(tmp_path / "detector.pt")
    assert torch.equal(detector.roi.inside, torch.from_numpy(INSIDE))
    measured = []
    detector.measure_tiles = lambda batch, own=detector.measure_tiles: measured.append(len(batch)) or own(batch)
    own, outside, inside = (detector(detector.read(tmp_path / f"{name}.png")) for name in ("own", "out", "in"))
    assert all(torch.equal(a, b) for a, b in zip(own[:3], outside[:3], strict=True)) and inside.scores > own.scores
    assert inside.anomaly_maps[0].numpy()[~INSIDE].max() == inside.anomaly_maps.min()
    # A row of tiles that lies outside altogether is not even measured.
    detector.roi = read_roi([0, 0, 20, 20], (80, 100), (80, 100))
    detector(detector.read(tmp_path / "own.png"))
    assert measured[-1] < measured[0]
    detector.roi = read_roi([41, 0, 42, 100], (80, 100), (80, 100))
    Image.fromarray(np.zeros((4, 40, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small\.png: so small that nothing of it lies in the region of interest"):
        detector(detector.read(tmp_path / "small.png"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "detector.pt"
    untrained_detector(backbone=SHALLOW).save(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "content", [torch.ones(8, 8, dtype=torch.bool), torch.zeros(64, 64).bool(), [[1]], torch.ones(64, 64)]
)
def test_the_region_of_a_strange_file_is_checked(saved, content, tmp_path):
    torch.save(saved | {"roi": content}, tmp_path / "detector.pt")
    with pytest.raises(ParameterError, match=r"detector\.pt"):
        load(tmp_path / "detector.pt")


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 999))
def test_synthetic_defects_lie_inside(seed):
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:8, :8] = True
    images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    _, found = synthetic_defects(images, torch.Generator().manual_seed(seed), inside)
    assert found.any((1, 2)).all() and not found[:, ~inside].any()


def test_pixel_metrics_are_those_of_the_pixels_that_count():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(4, 80, 100)).astype(np.float32)
    truth = np.zeros((4, 80, 100), bool)
    truth[:2, 30:45, 5:30] = True
    maps[truth] += 1
    counted = [np.ma.array(mask, mask=~INSIDE) for mask in truth]
    box = (slice(None), slice(20, 60), slice(12, 90))
    assert pixel_metrics(maps, counted, [1.0] * 4) == pixel_metrics(maps[box], truth[box], [1.0] * 4)


def photographs(root, outside):
    """Return a folder of 16-bit photographs of 80 x 100 pixels, alike but for what lies outside BOX."""
    for name, count in (("train/good", 10), ("test/good", 2), ("test/spot", 2), ("ground_truth/spot", 2)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(2000, 3000, INSIDE.shape, np.uint16)
            mask = np.zeros(INSIDE.shape, bool)
            if "spot" in name:
                mask[30:44, 30 + 20 * i : 50 + 20 * i] = True
                pixels[mask] = 3500
            pixels[~INSIDE] = np.random.default_rng(outside).integers(0, 65536 - i, (~INSIDE).sum())
            Image.fromarray(mask if "truth" in name else pixels).save(root / name / f"{i}.png")
    return root


def test_a_run_learns_and_says_the_same_whatever_lies_outside(tmp_path, command):
    runs = []
    for outside in (1, 2):
        data, run = photographs(tmp_path / f"photographs{outside}", outside), tmp_path / f"run{outside}"
        options = [f"data.roi={BOX}".replace(" ", ""), "method=padim", "pictures=false", "logger=none"]
        code, _, errors = command("run", *arguments(data, run, *options))
        assert code == 0, errors
        runs.append((load(run / "detector.pt"), json.loads((run / "metrics.json").read_text())))
    (first, told), (second, also_told) = runs
    assert first.reading == second.reading
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for key in ("image_auroc", "pixel_auroc", "aupro", "synthetic_auroc", "seg_f1"):
        assert told[key] == also_told[key]
    assert told["image_auroc"] == 1.0 and told["pixel_auroc"] > 0.8


def test_a_window_knows_which_of_its_pixels_count():
    roi = Roi(torch.from_numpy(INSIDE))
    assert torch.equal(roi.at((80, 100)), roi.inside)
    assert torch.equal(roi.at((80, 100), Window(10, 80, 20, 30))[:, :20], roi.inside[10:30, 80:])
    assert not roi.at((80, 100), Window(10, 80, 20, 30))[:, 20:].any()
    assert torch.equal(roi.at((160, 200))[::2, ::2], roi.inside)
    everything = Roi(torch.ones(80, 100, dtype=torch.bool))
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[:10, :20] = True  # beyond the picture's edges nothing counts
    assert torch.equal(everything.at((80, 100), Window(70, 80, 20, 30)), expected)


def test_tiles_that_are_learnt_are_the_same_whatever_lies_outside(tmp_path):
    given = []
    for outside in (1, 2):
        root = photographs(tmp_path / f"photographs{outside}", outside)
        data = make("data", ["data=folder"], root=str(root), tile=32, overlap=8, batch_size=99, roi=BOX)
        data.setup()
        loaders = (data.normal_dataloader(), data.calibration_dataloader(), data.val_dataloader())
        given.append([batch["image"] for loader in loaders for batch in loader] + list(data.training_views()))
        # Of 3 rows of 4 tiles, the last row begins at pixel 48 and the last column at 68: all of them hold something.
        assert data.num_originals == 8 * 12 and data.interest.inside.sum() == INSIDE.sum()
    assert all(torch.equal(first, second) for first, second in zip(*given, strict=True))


@pytest.mark.parametrize("tile", [None, 32])
def test_a_normal_image_of_one_colour_inside_is_left_out_where_that_is_asked_for(tmp_path, tile):
    flat = photographs(tmp_path, 0) / "train/good/3.png"
    Image.fromarray(np.where(INSIDE, 2500, np.asarray(Image.open(flat))).astype(np.uint16)).save(flat)
    options = {"root": str(tmp_path), "size": 64, "tile": tile, "overlap": 8, "roi": BOX}
    with pytest.raises(UserError, match=r"3\.png: one colour within data\.roi, nothing to learn from"):
        make("data", ["data=folder"], **options).setup()
    data = make("data", ["data=folder"], unusable="skip", **options)
    data.setup()
    assert data.left_out["unusable images"] == [flat.relative_to(tmp_path)]
    assert len(data.training_pictures) + len(data.calibration_samples) == 9


def test_the_fingerprint_covers_masks_sides_and_the_region(tmp_path):
    def fingerprint(**options):
        data = make("data", ["data=folder"], root=str(tmp_path), size=64, **options)
        data.setup()
        return data.fingerprint

    photographs(tmp_path, 0)
    Image.fromarray(INSIDE).save(tmp_path / "roi.png")
    table = "path,label,split\n" + "".join(f"train/good/{i}.png,good,{{{i}}}\n" for i in range(10))
    found = [fingerprint(), fingerprint(roi=f"{tmp_path}/roi.png")]
    Image.fromarray(~INSIDE).save(tmp_path / "roi.png")
    found.append(fingerprint(roi=f"{tmp_path}/roi.png"))
    Image.fromarray(INSIDE).save(tmp_path / "ground_truth/spot/0.png")
    found.append(fingerprint())
    for number in (7, 8):
        (tmp_path / "images.csv").write_text(table.format(*["train"] * number, *["test"] * (10 - number)))
        found.append(fingerprint(table=f"{tmp_path}/images.csv"))
    assert len(set(found)) == len(found) == 6


def test_a_watched_folder_leaves_out_what_lies_outside(with_roi, tmp_path, monkeypatch):
    # A signal would end the tests where another library has put its handlers back meanwhile.
    handlers = {}
    own = SimpleNamespace(SIGINT=signal.SIGINT, SIGTERM=signal.SIGTERM, signal=handlers.__setitem__)
    monkeypatch.setattr("texture_ad.deploy.watch.signal", own)
    told = []

    def tell(result):
        told.append(result["name"])
        if len(told) == 3:
            handlers[signal.SIGTERM](signal.SIGTERM, None)

    scorer = Scorer(with_roi.detector, with_roi.folder, tmp_path, wanted=Wanted(pictures=True, masks=True, maps=True))
    watch(scorer, with_roi.folder, tmp_path, batch_size=2, interval=0.01, tell=tell)
    rows = {row.pop("path"): row for row in read_rows(tmp_path / "scores.csv")}
    assert rows["own.png"] == rows["outside.png"] != rows["inside.png"]
    assert [rows[name]["label"] for name in ("outside.png", "inside.png")] == ["normal", "anomalous"]
    for name, found in (("outside", False), ("inside", True)):
        mask = np.asarray(Image.open(tmp_path / f"masks/{name}.png.png"))
        scores = tifffile.imread(tmp_path / f"maps/{name}.png.tiff")
        assert mask.shape == scores.shape == with_roi.inside.shape
        assert mask.any() == found and not mask[~with_roi.inside].any()
        assert (scores[~with_roi.inside] == scores.min()).all() and scores.max() > scores.min()
        red, green, blue = np.asarray(Image.open(tmp_path / f"overlays/{name}.png.jpg").convert("RGB"), int).T
        assert ((red > 230) & (green > 150) & (blue < 90)).any() == found  # the outline of a region


def test_what_lies_outside_is_not_warned_of(tmp_path):
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[:, :32] = True
    pixels = np.random.default_rng(0).integers(90, 140, (64, 64, 3), np.uint8)
    for name, left, right in (("plain", 0, 0), ("outside", 0, 110), ("inside", 110, 0)):
        other = pixels.copy()
        other[:, :32] += np.uint8(left)
        other[:, 32:] += np.uint8(right)
        Image.fromarray(other).save(tmp_path / f"{name}.png")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    detector = untrained_detector(64, [tmp_path / "plain.png"], Roi(inside).fill(image), SHALLOW)
    detector.roi = Roi(inside)
    scorer = Scorer(detector, tmp_path, None)
    paths = sorted(tmp_path.iterdir())
    found = {result.name: result.warning for result in scorer.score(paths, scorer.read(paths))}
    assert found["plain.png"] == found["outside.png"] == "" and "brightness" in found["inside.png"]


def test_the_highest_positions_are_shown_within_the_region():
    inside = np.arange(64).reshape(8, 8) % 8 >= 3
    shown, _ = shown_region(np.zeros((8, 8), bool), 0, np.array([[1, 1]]), (4, 4), (8, 8), True, inside)
    assert shown.any() and not shown[~inside].any()
