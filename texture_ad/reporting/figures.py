"""The pictures of a run, each a function of arrays that writes one PNG; charts write an SVG beside it.

Every picture names its data source under its title. Files are written under a temporary name and renamed.
matplotlib, scikit-learn and Pillow are imported where they are used, so that training needs none of them.

The paper's colours stand for the classes throughout (normal red, anomalous blue), in shades that people with
a colour vision deficiency can tell apart, and with a marker of its own for each class.
"""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from texture_ad.errors import UserError

NORMAL = "#CC3311"
ANOMALOUS = "#0077BB"
_MASK_COLOUR = (0, 229, 255)
_REGION_COLOUR = (255, 190, 0)
_QUIET_COLOUR = (200, 200, 200)
_CLASSES = ((0, "normal", NORMAL, "o"), (1, "anomalous", ANOMALOUS, "^"))
_MARKERS = "os^Dv<>P"
_THRESHOLD = {"color": "black", "linestyle": "--", "linewidth": 1.2}
_INK = (25, 25, 25)
_GREY = (95, 95, 95)
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "texture_ad",  # the same figure gives the same file
}


def localization_panel(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    region: np.ndarray,
    mask: np.ndarray | None,
    score: float,
    threshold: float,
    label: int | None,
    path: Path,
    vmin: float,
    vmax: float,
    source: str,
) -> None:
    """Side by side: the image, the true defect's outline, the anomaly map over the image, the located region.

    Drawn without matplotlib, since every test image gets one. Images much narrower than 256 pixels are
    enlarged by a whole factor.

    Args:
        image: (H, W, 3) uint8 RGB.
        anomaly_map: (H, W) finite scores.
        region: (H, W) bool, from `localization.region_mask`.
        mask: (H, W) bool, True = defect; None where there is none.
        score, threshold: of the image; it is called anomalous where the score is greater.
        label: 0 normal, 1 anomalous, None unknown.
        path: the PNG to write.
        vmin, vmax: the scores drawn darkest and brightest; the same for all images of a run, so that the
            pictures can be compared.
        source: the data source's name.

    Raises:
        UserError: arrays that are not of the image's size, an image of another type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{path}: the image is {image.dtype} {image.shape}; give uint8 (H, W, 3)")
    for name, array in (("anomaly_map", anomaly_map), ("region", region), ("mask", mask)):
        if array is not None and array.shape != image.shape[:2]:
            raise UserError(f"{path}: {name} is {array.shape}; give the image's size {image.shape[:2]}")

    called = score > threshold
    tiles = localization_tiles(image, anomaly_map, region, mask, called, vmin, vmax)
    if mask is not None and mask.any():
        truth_caption = "true defect (outlined)"
    else:
        captions = {0: "truth: no defect", 1: "truth: a defect, no mask given", None: "truth: not known"}
        truth_caption = captions[label]
    verdict = "anomalous" if called else "normal"
    title = f"Called {verdict}: score {score:.4g} {'>' if called else '≤'} threshold {threshold:.4g}"
    if label is not None:
        title += " (correct)" if called == label else " (FALSE ALARM)" if called else " (MISSED DEFECT)"
    _sheet(
        tiles,
        [
            "image",
            truth_caption,
            f"anomaly map: {vmin:.3g} dark, {vmax:.3g} bright",
            "located region" if called else "top positions, below threshold",
        ],
        columns=4,
        title=title,
        source=source,
        path=path,
    )


def localization_tiles(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    region: np.ndarray,
    mask: np.ndarray | None,
    called: bool,
    vmin: float,
    vmax: float,
) -> list[np.ndarray]:
    """The four pictures of `localization_panel`, whose arguments these are; `called`: anomalous by its score."""
    from PIL import Image

    factor = max(1, round(256 / image.shape[1]))
    picture = _enlarged(image, factor)
    truth = picture.copy()
    if mask is not None and mask.any():
        _draw_outline(truth, _enlarged(mask, factor), _MASK_COLOUR)

    bright = np.clip((anomaly_map - vmin) / max(vmax - vmin, 1e-12), 0, 1)
    heat = _enlarged(_heat_colours()[(bright * 255).astype(np.uint8)], factor)
    grey = np.asarray(Image.fromarray(picture).convert("L")) * np.uint16(106)
    overlay = ((heat * np.uint16(150) + grey[..., None]) >> 8).astype(np.uint8)

    inside = _enlarged(region, factor)
    located = np.where(inside[..., None], picture, picture // 5 * 3)
    _draw_outline(located, inside, _REGION_COLOUR if called else _QUIET_COLOUR)
    return [picture, truth, overlay, located]


def score_line_graph(scores: ArrayLike, labels: ArrayLike, threshold: float, path: Path, source: str) -> None:
    """The paper's figure 7: image scores (n,) as a line graph, normal images first, with the threshold.

    Labels (n,) are 0 normal, 1 anomalous. Raises UserError on empty or differently long vectors.
    """
    scores, labels = _scores_and_labels(scores, labels, path)
    with _chart(path, "Anomaly scores of the test images", source, size=(8, 4)) as (axes,):
        line = {"markersize": 5 if scores.size <= 150 else 3, "linewidth": 0.8}
        start = 1
        for label, name, colour, marker in _CLASSES:
            chosen = scores[labels == label]
            if chosen.size:
                places = np.arange(start, start + chosen.size)
                axes.plot(places, chosen, color=colour, marker=marker, label=f"{name} ({chosen.size})", **line)
                start += chosen.size
        axes.axhline(threshold, **_THRESHOLD, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="test image", ylabel="image score")
        _legend_below(axes)


def score_histogram(scores: ArrayLike, labels: ArrayLike, threshold: float, path: Path, source: str) -> None:
    """How the image scores (n,) of normal (0) and anomalous (1) images are distributed round the threshold.

    Raises UserError on empty or differently long vectors.
    """
    scores, labels = _scores_and_labels(scores, labels, path)
    bins = np.histogram_bin_edges(scores, bins=30)
    with _chart(path, "Distribution of the image scores", source, size=(7, 4)) as (axes,):
        for label, name, colour, _ in _CLASSES:
            chosen = scores[labels == label]
            if chosen.size:
                text = f"{name} ({chosen.size})"
                axes.hist(chosen, bins, color=colour, alpha=0.35, histtype="stepfilled", label=text)
                axes.hist(chosen, bins, color=colour, histtype="step", linewidth=1.4)
        axes.axvline(threshold, **_THRESHOLD, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="image score", ylabel="images")
        axes.yaxis.get_major_locator().set_params(integer=True)
        _legend_below(axes)


def roc_pr(scores: ArrayLike, labels: ArrayLike, threshold: float, path: Path, source: str) -> None:
    """ROC and precision-recall curves of the image scores (n,), with the point that the threshold chooses.

    Labels (n,) are 0 normal, 1 anomalous. Raises UserError where one of the classes is missing.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    from texture_ad.evaluation.metrics import image_metrics

    scores, labels = _scores_and_labels(scores, labels, path)
    if not 0 < labels.sum() < labels.size:
        raise UserError(
            f"{path}: all {labels.size} images are of one class; a ROC curve needs normal and anomalous ones"
        )
    found = image_metrics(scores, labels, threshold)
    false_positive_rates, true_positive_rates, _ = roc_curve(labels, scores, drop_intermediate=False)
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    title = "Image-level detection over all thresholds"
    with _chart(path, title, source, panels=2, size=(8.4, 4.6)) as (roc, pr):
        roc.plot(false_positive_rates, true_positive_rates, color=ANOMALOUS, linewidth=2)
        roc.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1, label="chance")
        roc.plot(found["false_positive_rate"], found["recall"], "kD", label=f"threshold {threshold:.4g}")
        roc.set(xlabel="false positive rate", ylabel="true positive rate")
        roc.set_title(f"AUROC {found['image_auroc']:.3f}")
        pr.step(recalls, precisions, color=ANOMALOUS, linewidth=2, where="post")
        share = labels.mean()
        pr.plot([0, 1], [share, share], color="grey", linestyle=":", linewidth=1, label="chance")
        if found["precision"] is not None:
            pr.plot(found["recall"], found["precision"], "kD", label=f"threshold {threshold:.4g}")
        pr.set(xlabel="recall", ylabel="precision")
        pr.set_title(f"average precision {found['image_ap']:.3f}")
        for axes in (roc, pr):
            # A curve along the frame must still be seen.
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        _legend_below(roc)


