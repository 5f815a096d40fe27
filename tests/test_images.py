import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from texture_ad.data import images
from texture_ad.data.images import (
    IMAGE_SUFFIXES,
    Reading,
    read_image,
    read_mask,
    resize,
    resize_mask,
    training_levels,
)
from texture_ad.errors import ParameterError, UserError

RGB = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3) * 4


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_comes_back_as_it_was(tmp_path):
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_grey_and_bilevel(tmp_path):
    grey = RGB[..., 0]
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, -1))
    black_white = read_image(saved(tmp_path, Image.fromarray(grey > 100)))
    assert set(np.unique(black_white)) == {0, 255}


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.tile(np.array([0, 256 * 100, 65535, 65535], np.uint16), (4, 1))
    for name in ("a.png", "a.tif", "a.pgm", "a.jp2"):
        found = read_image(saved(tmp_path, Image.fromarray(values), name))[0, :, 0]
        assert found.tolist() == pytest.approx([0, 25600 / 65535 * 255, 255, 255])


def test_float_tiff(tmp_path):
    values = np.tile(np.array([0, 0.5, 1, np.nan], np.float32), (4, 1))
    path = saved(tmp_path, Image.fromarray(values), "a.tif")
    assert read_image(path)[0, :, 0].tolist() == [0, 127.5, 255, 0]
    assert read_image(path, Reading(levels=(-1, 1)))[0, :, 0].tolist() == [127.5, 191.25, 255, 0]


def deep_png(path, values):
    """Write uint16 (H, W, 3), or with an alpha (H, W, 4), as a PNG, which Pillow can't."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_twelve_bits_in_sixteen_keep_all_their_levels(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(1000, 1500, (40, 40)).astype(np.uint16)
    colour = rng.integers(1000, 1500, (40, 40, 3)).astype(np.uint16)
    paths = [saved(tmp_path, Image.fromarray(grey), f"a.{suffix}") for suffix in ("png", "tif", "pgm")]
    paths.append(deep_png(tmp_path / "colour.png", colour))
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb")
    paths.append(tmp_path / "colour.tif")
    for path in paths:
        low, high = training_levels([(path, 0)])
        assert 800 < low < 1000 and 1500 < high < 1700, path
        found = read_image(path, Reading((low, high)))
        expected = colour if "colour" in path.name else np.stack([grey] * 3, -1)
        assert np.abs(found - (expected - low) * (255 / (high - low))).max() < 1e-3, path
        assert len(np.unique(found)) > 400


def test_hot_pixels_and_defects_do_not_narrow_the_levels(tmp_path):
    values = np.random.default_rng(0).integers(1000, 1500, (100, 100)).astype(np.uint16)
    values[0, 0] = 65535
    assert training_levels([(saved(tmp_path, Image.fromarray(values)), 0)])[1] < 1700
    assert training_levels([(saved(tmp_path, Image.fromarray(RGB), "b.png"), 0)]) is None


def test_rounding_comes_last():
    """Averages of pixels between two levels are rounded, not the pixels: 0.4 everywhere in places gives 0.4's mean."""
    deep = np.zeros((64, 64, 3), np.float32)
    deep[::2] = 101.4
    deep[1::2] = 101.0
    assert (resize(deep, (32, 32)) == 101).all()
    deep[1::2] = 101.9
    assert (resize(deep, (32, 32)) == 102).all()  # bytes rounded first would also average 101 and 102


@pytest.mark.parametrize("suffix", ["ppm", "pnm", "jp2", "tga", "pcx", "qoi", "dib", "jfif"])
def test_every_format_that_pillow_reads(tmp_path, suffix):
    path = saved(tmp_path, Image.fromarray(RGB), f"a.{suffix}")
    assert path.suffix in IMAGE_SUFFIXES and read_image(path).shape == (5, 4, 3)


def test_programs_are_no_images(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.eps")
    assert ".eps" not in IMAGE_SUFFIXES and ".pdf" not in IMAGE_SUFFIXES
    path.rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="can't be read"):
        read_image(tmp_path / "a.png")


def test_a_reading_survives_its_file():
    for reading in (Reading(), Reading((0.0, 4095.0), "all")):
        assert Reading.from_dict(reading.to_dict()) == reading
    for wrong in (
        {},
        {"levels": [1, 0], "frames": "all"},
        {"levels": "ab", "frames": "all"},
        {"levels": None, "frames": 3},
    ):
        with pytest.raises((TypeError, ParameterError)):
            Reading.from_dict(wrong)


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(32)
    assert np.array_equal(read_image(saved(tmp_path, image)), np.array(image.convert("RGB")))


def test_alpha_lies_over_black(tmp_path):
    rgba = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.tile(np.array([0, 255, 51, 255], np.uint8), (4, 1))])
    assert read_image(saved(tmp_path, Image.fromarray(rgba)))[0, :, 0].tolist() == [0, 200, 40, 200]
    deep = rgba.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    for path in (deep_png(tmp_path / "deep.png", deep), tmp_path / "a.tif"):
        assert read_image(path)[0, :, 0] == pytest.approx([0, 200, 40, 200], abs=0.01)


