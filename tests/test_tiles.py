"""Pictures of any size cut into tiles: where tiles lie, how their maps are joined, and whole runs on strips."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import arguments, baseline, make, read_rows, read_scores, untrained_detector
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from texture_ad.data.batches import PictureBatches, load_tiles
from texture_ad.data.geometry import VIEW, Geometry, Tiling, Window, grid_windows, tiles
from texture_ad.data.layouts import Sample
from texture_ad.data.pictures import DamagedPicture, Picture
from texture_ad.data.roi import Roi
from texture_ad.errors import ParameterError, UserError
from texture_ad.methods.base import Measurement, smooth
from texture_ad.methods.registry import load

shapes = st.tuples(st.integers(1, 700), st.integers(1, 700))
tile_shapes = st.tuples(st.integers(32, 200), st.integers(32, 200))
grids = st.tuples(st.integers(2, 20), st.integers(2, 20))


@settings(deadline=None)
@given(shapes, tile_shapes, st.integers(0, 31), grids)
@example((68, 34), (34, 34), 0, (7, 7))  # 34 / (34 / 7) is a little more than 7
def test_tiles_cover_a_picture_and_begin_at_whole_cells(picture, tile, overlap, grid):
    tiling = Tiling(picture, tile, overlap, grid)
    covered = np.zeros(picture, bool)
    for (row, column), window in zip(tiling.starts, tiling.windows(), strict=True):
        assert window[2:] == tile and 0 <= window.top < picture[0] and 0 <= window.left < picture[1]
        assert abs(window.top - row * tile[0] / grid[0]) <= 0.5 and abs(window.left - column * tile[1] / grid[1]) <= 0.5
        covered[window.top : window.top + tile[0], window.left : window.left + tile[1]] = True
    assert covered.all()
    for side, cells, length, n in zip(picture, tiling.shape, tile, grid, strict=True):
        assert cells == -(-side * n // length)
    for starts, length, n in zip(map(set, zip(*tiling.starts, strict=True)), tile, grid, strict=True):
        steps = np.diff(sorted(starts)) * length / n
        assert (steps <= max(length - overlap, length / n) + 1e-6).all()  # else neighbours overlap by less


@settings(deadline=None)
@given(shapes, tile_shapes, st.integers(0, 31), grids)
def test_what_tiles_agree_on_is_joined_without_a_seam(picture, tile, overlap, grid):
    tiling = Tiling(picture, tile, overlap, grid)
    (height, width), (h, w) = tiling.shape, grid
    whole = torch.rand(2, max(height, h), max(width, w), dtype=torch.float64)
    maps = torch.stack([whole[:, row : row + h, column : column + w] for row, column in tiling.starts])
    torch.testing.assert_close(tiling.join(maps), whole[:, :height, :width])


def test_where_tiles_disagree_the_one_counts_more_that_sees_it_nearer_to_its_middle():
    tiling = Tiling((64, 128), (64, 64), 32, (8, 8))
    assert tiling.starts == [(0, 0), (0, 4), (0, 8)]
    maps = torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 8)
    joined = tiling.join(maps)[0]
    assert torch.allclose(joined[:, :4], torch.zeros(8, 4)) and torch.allclose(joined[:, 12:], torch.full((8, 4), 2.0))
    assert (joined.diff(dim=1)[:, 3:8] > 0).all()
    torch.testing.assert_close(2 - joined.flip(1), joined)  # in a mirror all is alike
    some = tiling.join(maps[2:] + 1, [2])[0]
    assert torch.equal(some[:, :8], torch.zeros(8, 8)) and torch.allclose(some[:, 8:], torch.full((8, 8), 3.0))


def test_a_joined_map_covers_as_much_of_a_view_as_its_cells_do():
    tiling = Tiling((150, 211), (64, 64), 8, (8, 8))
    assert tiling.shape == (19, 27)
    assert tiling.covered((150, 211)) == (152, 216) and tiling.covered((300, 422)) == (304, 432)
    assert Tiling((20, 30), (64, 64), 8, (2, 2)).covered((20, 30)) == (32, 32)


@settings(deadline=None)
@given(shapes, tile_shapes, st.integers(0, 31))
def test_training_tiles_cover_a_picture_and_stay_inside(picture, tile, overlap):
    covered = np.zeros(picture, bool)
    windows = grid_windows(picture, tile, overlap)
    for window in windows:
        inside = [
            start + length <= side or start == 0 for start, length, side in zip(window, tile, picture, strict=False)
        ]
        assert all(inside)
        covered[window.top : window.top + tile[0], window.left : window.left + tile[1]] = True
    assert covered.all() and len(set(windows)) == len(windows)


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(1, 30_000)), min_size=1, max_size=5))
def test_the_view_is_small_and_of_the_pictures_aspect(pictures):
    geometry = tiles((64, 64), 8, pictures)
    (height, width), (h, w) = geometry.view, geometry.picture
    assert height * width <= 1.1 * VIEW + h + w
    assert height * width > VIEW / 2 or geometry.view == geometry.picture
    assert Geometry.from_dict(geometry.to_dict()) == geometry


@pytest.mark.parametrize(
    "change",
    [
        {"overlap": 64},
        {"overlap": 64, "size": [64, 96]},
        {"strips": 1},
        {"overlap": None},
        {"picture": [64]},
        {"picture": [0, 4]},
        {"size": [64, 9]},
        {"other": 1},
    ],
)
def test_a_geometry_of_a_stranger_is_checked(change):
    with pytest.raises((ParameterError, ValueError, TypeError)):
        Geometry.from_dict(tiles((64, 64), 8, [(100, 100)]).to_dict() | change)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """Return the file and the pixels of a picture of 150 x 211."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 211, 3), np.uint8)
    path = tmp_path_factory.mktemp("photograph") / "a.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_a_window_is_the_part_of_the_picture_that_it_says(photograph):
    path, pixels = photograph
    picture = Picture(path)
    assert picture.shape == (150, 211)
    found = picture.window(Window(20, 30, 40, 50)).permute(1, 2, 0).numpy()
    assert (found == pixels[20:60, 30:80]).all()
    beyond = picture.window(Window(130, 200, 40, 50)).permute(1, 2, 0).numpy()
    assert (beyond == np.pad(pixels[130:, 200:], ((0, 20), (0, 39), (0, 0)), mode="symmetric")).all()
    picture.release()
    assert picture.scaled((150, 211)).permute(1, 2, 0).numpy().tolist() == pixels.tolist()


