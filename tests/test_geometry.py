"""What a detector sees of pictures of any shape."""

import numpy as np
import pytest
import torch
from helpers import arguments, make, tiny_backbone, untrained_detector
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from texture_ad.data.geometry import STRIDE, Geometry, same_aspect, scaled_shape
from texture_ad.data.images import header, read_image
from texture_ad.errors import ParameterError, UserError
from texture_ad.methods.base import Measurement, enlarge, smooth
from texture_ad.methods.registry import load

sides = st.integers(4, 20_000)


@given(st.integers(32, 1024), st.lists(st.tuples(sides, sides), min_size=1, max_size=9))
@example(244, [(4, 4), (4, 5), (3986, 4275)])  # nearly square, but not so nearly that it is made square
@example(226, [(100, 106)])  # the multiple of STRIDE that is nearest to the longer side lies below the shorter one
def test_the_shorter_side_is_as_given_and_the_longer_one_follows_the_median_aspect(shorter, shapes):
    height, width = scaled_shape(shorter, shapes)
    aspect = float(np.median([w / h for h, w in shapes]))
    assert min(height, width) == shorter
    assert abs(max(height, width) - shorter * max(aspect, 1 / aspect)) <= max(STRIDE / 2 + 1, 0.05 * shorter)
    assert (width >= height) if aspect >= 1 else (height >= width)


@given(sides, sides, st.integers(1, 9))
def test_square_pictures_stay_square_and_pictures_of_one_shape_are_of_its_aspect(height, width, count):
    assert scaled_shape(250, [(height, height)] * count) == (250, 250)
    assert same_aspect((height, width), (height, width))
    assert not same_aspect((100, 100), (100, 110)) and same_aspect((100, 100), (100, 104))


@pytest.mark.parametrize("size", [[64], [64, 64, 64], [64, 9], [64.5, 64], "64", [True, 64], {}])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ParameterError, match="^data.size="):
        make("data", size=size)


def test_a_geometry_survives_its_file():
    geometry = Geometry((64, 96))
    assert Geometry.from_dict(geometry.to_dict()) == geometry


def test_the_header_knows_how_a_picture_is_shown(tmp_path):
    image = Image.new("L", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png", "turned.webp"):
        image.save(tmp_path / name, exif=exif)
        assert header(tmp_path / name).shape == (40, 20)
    image.save(tmp_path / "straight.png")
    assert header(tmp_path / "straight.png").shape == (20, 40)


def wide_photographs(root):
    """Return a folder of pictures of 100 x 50 pixels, but for one of 50 x 50."""
    generator = np.random.default_rng(0)
    for name in ("train/good", "test/good", "test/hole"):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(10 if name == "train/good" else 2):
            pixels = generator.integers(90, 110, (50, 50 if name == "train/good" and i == 3 else 100, 3), np.uint8)
            if "hole" in name:
                pixels[20:34, 70:90] = 255
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def test_a_run_keeps_the_aspect_and_names_what_it_stretches(tmp_path, command):
    folder = wide_photographs(tmp_path / "wide")
    out = command("check", *arguments(folder, tmp_path / "none", "data.size=64"))[1]
    assert "warning: 1 of 14 images have another aspect" in out and "3.png (50 x 50)" in out
    code, out, errors = command("run", *arguments(folder, tmp_path / "run", "cutpaste=none", "data.size=64"))
    assert code == 0, errors
    assert "128 x 64 px" in out and out.count("warning: 1 of 14 images") == 1 and "3.png (50 x 50)" in out
    detector = load(tmp_path / "run/detector.pt")
    assert detector.geometry == Geometry((64, 128))
    images = detector.read(folder / "test/hole/0.png", folder / "train/good/3.png")
    assert images.shape == (2, 3, 64, 128)
    prediction = detector(images)
    assert prediction.anomaly_maps.shape == (2, 64, 128)
    assert prediction.grid[1] == 2 * prediction.grid[0]
    row, column = np.unravel_index(int(prediction.anomaly_maps[0].argmax()), (64, 128))
    assert 20 <= row <= 46 and 85 <= column <= 118
    with Image.open(next((tmp_path / "run/overlays/hole").glob("*.jpg"))) as panel:
        assert panel.width > 4 * 2 * 128


def test_maps_are_smoothed_by_the_shorter_side():
    detector = untrained_detector(sigma=8.0)
    parts = torch.randn(2, 4, 8, 16)
    maps = detector.predict(Measurement(None, parts), (64, 128)).anomaly_maps
    expected = smooth(enlarge(detector.fuse(parts), (64, 128), "bicubic"), 8.0 * 64 / 224)
    torch.testing.assert_close(maps, expected)


def test_square_pictures_give_the_batches_that_they_gave_before(tmp_path):
    data = make("data", size=64)
    data.setup()
    assert data.geometry == Geometry((64, 64)) and not data.warnings
    batch = data.test_batch([0])
    assert batch["image"].shape == (1, 3, 64, 64) and batch["mask"].shape == (1, 64, 64)
    assert batch["image"].dtype == torch.uint8


@pytest.mark.parametrize("size", [(64, 96), (100, 70)])
def test_the_grid_is_known_before_anything_is_computed(size):
    backbone = tiny_backbone("efficientnet_lite0", ["block2", "block4"]).eval()
    maps = backbone(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert backbone.grid_of(size) == maps[0].shape[-2:] and backbone.grid_of(size, -1) == maps[1].shape[-2:]


@pytest.mark.parametrize("name", ["position", "global"])
def test_statistics_of_positions_take_what_was_told(name):
    whitening = make("whitening", channels=[12], mode=name)
    whitening.fit(lambda: iter([torch.randn(7, 20, 12)]))
    assert whitening.memory(20)[0] == whitening.matrix.nbytes


def test_a_fit_that_memory_does_not_hold_is_refused_before_it_begins(tmp_path, command, monkeypatch):
    folder = wide_photographs(tmp_path / "wide")
    monkeypatch.setattr("texture_ad.pipeline.available_memory", lambda: 10**6)
    code, _, errors = command("run", *arguments(folder, tmp_path / "run", "data.size=128"))
    assert code == 2 and "256 x 128 px take" in errors and "whitening.mode=global" in errors


def test_a_picture_that_memory_does_not_hold_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (40, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr("texture_ad.data.images.available_memory", lambda: 40 * 20 * 4 - 1)
    with pytest.raises(UserError, match="40 x 20 pixels need 0.0 GiB"):
        read_image(tmp_path / "a.png")
