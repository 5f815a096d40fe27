"""Draw pictures with Pillow: the localization panel of an image, and the sheet of the dictionary's atoms.

Every picture names its data source under its title. Pillow and matplotlib (its font and colours) are imported where
they are used, so that training needs neither.
"""

import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from texture_ad.data.images import IMAGE_SUFFIXES
from texture_ad.errors import UserError
from texture_ad.evaluation.localization import region_mask
from texture_ad.evaluation.metrics import outcome
from texture_ad.evaluation.regions import joined_pixels
from texture_ad.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

_MASK_COLOUR = (0, 229, 255)
_REGION_COLOUR = (255, 190, 0)
_INK = (25, 25, 25)
_GREY = (95, 95, 95)
_GAP = 8  # pixels between the pictures of a page
_LINE = 16  # pixels from one line of a caption to the next
_HEADING_LINE = 20  # pixels from one line of a heading to the next
_OUTCOMES = {"correct": "(correct)", "false alarm": "(FALSE ALARM)", "missed": "(MISSED DEFECT)"}
_TRUTHS: dict[int | None, str] = {0: "truth: no defect", 1: "truth: a defect, no mask given"}
WIDE = 2  # times as wide as high: such pictures stand below each other
_ATOMS = 64  # drawn at most; as many as explain.ATOMS gives


def overlay_path(name: Path) -> Path:
    """Return where an image's panel lies in the output folder.

    Args:
        name: of the image, relative; two images may differ in their suffix alone.

    Examples:
        >>> [overlay_path(Path("hole", name)).name for name in ("1.jpg", "1.png", "1.png.jpg")]
        ['1.jpg', '1.png.jpg', '1.png.jpg.jpg']
    """
    kept = name.suffix == ".jpg" and Path(name.stem).suffix.lower() not in IMAGE_SUFFIXES
    return Path("overlays", name if kept else name.with_name(f"{name.name}.jpg"))


def colour_scale(floor: float, threshold: float) -> tuple[float, float]:
    """Return the scores of an anomaly map that are drawn darkest and brightest.

    Most pixels are normal: they are dark, and the threshold lies in the middle of the scale.

    Args:
        floor: median of the anomaly maps of normal images.
        threshold: a pixel is called anomalous where its score is greater.
    """
    return floor, 2 * threshold - floor if threshold > floor else floor + 1


def shown_region(
    mask: np.ndarray,
    count: int,
    positions: np.ndarray,
    grid: tuple[int, int],
    size: tuple[int, int],
    called: bool,
    inside: np.ndarray | None,
) -> tuple[np.ndarray, str]:
    """Return what a panel encloses, bool of its `size`, and what it is called.

    These are the regions above the pixel threshold. An image that is called anomalous and has none shows the highest
    positions instead, since its score is made of them; one that is called normal shows nothing.

    Args:
        mask: (H, W) bool of the regions, in pixels of the photograph.
        count: of the regions.
        positions: (k, 2) of the patch map.
        grid: (h, w) of the patch map.
        size: (H', W') of the panel's pictures.
        called: whether the image is called anomalous.
        inside: (H', W') bool, the pixels that count; None for all of them.
    """
    if count or not called:
        # No region vanishes, however small.
        return joined_pixels(mask, size), "region" if count == 1 else f"{count or 'no'} regions"
    highest = region_mask(positions, grid, size)
    return highest if inside is None else highest & inside, "no region; the highest positions"


def localization_panel(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    region: np.ndarray,
    region_name: str,
    mask: np.ndarray | None,
    score: float,
    threshold: float,
    label: int | None,
    path: Path,
    vmin: float,
    vmax: float,
    source: str,
) -> list[np.ndarray]:
    """Draw side by side the image, the true defect's outline, the anomaly map over the image, the located region.

    Pictures of wide images stand below each other.

    The second picture is left out where nothing is known of the truth. Uses no matplotlib, since every image gets one.
    Images much narrower than 256 pixels are enlarged by a whole factor.

    Args:
        image: (H, W, 3) uint8 RGB.
        anomaly_map: (H, W) finite scores.
        region: (H, W) bool, from `shown_region`.
        region_name: likewise.
        mask: (H, W) bool, True = defect; None where there is none.
        score: of the image.
        threshold: the image is called anomalous where its score is greater.
        label: 0 normal, 1 anomalous, None unknown.
        path: JPEG to write, or PNG, by its suffix; a JPEG is ten times as fast to write.
        vmin: the score drawn darkest; the same for all images of a run, so that the pictures can be compared.
        vmax: the score drawn brightest.
        source: name of the data source.

    Returns:
        The four pictures, each (H', W', 3) uint8.

    Raises:
        UserError: arrays that are not of the image's size, an image of another type.
    """
    _check_sizes(image, {"anomaly_map": anomaly_map, "region": region, "mask": mask}, path)
    tiles = localization_tiles(image, anomaly_map, region, mask, vmin, vmax)
    captions = [
        "image",
        _TRUTHS.get(label, "truth: not known") if mask is None or not mask.any() else "true defect (outlined)",
        f"anomaly map: {vmin:.3g} dark, {vmax:.3g} bright",
        region_name,
    ]
    shown = [0, 2, 3] if label is None and mask is None else [0, 1, 2, 3]
    columns = 1 if image.shape[1] > WIDE * image.shape[0] else 4
    verdict = _verdict(score, threshold, label)
    _sheet([tiles[i] for i in shown], [captions[i] for i in shown], columns, verdict, source, path)
    return tiles