def test_a_large_picture_is_reduced_in_strips_as_in_one_piece(photograph, monkeypatch):
    path, pixels = photograph
    monkeypatch.setattr("texture_ad.data.pictures.WHOLE", 0)
    monkeypatch.setattr("texture_ad.data.pictures.STRIP", 211 * 4 * 3)
    strips = Picture(path).scaled((30, 40))
    monkeypatch.setattr("texture_ad.data.pictures.STRIP", 10**9)
    assert torch.equal(strips, Picture(path).scaled((30, 40)))
    assert abs(strips.float().mean() - pixels.mean()) < 1


def test_a_tile_has_its_part_of_the_mask(photograph, tmp_path):
    path, pixels = photograph
    truth = np.zeros((150, 211), bool)
    truth[20:40, 100:180] = truth[140:, 205:] = True
    Image.fromarray(truth).save(tmp_path / "mask.png")
    windows = [Window(0, 64, 64, 64), Window(10, 150, 64, 64), Window(96, 160, 64, 64)]
    samples = [Sample(path, 1, "hole", tmp_path / "mask.png", window=window) for window in windows]
    for (tile, mask), (top, left, _, _) in zip(load_tiles(samples), windows, strict=True):
        part = truth[top : top + 64, left : left + 64]
        expected = np.pad(part, ((0, 64 - part.shape[0]), (0, 64 - part.shape[1])))  # beyond the picture is no defect
        assert np.array_equal(mask.numpy(), expected)
        part = pixels[top : top + 64, left : left + 64]
        assert np.array_equal(tile[:, : part.shape[0], : part.shape[1]].permute(1, 2, 0).numpy(), part)


def test_a_flat_tile_is_learnt_from_where_others_show_something(tmp_path):
    pixels = np.full((64, 128, 3), 90, np.uint8)
    windows = [Window(0, 0, 64, 64), Window(0, 64, 64, 64)]
    samples = [Sample(tmp_path / "a.png", window=window) for window in windows]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: one colour all over"):
        load_tiles(samples, training=True)
    pixels[30:34, 100:104] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert len(load_tiles(samples, training=True)) == 2