@pytest.mark.parametrize("kind", ["assocalpha", "unspecified"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_fourth_channel_by_which_nothing_is_to_be_multiplied(kind, depth, tmp_path):
    colour = np.array([40, 120, 100], depth) * (np.iinfo(depth).max // 255)
    pixels = np.dstack([np.full((4, 4, 3), colour), np.full((4, 4), np.iinfo(depth).max // 255 * 128)]).astype(depth)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind])
    assert read_image(tmp_path / "a.tif")[0, 0] == pytest.approx([40, 120, 100], abs=1)


def test_cmyk(tmp_path):
    found = read_image(saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.jpg", quality=95))
    assert found[4, 4, 0] < 30 and found[4, 4, 1] > 200
    inks = np.full((8, 8, 4), [65535, 0, 0, 0], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    assert np.array_equal(read_image(tmp_path / "a.tif")[4, 4], [0, 255, 255])


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_image(saved(tmp_path, Image.fromarray(RGB), exif=exif))
    assert np.array_equal(found, np.rot90(RGB, -1))


def test_names_with_spaces_and_unicode(tmp_path):
    assert read_image(saved(tmp_path, Image.fromarray(RGB), "Lücke 漢 a\nb.png")).shape == (5, 4, 3)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"not an image", "can't be read")])
def test_what_is_no_image(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_image(tmp_path / "a.png")
    assert "a.png" in str(error.value)


def test_truncated_image(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="can't be read"):
        read_image(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.png"):
        read_image(tmp_path / "none.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RGB))
    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    with pytest.raises(UserError, match="4 x 5 pixels"):
        read_image(path)


def test_frames(tmp_path):
    frames = [Image.new("L", (8, 8), v) for v in (0, 100, 200)]
    for name in ("a.gif", "a.tif", "a.webp"):
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert images.header(path).frames == 3
        found = [int(read_image(path, frame=i)[4, 4, 0]) for i in range(3)]
        assert found == pytest.approx([0, 100, 200], abs=2)
        with pytest.raises(UserError, match="3 frames"):
            read_image(path, Reading(frames="error"))
    preview = saved(tmp_path, frames[0], "a.mpo", save_all=True, append_images=frames[1:])
    assert images.header(preview).frames == 1 and read_image(preview, Reading(frames="error")).max() < 3


def test_masks(tmp_path):
    mask = np.zeros((5, 4), np.uint8)
    mask[2, 1] = 255
    path = saved(tmp_path, Image.fromarray(mask))
    assert np.array_equal(read_mask(path, (5, 4)), mask > 0)
    assert np.array_equal(read_mask(saved(tmp_path, Image.fromarray(mask // 255)), (5, 4)), mask > 0)
    with pytest.raises(UserError, match="4 x 5 pixels, its image 5 x 5"):
        read_mask(path, (5, 5))
    assert not read_mask(saved(tmp_path, Image.fromarray(mask * 0)), (5, 4)).any()


def test_every_pixel_that_is_not_zero_is_a_defect(tmp_path):
    classes = np.zeros((20, 20), np.uint8)
    classes[:5] = 1
    classes[5:9, 3:6] = 3
    palette = Image.fromarray(classes).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 9, 255, 255, 255, 128, 0, 0])
    deep = Image.fromarray(classes.astype(np.uint16) * 7)
    for image in (Image.fromarray(classes), palette, deep):
        assert np.array_equal(read_mask(saved(tmp_path, image), (20, 20)), classes > 0)


def test_a_mask_with_soft_edges_is_one_and_a_picture_is_none(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    found = read_mask(saved(tmp_path, Image.fromarray(mask), "a.jpg", quality=60), (64, 64))
    assert np.array_equal(found, mask > 0)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    with pytest.raises(UserError, match="not a mask but a picture"):
        read_mask(saved(tmp_path, Image.fromarray(picture)), (64, 64))


def test_resizing_keeps_constants_and_thin_defects():
    assert (resize(np.full((300, 200, 3), 77, np.uint8), (64, 64)) == 77).all()
    mask = np.zeros((512, 512), bool)
    mask[100, :] = True
    small = resize_mask(mask, (64, 64))
    assert small.dtype == torch.bool and small.any() and small.float().mean() < 0.05


def test_many_numbered_regions_are_all_defects(tmp_path):
    mask = np.zeros((120, 120), np.uint8)
    for number in range(1, 25):
        row, column = divmod(number - 1, 6)
        mask[20 * row : 20 * row + 5, 20 * column : 20 * column + 5] = number
    found = read_mask(saved(tmp_path, Image.fromarray(mask)), (120, 120))
    assert np.array_equal(found, mask > 0)


@pytest.mark.parametrize("radius", [1.2, 2.0, 4.0])
def test_soft_edges_of_small_defects_are_no_numbers(tmp_path, radius):
    """Resampling leaves more grey pixels than white ones round a small defect, and few levels round a tiny one."""
    rows, columns = np.mgrid[:40, :40]
    distance = np.hypot(rows - 19.3, columns - 20.6)
    mask = (255 * np.clip(radius + 0.5 - distance, 0, 1)).round().astype(np.uint8)
    ringing = np.random.default_rng(0).integers(0, 10, mask.shape)
    mask = np.where((mask == 0) & (distance < radius + 2), ringing, mask).astype(np.uint8)
    found = read_mask(saved(tmp_path, Image.fromarray(mask)), (40, 40))
    assert np.array_equal(found, mask > 127)