def tsne(
    features: Mapping[str, ArrayLike],
    labels: ArrayLike,
    path: Path,
    source: str,
    unit: str = "patches",
    max_points: int = 400,
    seed: int = 0,
) -> None:
    """The paper's figure 6: features before and after each learnt step, laid out in the plane by t-SNE.

    Args:
        features: a panel's title to finite features (N, C), of the same N patches or images in each panel.
        labels: (N,) 0 normal, 1 anomalous.
        path: the PNG to write; an SVG goes beside it.
        source: the data source's name.
        unit: what the features are of.
        max_points: drawn at most, chosen at random by `seed`, half of each class where there are enough.
        seed: of the choice and of t-SNE.

    Raises:
        UserError: fewer than 5 features, different numbers of them, values not finite or all the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = {title: np.asarray(one) for title, one in features.items()}
    labels = np.asarray(labels)
    counts = {title: len(one) for title, one in features.items()}
    if len(labels) < 5 or set(counts.values()) != {len(labels)}:
        raise UserError(f"{path}: {counts} features, {len(labels)} labels; give equally many of each, 5 or more")
    for title, one in features.items():
        if not np.isfinite(one).all() or not np.ptp(one, axis=0).any():
            raise UserError(
                f"{path}: the features {title} are not finite or all the same; the representation has "
                "collapsed, train it again with a lower learning rate"
            )
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    anomalous = min(len(groups[1]), max(max_points // 2, max_points - len(groups[0])))
    chosen = np.concatenate([groups[0][: max_points - anomalous], groups[1][:anomalous]])
    labels = labels[chosen]
    method = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), random_state=seed)
    # PyTorch's and scikit-learn's OpenMP threads hinder each other: one is several times faster than two.
    with threadpool_limits(1):
        layouts = {title: method.fit_transform(one[chosen]) for title, one in features.items()}
    size = (4.3 * len(layouts), 4.8)
    with _chart(path, "Features in the plane (t-SNE)", source, panels=len(layouts), size=size) as panels:
        for axes, (title, layout) in zip(panels, layouts.items(), strict=True):
            for label, name, colour, marker in _CLASSES:
                points = layout[labels == label]
                style = {"s": 16, "c": colour, "marker": marker, "alpha": 0.6, "linewidths": 0}
                axes.scatter(*points.T, **style, label=f"{name} {unit} ({len(points)})")
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        _legend_below(panels[0])


def comparison(keys: Sequence[str], settings: Sequence[dict], path: Path) -> None:
    """A sweep: detection, training time and memory against the swept value, mean ± standard deviation over seeds.

    Args:
        keys: swept; the first is the axis, each combination of the others a line. Without any there is one place.
        settings: for each setting its value of every key, `data` (the source's name) and the lists of its metrics,
            one value for each seed, as `sweep.compare` returns them.
        path: the PNG to write; an SVG goes beside it.
    """
    axis, *others = keys or ["all seeds"]
    panels = {
        "image_auroc": "image AUROC",
        "aupro": "AUPRO (FPR ≤ 0.3)",
        "fit_seconds": "training, s",
        "peak_memory_mb": "peak memory, MiB",
        "peak_gpu_memory_mb": "peak GPU memory, MiB",
    }
    panels = {name: title for name, title in panels.items() if any(name in row for row in settings)}
    places = list(dict.fromkeys(str(row.get(axis, "")) for row in settings))
    lines: dict[tuple, list[dict]] = {}
    for row in settings:
        lines.setdefault(tuple(row[key] for key in others), []).append(row)
    sources = "; ".join(dict.fromkeys(row["data"] for row in settings))
    title = f"{axis}: mean ± standard deviation over seeds"
    with _chart(path, title, sources, (3.4 * max(2, len(panels)), 3.6), len(panels)) as axes:
        for panel, (name, label) in zip(axes, panels.items(), strict=True):
            for number, (values, rows) in enumerate(lines.items()):
                found = [(places.index(str(row.get(axis, ""))), row[name]) for row in rows if name in row]
                # Lines beside each other: spreads that cover one another can't be read.
                at = np.array([place for place, _ in found]) + 0.08 * (number - (len(lines) - 1) / 2)
                spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for _, v in found]
                text = ", ".join(f"{key}={value}" for key, value in zip(others, values, strict=True))
                panel.errorbar(
                    at,
                    [np.mean(v) for _, v in found],
                    spread,
                    fmt=f"-{_MARKERS[number % len(_MARKERS)]}",
                    capsize=3,
                    linewidth=1.2,
                    label=text or None,
                )
            panel.set(xlabel=axis, title=label)
            long = max(map(len, places)) > 6
            panel.set_xticks(range(len(places)), places, rotation=30 if long else 0, ha="right" if long else "center")
            panel.set_xlim(-0.5, len(places) - 0.5)
            if name in ("fit_seconds", "peak_memory_mb", "peak_gpu_memory_mb"):
                panel.set_ylim(bottom=0)
        if others:
            _legend_below(axes[0])


def atoms(crops: Sequence[np.ndarray], ids: Sequence[int], usage: Sequence[float], path: Path, source: str) -> None:
    """What the dictionary's atoms stand for: for each atom, the image patches that use it most.

    Args:
        crops: for each atom an array (m, p, p, 3) uint8 of image patches, the heaviest user first; four are
            drawn. Give the most used atom first; 64 are drawn.
        ids: the atoms' numbers in the dictionary.
        usage: for each atom, the share of all patches whose code uses it, in [0, 1].
        path: the PNG to write.
        source: the data source's name.

    Raises:
        UserError: no atom, an atom without patches, lists that are not equally long.
    """
    if not crops or not len(crops) == len(ids) == len(usage) or not all(len(patches) for patches in crops):
        raise UserError(
            f"{path}: {len(crops)} lists of patches, {len(ids)} ids, {len(usage)} usages; give equally many, "
            "at least one, and at least one patch for each atom"
        )
    tiles = []
    for patches in crops[:64]:
        tile = np.full((98, 98, 3), 255, dtype=np.uint8)
        for place, patch in enumerate(patches[:4]):
            row = place // 2 * 50
            column = place % 2 * 50
            tile[row : row + 48, column : column + 48] = _fitted(patch, 48)
        tiles.append(tile)
    captions = [f"{number}: {share:.1%}" for number, share in zip(ids, usage, strict=True)][:64]
    title = f"The {len(tiles)} most used atoms as the patches that use them most"
    note = "Above each atom: its number, the share of all patches that use it."
    _sheet(tiles, captions, 8, title, source, path, note)


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    title: str,
    source: str,
    columns: int = 6,
) -> None:
    """Many pictures on one page, such as the worst mistakes or the highest scores.

    Args:
        images: (h, w, 3) uint8 RGB, of any sizes; each is fitted into 160 x 160 pixels.
        captions: one for each image; two lines of it are drawn.
        path: the PNG to write.
        title: what the pictures have in common.
        source: the data source's name.
        columns: pictures in a row.

    Raises:
        UserError: no image, or another number of captions.
    """
    if not images or len(images) != len(captions):
        raise UserError(f"{path}: {len(images)} images, {len(captions)} captions; give equally many, at least one")
    _sheet([_fitted(image, 160) for image in images], captions, columns, title, source, path)


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike, path: Path) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=float)
    labels = np.asarray(labels)
    if not scores.size or scores.ndim != 1 or scores.shape != labels.shape or not np.isfinite(scores).all():
        raise UserError(
            f"{path}: scores {scores.shape} and labels {labels.shape}; give equally long vectors, not empty, "
            "of finite scores"
        )
    return scores, labels


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _chart(path: Path, title: str, source: str, size: tuple[float, float], panels: int = 1) -> Iterator[Sequence]:
    # Figure without pyplot: no global state, no window, nothing to close.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        # Names of folders may hold a dollar sign, which is not mathematics.
        lines = textwrap.fill(f"Data: {source}", int(size[0] * 12))
        figure.suptitle(f"{title}\n{lines}", fontsize=11, parse_math=False)
        yield axes
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            with _replacing(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], metadata=metadata)


def _legend_below(axes) -> None:
    # Outside the axes, where it can cover no point.
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside lower center", ncols=len(names))


@lru_cache
def _heat_colours() -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)


@lru_cache
def _font(size: int, bold: bool = False):
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


def _sheet(
    tiles: Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int,
    title: str,
    source: str,
    path: Path,
    note: str = "",
) -> None:
    """Tiles (h, w, 3) uint8 in rows, each under its caption, all under the title, the source and the note."""
    from PIL import Image, ImageDraw

    gap = 8
    line_height = 16
    columns = min(columns, len(tiles))
    height = max(len(tile) for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    page_width = max(columns * (width + gap) + gap, 480)

    def wrapped(text, font, room, lines=None):
        return textwrap.wrap(text, max(1, int(room / font.getlength("n"))), max_lines=lines, placeholder=" …")

    small = _font(11)
    normal = _font(13)
    bold = _font(15, bold=True)
    heading = [(text, bold, _INK) for text in wrapped(title, bold, page_width - 2 * gap)]
    for line in (f"Data: {source}", note):
        heading += [(text, normal, _GREY) for text in wrapped(line, normal, page_width - 2 * gap)]
    texts = [wrapped(caption, small, width, lines=2) for caption in captions]
    caption_height = max(map(len, texts)) * line_height
    row_height = caption_height + height + gap
    top = gap + 20 * len(heading) + gap // 2
    rows = -(-len(tiles) // columns)

    page = Image.new("RGB", (page_width, top + rows * row_height), "white")
    draw = ImageDraw.Draw(page)
    for number, (text, font, colour) in enumerate(heading):
        draw.text((gap, gap + 20 * number), text, fill=colour, font=font)
    for place, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        left = gap + place % columns * (width + gap)
        up = top + place // columns * row_height
        for number, part in enumerate(text):
            draw.text((left, up + number * line_height), part, fill=_INK, font=small)
        page.paste(Image.fromarray(tile), (left, up + caption_height))
    with _replacing(path) as temporary:
        # The lowest compression: three times as fast, a fifth larger.
        page.save(temporary, format="PNG", compress_level=1)