def test_damaged_pictures_are_anomalous(photograph):
    path, _ = photograph
    samples, geometry = [Sample(path), Sample(path)], tiles((64, 64), 8, [(150, 211)])
    plain, damaged = (PictureBatches(samples, geometry, seed) for seed in (None, 3))
    assert plain.__getitems__([0, 1])["label"].tolist() == [0, 0]
    batch = damaged.__getitems__([0, 1])
    assert batch["label"].tolist() == [1, 1]
    first, second = (np.asarray(picture.image) for picture in batch["image"])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_picture_has_one_defect_in_one_tile(photograph, seed):
    path, pixels = photograph
    whole = Window(0, 0, 150, 211)
    damaged = DamagedPicture(path, (64, 64), seed).window(whole).permute(1, 2, 0).numpy()
    rows, columns, _ = np.nonzero(damaged != pixels)
    assert 0 < np.ptp(rows) < 64 and 0 < np.ptp(columns) < 64
    assert (DamagedPicture(path, (64, 64), seed).window(whole).permute(1, 2, 0).numpy() == damaged).all()


def test_a_picture_too_small_for_the_region_of_interest_is_refused(photograph):
    path, _ = photograph
    inside = torch.zeros(4000, 4000, dtype=torch.bool)
    inside[1] = True  # a line that the picture's rows pass by
    with pytest.raises(UserError, match="so small that nothing of it lies in the region of interest"):
        _ = DamagedPicture(path, (64, 64), 0, roi=Roi(inside)).image


def test_tiles_measure_what_the_whole_picture_measures(photograph):
    """Sparse codes of patches are local, so that tiles see what the whole picture shows: not a digit may differ."""
    path, pixels = photograph
    detector = baseline("sparse_coding", patch=8, stride=8, num_atoms=20)
    detector.atoms.copy_(torch.nn.functional.normalize(torch.randn(detector.atoms.shape), dim=1))
    whole = detector.measure(torch.from_numpy(pixels[:144, :208].copy()).permute(2, 0, 1)[None]).parts
    detector.set_geometry(tiles((64, 64), 8, [(150, 211)]))
    joined = detector.measure_picture(Picture(path)).parts
    assert joined.shape == (1, 1, 19, 27)
    torch.testing.assert_close(joined[:, :, :18, :26], whole)
    prediction = detector([Picture(path)])
    assert prediction.anomaly_maps.shape == (1, 150, 211) and prediction.grid == (19, 27)


