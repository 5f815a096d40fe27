import numpy as np
import pytest
import torch
from PIL import Image

from texture_ad.data import images
from texture_ad.data.images import read_image, read_mask, resize, resize_mask
from texture_ad.errors import UserError

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
    for name in ("a.png", "a.tif"):
        assert read_image(saved(tmp_path, Image.fromarray(values), name))[0, :, 0].tolist() == [0, 99, 255, 255]


def test_float_tiff(tmp_path):
    values = np.tile(np.array([0, 0.5, 1, 1], np.float32), (4, 1))
    assert read_image(saved(tmp_path, Image.fromarray(values), "a.tif"))[0, :, 0].tolist() == [0, 127, 255, 255]


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(32)
    assert np.array_equal(read_image(saved(tmp_path, image)), np.array(image.convert("RGB")))


def test_alpha_lies_over_black(tmp_path):
    rgba = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.tile(np.array([0, 255, 51, 255], np.uint8), (4, 1))])
    assert read_image(saved(tmp_path, Image.fromarray(rgba)))[0, :, 0].tolist() == [0, 200, 40, 200]


def test_cmyk(tmp_path):
    found = read_image(saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.jpg", quality=95))
    assert found[4, 4, 0] < 30 and found[4, 4, 1] > 200


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


def test_animation_is_refused(tmp_path):
    frames = [Image.new("L", (8, 8), v) for v in (0, 100, 200)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="3 frames"):
        read_image(path)


def test_masks(tmp_path):
    mask = np.zeros((5, 4), np.uint8)
    mask[2, 1] = 255
    path = saved(tmp_path, Image.fromarray(mask))
    assert np.array_equal(read_mask(path, (5, 4)), mask > 0)
    assert np.array_equal(read_mask(saved(tmp_path, Image.fromarray(mask // 255)), (5, 4)), mask > 0)
    with pytest.raises(UserError, match="4 x 5 pixels, its image 5 x 5"):
        read_mask(path, (5, 5))
    with pytest.raises(UserError, match="marks no pixel"):
        read_mask(saved(tmp_path, Image.fromarray(mask * 0)), (5, 4))


def test_resizing_keeps_constants_and_thin_defects():
    assert (resize(np.full((300, 200, 3), 77, np.uint8), (64, 64)) == 77).all()
    mask = np.zeros((512, 512), bool)
    mask[100, :] = True
    small = resize_mask(mask, (64, 64))
    assert small.dtype == torch.bool and small.any() and small.float().mean() < 0.05