def _check_sizes(image: np.ndarray, others: dict[str, np.ndarray | None], path: Path) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{path}: the image is {image.dtype} {image.shape}; give uint8 (H, W, 3)")
    for name, array in others.items():
        if array is not None and array.shape != image.shape[:2]:
            raise UserError(f"{path}: {name} is {array.shape}; give the image's size {image.shape[:2]}")


def _verdict(score: float, threshold: float, label: int | None) -> str:
    called = score > threshold
    comparison = f"{score:.4g} {'>' if called else '≤'} threshold {threshold:.4g}"
    sentence = f"Called {'anomalous' if called else 'normal'}: score {comparison}"
    return sentence if label is None else f"{sentence} {_OUTCOMES[outcome(called, label)]}"


def localization_tiles(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    region: np.ndarray,
    mask: np.ndarray | None,
    vmin: float,
    vmax: float,
) -> list[np.ndarray]:
    """Draw the four pictures of `localization_panel`, without its captions.

    Args:
        image: (H, W, 3) uint8 RGB.
        anomaly_map: (H, W) finite scores.
        region: (H, W) bool.
        mask: (H, W) bool, True = defect; None where there is none.
        vmin: the score drawn darkest.
        vmax: the score drawn brightest.
    """
    from PIL import Image

    factor = max(1, round(256 / image.shape[1]))
    picture = _enlarged(image, factor)
    truth = picture
    if mask is not None and mask.any():
        truth = picture.copy()
        _draw_outline(truth, _enlarged(mask, factor), _MASK_COLOUR)
    bright = np.clip((anomaly_map - vmin) / max(vmax - vmin, 1e-12), 0, 1)
    overlay = _heat_over(picture, _enlarged((bright * 255).astype(np.uint8), factor))
    located = np.array(Image.fromarray(picture).point([level // 5 * 3 for level in range(256)] * 3))
    if region.any():
        inside = _enlarged(region, factor)
        located[inside] = picture[inside]
        _draw_outline(located, inside, _REGION_COLOUR)
    return [picture, truth, overlay, located]


def _heat_over(picture: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Return the colours of `brightness` (H, W) uint8 over the grey picture (H, W, 3) uint8."""
    from PIL import Image, ImageChops

    # Weights of 150 and 106 in 256, looked up and added by Pillow: half of the time that arrays take.
    grey = Image.fromarray(picture).convert("L").point([level * 106 >> 8 for level in range(256)])
    heat = Image.fromarray(brightness)
    heat.putpalette(_heat_colours().tobytes())
    return np.asarray(ImageChops.add(heat.convert("RGB"), Image.merge("RGB", (grey, grey, grey))))


def atoms(crops: Sequence[np.ndarray], ids: Sequence[int], usage: Sequence[float], path: Path, source: str) -> None:
    """Draw what the dictionary's atoms stand for: for each atom, the crops of training images that use it most.

    Args:
        crops: for each atom an array (m, p, p, 3) uint8 of crops, the heaviest user first; four are drawn. Give the
            most used atom first; 64 are drawn.
        ids: numbers of the atoms in the dictionary.
        usage: for each atom, the share of all positions whose code uses it, in [0, 1].
        path: PNG to write.
        source: name of the data source.

    Raises:
        UserError: no atom, an atom without crops, lists that are not equally long.
    """
    if not crops or not len(crops) == len(ids) == len(usage) or not all(len(one) for one in crops):
        raise UserError(
            f"{path}: {len(crops)} lists of patches, {len(ids)} ids, {len(usage)} usages; give equally many, "
            "at least one, and at least one patch for each atom"
        )
    tiles = [_four(one[:4]) for one in crops[:_ATOMS]]
    captions = [f"{number}: {share:.1%}" for number, share in zip(ids, usage, strict=True)][:_ATOMS]
    title = f"The {len(tiles)} most used atoms as the patches that use them most"
    note = "Above each atom: its number, the share of all patches that use it."
    _sheet(tiles, captions, 8, title, source, path, note)


def _four(crops: np.ndarray) -> np.ndarray:
    """Return up to four crops (m, p, p, 3) uint8 in two rows, (98, 98, 3) uint8."""
    tile = np.full((98, 98, 3), 255, dtype=np.uint8)
    for number, crop in enumerate(crops):
        row = number // 2 * 50
        column = number % 2 * 50
        tile[row : row + 48, column : column + 48] = _fitted(crop, 48)
    return tile


@lru_cache
def _heat_colours() -> np.ndarray:
    """Return what the heat adds to a picture for each brightness, (256, 3) uint8."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255 * 150 / 256).astype(np.uint8)


@lru_cache
def _font(size: int, bold: bool = False) -> "FreeTypeFont":
    from matplotlib import get_data_path
    from PIL import ImageFont

    # The font of the charts; it comes with matplotlib and so is on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def _enlarged(array: np.ndarray, factor: int) -> np.ndarray:
    return array if factor == 1 else array.repeat(factor, axis=0).repeat(factor, axis=1)


def _fitted(image: np.ndarray, box: int) -> np.ndarray:
    from PIL import Image

    scale = box / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _draw_outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    # Outside the mask, so that a small defect stays visible; the black line parts it from any background.
    wide = _dilated(_dilated(mask))
    picture[_dilated(wide) & ~wide] = 0
    picture[wide & ~mask] = colour


def _dilated(mask: np.ndarray) -> np.ndarray:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


@lru_cache(256)  # most captions are those of the image before
def _line(text: str, font: "FreeTypeFont", colour: tuple[int, int, int]) -> "Picture":
    """Return a line of text as a picture on white, after a margin of _GAP: some letters begin left of their place."""
    from PIL import Image, ImageDraw

    _, _, right, bottom = font.getbbox(text)
    line = Image.new("RGB", (_GAP + math.ceil(right), math.ceil(bottom)), "white")
    ImageDraw.Draw(line).text((_GAP, 0), text, fill=colour, font=font)
    return line


def _wrapped(text: str, font: "FreeTypeFont", room: int, lines: int | None = None) -> list[str]:
    return textwrap.wrap(text, max(1, int(room / font.getlength("n"))), max_lines=lines, placeholder=" …")


def _sheet(
    tiles: Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int,
    title: str,
    source: str,
    path: Path,
    note: str = "",
) -> None:
    """Write tiles (h, w, 3) uint8 in rows, each under its caption, all under the title, the source and the note."""
    from PIL import Image

    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height = max(len(tile) for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    page_width = max(columns * (width + _GAP) + _GAP, 480)
    heading = _heading(title, (f"Data: {source}", note), page_width - 2 * _GAP)
    top = _GAP + _HEADING_LINE * len(heading) + _GAP // 2
    texts = [_wrapped(caption, _font(11), width, lines=2) for caption in captions]
    caption_height = max(map(len, texts)) * _LINE
    row_height = caption_height + height + _GAP

    page = Image.new("RGB", (page_width, top + rows * row_height), "white")
    for number, (text, font, colour) in enumerate(heading):
        page.paste(_line(text, font, colour), (0, _GAP + _HEADING_LINE * number))
    for number, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        left = _GAP + number % columns * (width + _GAP)
        up = top + number // columns * row_height
        for line, text in enumerate(lines):
            page.paste(_line(text, _font(11), _INK), (left - _GAP, up + line * _LINE))
        page.paste(Image.fromarray(tile), (left, up + caption_height))
    with atomic_path(path) as temporary:
        if path.suffix == ".jpg":
            # Colours at full resolution keep captions and outlines sharp.
            page.save(temporary, format="JPEG", quality=92, subsampling=0)
        else:
            # The lowest compression: three times as fast, a fifth larger.
            page.save(temporary, format="PNG", compress_level=1)


def _heading(title: str, notes: Sequence[str], room: int) -> list[tuple[str, "FreeTypeFont", tuple[int, int, int]]]:
    """Return the lines above a sheet, each with its font and colour, for `room` pixels of width."""
    bold = _font(15, bold=True)
    normal = _font(13)
    lines = [(text, bold, _INK) for text in _wrapped(title, bold, room)]
    return lines + [(text, normal, _GREY) for note in notes for text in _wrapped(note, normal, room)]