@pytest.mark.parametrize("shape", [(20, 30), (64, 64), (300, 70)])
def test_a_detector_scores_pictures_of_any_size(shape, tmp_path):
    detector = untrained_detector()
    detector.set_geometry(tiles((64, 64), 16, [(128, 128), (100, 140), (128, 128)]))
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prediction = detector(detector.read(tmp_path / "a.png", tmp_path / "a.png"))
    assert prediction.anomaly_maps.shape == (2, 128, 128) and prediction.scores.isfinite().all()
    assert prediction.scores[0] == prediction.scores[1]
    with pytest.raises(UserError, match="cuts pictures into tiles; give what `read` returns"):
        detector(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert (prediction.positions < torch.tensor(prediction.grid)).all() and (prediction.positions >= -1).all()


def of_pictures(picture, **options):
    """Return a detector of pictures of this size, in tiles of 64 pixels with maps of 8 x 8."""
    detector = untrained_detector(**options)
    detector.set_geometry(tiles((64, 64), 16, [picture]))
    detector._tile_grid = (8, 8)
    return detector


def test_a_large_picture_s_map_is_smoothed_in_its_own_pixels_and_loses_no_peak(monkeypatch):
    monkeypatch.setattr("texture_ad.data.geometry.VIEW", 40 * 60)
    parts = torch.randn(1, 4, 50, 75)
    for sigma in (0.0, 28.0):
        detector = of_pictures((400, 600), sigma=sigma)
        assert detector.geometry.view == (40, 60)
        fused = detector.fuse(parts)
        maps = detector.predict_picture(Measurement(None, parts), (400, 600)).anomaly_maps
        pooled = torch.nn.functional.adaptive_max_pool2d(fused, (40, 60))
        # 28 at a size of 224 are 8 pixels of a tile of 64, and 0.8 of a picture a tenth as large.
        torch.testing.assert_close(maps, smooth(pooled, 0.8) if sigma else pooled)
        if not sigma:
            assert maps.max() == fused.max()


@pytest.mark.parametrize(("picture", "grid"), [((80, 120), (10, 15)), ((320, 480), (40, 60))])
def test_positions_are_those_of_a_typical_picture_s_map(picture, grid):
    detector = of_pictures((160, 240), top=3, min_distance=100, gaussian_weight=1.0)
    parts = torch.zeros(1, 4, *grid)
    row, column = grid[0] // 2 + 1, grid[1] // 3
    parts[:, :, row, column] = 50.0
    found = detector.predict_picture(Measurement(None, parts), picture)
    assert found.grid == (20, 30)
    place = [math.floor((row + 0.5) * 20 / grid[0]), math.floor((column + 0.5) * 30 / grid[1])]
    assert found.positions[0].tolist() == [place, [-1, -1], [-1, -1]]  # no other is so far away


def test_what_padding_does_at_every_tile_s_edges_is_taken_back():
    """Whatever bias and scale a position has in all tiles, it is as all others afterwards; and nothing else changes."""
    torch.manual_seed(0)
    detector = baseline("sparse_coding", patch=8, stride=8, num_atoms=20)
    bias, scale = torch.randn(1, 8, 8), torch.rand(1, 8, 8) + 0.5
    normal = torch.randn(4000, 1, 8, 8) * scale + bias
    detector.learn_tile_moments(normal.split(500))
    detector.measure = lambda tiles: Measurement(None, tiles)
    levelled = detector.measure_tiles(normal).parts
    assert levelled.mean(0).std() < 0.02 and levelled.std(0).std() < 0.05
    assert levelled.mean() == pytest.approx(float(normal.mean()), abs=0.02)
    assert levelled.std() == pytest.approx(float(normal.std()), rel=0.05)


def test_what_learns_positions_refuses_tiles(tmp_path):
    geometry = tiles((64, 64), 8, [(100, 100)])
    with pytest.raises(ParameterError, match=r"^tile=\[64, 64\]: padim learns every position"):
        baseline("padim", make("backbone", ["backbone.weights=none"])).set_geometry(geometry)


def test_a_detector_of_plates_is_loaded_as_it_was_saved(tmp_path):
    detector = untrained_detector()
    detector.whitening = make("whitening", channels=[detector.whitening.length])
    detector.settings["whitening"] = detector.whitening.settings
    detector.set_geometry(tiles((64, 64), 8, [(300, 300)]))
    detector.save(tmp_path / "detector.pt")
    assert detector.whitening.mode == load(tmp_path / "detector.pt").whitening.mode == "global"


@pytest.mark.parametrize(("picture", "across"), [((64, 900), 0), ((900, 64), 1), ((60, 900), 0)])
def test_a_strip_s_tiles_have_its_places(picture, across):
    """What lies across a strip lies at the same place in every tile, so that places are learnt as in whole images."""
    geometry = tiles((64, 64), 8, [picture])
    assert geometry.strips and Geometry.from_dict(geometry.to_dict()) == geometry
    assert geometry.one_row(picture) and not geometry.one_row(picture[::-1])  # turned, its places are others
    assert {start[across] for start in geometry.tiling(picture, (8, 8)).starts} == {0}
    assert {window[across] for window in grid_windows(picture, (64, 64), 8)} == {0}
    detector = untrained_detector()
    detector.whitening = make("whitening", channels=[detector.whitening.length])
    detector.set_geometry(geometry)
    assert detector.whitening.mode == "position"
    for shapes, more in (([(65, 900)], []), ([picture] * 3 + [(900, 900)], []), ([picture] * 3, [(900, 900)])):
        plates = tiles((64, 64), 8, shapes, more)
        detector.whitening = make("whitening", channels=[detector.whitening.length])
        detector.set_geometry(plates)
        assert not plates.strips and detector.whitening.mode == "global"


def strips(root, normal=8):
    """Return a folder of strips of 48 x 400 pixels, and one of 48 x 300; anomalous ones have a white spot."""
    generator = np.random.default_rng(0)
    for name, count in (("train/good", normal), ("test/good", 3), ("test/spot", 3), ("ground_truth/spot", 3)):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(90, 110, (48, 300 if name == "test/good" and i == 0 else 400, 3), np.uint8)
            mask = np.zeros(pixels.shape[:2], np.uint8)
            if "spot" in name:
                pixels[20:34, 100 * i + 60 : 100 * i + 76] = mask[20:34, 100 * i + 60 : 100 * i + 76] = 255
            Image.fromarray(mask if "truth" in name else pixels).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize(("normal", "shared"), [(8, True), (5, False)])
def test_tiles_and_copies_of_a_picture_share_its_number_where_there_are_several(tmp_path, normal, shared):
    root = strips(tmp_path / "strips", normal)
    options = ["data=folder", f"data.root={root}", "data.tile=48", "data.overlap=16"]
    data = make("data", options, augmentation=make("augmentation", ["augmentation=light", "augmentation.copies=2"]))
    data.setup()
    numbers = data.picture_numbers
    assert len(numbers) == len(data.train_samples) == 3 * data.num_originals
    assert (numbers.view(3, -1) == numbers[: data.num_originals]).all()
    pictures = [sample.path for sample in data.train_samples[: data.num_originals]]
    expected = [list(dict.fromkeys(pictures)).index(path) for path in pictures]
    assert numbers[: data.num_originals].tolist() == (expected if shared else list(range(data.num_originals)))


@pytest.mark.parametrize("method", ["fusion", "padim"])
def test_a_run_on_strips_finds_and_locates_the_spots(tmp_path, command, method):
    data = strips(tmp_path / "strips")
    own = [
        f"method={method}",
        "data.tile=48",
        "data.overlap=16",
        "data.max_tiles=40",
        "backbone.min_size=0",
        "pictures=false",
    ]
    code, out, errors = command("run", *arguments(data, tmp_path / "run", *own))
    assert code == 0, errors
    assert "8 training (40 tiles), 0 calibration" in out and "48 x 48 px" in out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["image_auroc"] == 1.0 and metrics["pixel_auroc"] > 0.9 and metrics["synthetic_auroc"] > 0.5
    detector = load(tmp_path / "run/detector.pt")
    assert detector.geometry == Geometry((48, 48), 16, (48, 400), strips=True) and detector.uses_positions
    Image.new("RGB", (400, 49)).save(tmp_path / "high.png")
    with pytest.raises(UserError, match=r"high.png: the detector knows strips that fit into its tiles of 48 x 48 px"):
        detector(detector.read(tmp_path / "high.png"))
    prediction = detector(detector.read(*sorted((data / "test/spot").iterdir())))
    for i, one in enumerate(prediction.anomaly_maps):
        column = int(one.mean(0).argmax())
        assert 100 * i + 50 <= column <= 100 * i + 86
    code, _, errors = command(
        "predict", f"detector={tmp_path / 'run/detector.pt'}", f"input={data / 'test'}", f"output={tmp_path / 'out'}"
    )
    assert code == 0, errors
    expected, before = (read_scores(tmp_path / name / "scores.csv") for name in ("run", "out"))
    assert {f"test/{path}": score for path, score in before.items()} == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 6
    # The shorter strip is stretched where it is shown; nothing is where it is measured.
    assert "differ in size" in errors or "differ in size" in out
    # One that can't be scored costs no other its row.
    (tmp_path / "high.png").rename(data / "test/good/high.png")
    code, out, errors = command(
        "predict", f"detector={tmp_path / 'run/detector.pt'}", f"input={data / 'test'}", f"output={tmp_path / 'again'}"
    )
    assert code == 2 and "1 of 7 images could not be scored, first: " in errors
    found = {row["path"]: row for row in read_rows(tmp_path / "again/scores.csv")}
    assert "the detector knows strips" in found.pop("good/high.png")["warning"]
    assert {path: float(row["score"]) for path, row in found.items()} == pytest.approx(before, rel=1e-4)


def test_thresholds_of_strips_hold_their_promise(tmp_path, command):
    """Six pictures calibrate: one new normal picture in seven may lie above all of them."""
    rates = []
    for seed in range(6):
        folder = tmp_path / str(seed)
        generator = np.random.default_rng(seed)
        for part, count in (("train", 28), ("test", 40)):
            (folder / part / "good").mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(60, 190, (48, 112), np.uint8)
                Image.fromarray(pixels).save(folder / part / "good" / f"{i:02d}.png")
        own = ["method=padim", "method.channels=8", "data.tile=48", "data.overlap=16", "backbone.min_size=0"]
        own += ["cross_fit=false"]
        code, _, errors = command(
            "run", *arguments(folder, folder / "run", *own, f"seed={seed}", "pictures=false", "logger=none")
        )
        assert code == 0, errors
        rates.append(json.loads((folder / "run/metrics.json").read_text())["false_positive_rate"])
    assert np.mean(rates) == pytest.approx(1 / 7, abs=0.12)  # with levels of calibration pictures it was 0.67


def test_positions_are_not_learnt_from_tiles(tmp_path, command):
    data = strips(tmp_path / "strips", normal=3)
    for own, message in (
        (["whitening.mode=position"], "whitening.mode=position: positions of tiles are no places of the picture"),
        (["method=padim"], "which tiles don't have; leave tile out, or take tiles as high or as wide as all"),
        (["data.overlap=32"], "data.overlap=32: expected an integer from 0 to 31"),
    ):
        code, _, errors = command("run", *arguments(data, tmp_path / "run", "data.tile=32", "data.overlap=8", *own))
        assert code == 2 and message in errors, errors
