"""TIFFs of every kind that a camera or a scanner writes, also those that Pillow can't open."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from texture_ad.data.drift import training_statistics
from texture_ad.data.images import Reading, header, read_image, training_levels
from texture_ad.data.pictures import Picture
from texture_ad.errors import UserError

VALUES = np.random.default_rng(0).uniform(0, 1, (48, 64, 3))
# Kind, pixels, options of the writer.
KINDS = {
    "float32 in colour": (np.float32, {}),
    "float32 in colour, tiled BigTIFF": (np.float32, {"tile": (16, 16), "bigtiff": True, "compression": "zlib"}),
    "float32 in planes": (np.float32, {"planarconfig": "separate"}),
    "float16": (np.float16, {}),
    "float64 in colour": (np.float64, {}),
    "uint32 in colour": (np.uint32, {}),
    "uint16 in colour, tiled BigTIFF": (np.uint16, {"tile": (16, 16), "bigtiff": True, "compression": "zlib"}),
    "uint16 in planes": (np.uint16, {"planarconfig": "separate", "tile": (16, 16)}),
}


def scaled(kind, shape=VALUES):
    """Return pixels of a kind, and the levels of black and white."""
    full = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1
    return (shape * full).astype(kind), (0.0, float(full))


@pytest.mark.parametrize("name", KINDS)
def test_a_tiff_of_any_kind_is_read_to_the_last_level(name, tmp_path):
    kind, options = KINDS[name]
    pixels, levels = scaled(kind)
    written = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, written, photometric="rgb", **options)
    found = read_image(path, Reading(levels))
    assert found.shape == VALUES.shape and np.abs(found - 255 * VALUES).max() < (0.2 if kind == np.float16 else 0.01)
    assert header(path).shape == (48, 64) and header(path).frames == 1
    low, high = training_levels([(path, 0)])
    assert low == 0 and high == pytest.approx(1.25 * levels[1], rel=0.01)
    assert training_statistics([header(path)], torch.zeros(1, 2)).width == (64, 64)
    assert (Picture(path, Reading(levels)).scaled((48, 64)).permute(1, 2, 0).numpy() == found.round()).all()


def test_frames_alpha_orientation_and_white_as_zero(tmp_path):
    pixels, levels = scaled(np.float32)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack((pixels, 1 - pixels)), photometric="rgb")
    assert header(path).frames == 2
    assert np.allclose(read_image(path, Reading(levels), 1), 255 * (1 - VALUES), atol=0.01)
    with pytest.raises(UserError, match="2 frames, expected one"):
        read_image(path, Reading(levels, "error"))
    alpha = np.concatenate((pixels, np.full_like(pixels[..., :1], 0.5)), -1)
    tifffile.imwrite(path, alpha, photometric="rgb", extrasamples=["unassalpha"])
    assert np.allclose(read_image(path, Reading(levels)), 255 * VALUES / 2, atol=0.01)
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, "H", 1, 6, True)])  # turn by 90 degrees
    assert header(path).shape == (64, 48)
    assert np.allclose(read_image(path, Reading(levels)), 255 * np.rot90(VALUES, -1), atol=0.01)
    tifffile.imwrite(path, scaled(np.uint32, VALUES[..., 0])[0], photometric="miniswhite")
    found = read_image(path, Reading((0.0, 2.0**32)))
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    assert np.allclose(found[..., 0], 255 * (1 - VALUES[..., 0]), atol=0.01)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_the_plain_one_turned_also_by_the_limits_of_its_type(orientation, tmp_path):
    pixels = (VALUES * 65535).astype(np.uint32)
    for name, number in (("plain", 1), ("turned", orientation)):
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", extratags=[(274, "H", 1, number, True)])
    plain = Image.fromarray(read_image(tmp_path / "plain").round().astype(np.uint8))
    plain.getexif()[274] = orientation
    assert np.array_equal(read_image(tmp_path / "turned").round(), ImageOps.exif_transpose(plain))
    assert header(tmp_path / "turned").shape == ImageOps.exif_transpose(plain).size[::-1]


def test_what_neither_reader_can_open_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scaled(np.float32)[0], photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(50000)  # ZSTD
    with pytest.raises(UserError, match=r"compression needs another package; pip install 'texture_ad\[tiff\]'"):
        read_image(path)
    tifffile.imwrite(path, scaled(np.float32, VALUES.repeat(3, -1))[0], photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"a\.tif: can't be read as an image"):
        read_image(path)
    tifffile.imwrite(path, scaled(np.float32)[0], photometric="rgb")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"a\.tif: can't be read as an image"):
        read_image(path)


def test_a_large_header_is_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scaled(np.float32)[0], photometric="rgb")
    monkeypatch.setattr("texture_ad.data.images.available_memory", lambda: 48 * 64 * 11)
    with pytest.raises(UserError, match="64 x 48 pixels need"):
        read_image(path)
