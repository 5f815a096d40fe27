"""Write one self-contained HTML page for a run, and one for a sweep: it opens from disk and asks no network.

Every name and value that comes from data or configuration goes through `_text`. Beyond that, the page's own policy
lets no script run but report.js, by its hash. Pillow is imported where it is used, so that training needs none of it.
"""

import base64
import hashlib
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict
from urllib.parse import quote

import numpy as np

from texture_ad.evaluation.metrics import outcome
from texture_ad.files import write_text
from texture_ad.reporting.cards import Card
from texture_ad.reporting.tables import cell, metrics_rows, printable

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 192  # pixels of a thumbnail's side
GALLERY = 600  # images shown at most, the worst mistakes first
PANELS = "Left to right: the image with the true defect's outline, the anomaly map, the located region."
NO_PANELS = "The images alone: the method has no anomaly map."
WORST = 8  # missed defects and as many false alarms, in a section of their own
_FIGURES = {
    "scores": (
        "Image scores",
        "Every test image's score, normal ones first. A good detector keeps the normal ones "
        "below the threshold and the anomalous ones above.",
    ),
    "histogram": ("Distribution of the scores", "Where the two colours overlap, no threshold tells the classes apart."),
    "roc_pr": ("ROC and precision-recall", "What other thresholds would give; the diamond is the chosen one."),
    "tsne": (
        "Features before and after each step",
        "Test images' features in the plane. Distances mean little, "
        "overlap of the colours does. Nothing here was used in training.",
    ),
    "atoms": (
        "Atoms of the dictionary",
        "The patches of training images that use each atom most: what the detector takes for normal.",
    ),
}
_STREAM = {
    "ranks": (
        "Are the scores still those of the calibration images?",
        "The moving average of each score's rank among the calibration scores. Above the limits the stream scores "
        "higher than normal images did, even if few reach the threshold: light, focus or material may have changed.",
    ),
    "shares": (
        "How many images are above the threshold?",
        "The share in blocks of images. Limits are those of normal images alone: defects lie above, too.",
    ),
    "histogram": (
        "Scores",
        "The stream and the calibration images lie over one another as long as both show the same kind of image.",
    ),
}
_CONTENTS = """<nav><a href="#metrics">Metrics</a><a href="#figures">Figures</a><a href="#mistakes">Mistakes</a>
<a href="#images">Test images</a>
<a href="#repeat">How to repeat it</a></nav>"""
_CLASSES = {"correct": "correct", "false alarm": "alarm", "missed": "missed"}  # of an outcome's card in report.css


class GalleryImage(TypedDict):
    """Hold what the gallery shows of one test image.

    Keys:
        path: relative, for people.
        kind: of its defect, or "good".
        label: 0 normal, 1 anomalous.
        score: of the image.
        thumbnail: WebP.
    """

    path: str
    kind: str
    label: int
    score: float
    thumbnail: bytes


class Cell(NamedTuple):
    """Hold one cell of a sweep's table: the text that is shown, and what it is sorted by."""

    text: str
    key: float | str


def write_report(
    folder: Path, metrics: Mapping, images: Sequence[GalleryImage], command: str, cards: Sequence[Card] = ()
) -> Path:
    """Write report.html into a run folder, from the figures and the configuration that are there.

    Args:
        folder: the run folder.
        metrics: what metrics.json holds.
        images: the test images; empty for a report without a gallery.
        command: for the shell, repeats the run.
        cards: shown folded.

    Returns:
        The file's path.
    """
    source = metrics["data_source"]
    note = NO_PANELS if metrics.get("pixel_threshold") is None else PANELS
    sentences = verdict(metrics)
    if (folder / "copies.csv").is_file():
        sentences.append("Some test images are copies of training images (copies.csv): the metrics are too good.")
    figures = [(folder / f"{name}.png", *about) for name, about in _FIGURES.items()]
    shown = "".join(_figure(*figure) for figure in figures if figure[0].is_file())
    body = [
        _verdict(sentences),
        _CONTENTS if images else "",
        f'<h2 id="metrics">Metrics</h2>{_metrics(metrics)}',
        f'<h2 id="figures">Figures</h2>{shown}' if shown else "",
        _mistakes(images, metrics["threshold"], note) if images else "",
        _gallery(images, metrics["threshold"], note, source) if images else "",
        f'<h2 id="repeat">How to repeat it</h2>{_repeat(command, metrics.get("data_fingerprint"))}',
        *map(_folded, cards),
        f"<details><summary>Versions</summary>{_rows(metrics.get('versions', {}))}</details>",
        f"<details><summary>Configuration</summary><pre>{_text(_read(folder / 'config.yaml'))}</pre></details>",
    ]
    path = folder / "report.html"
    write_text(path, _page(f"{metrics.get('category', folder.name)}: texture_ad's report", source, body))
    return path


def sweep_report(
    folder: Path,
    rows: Sequence[Mapping[str, Cell]],
    plots: Sequence[Path],
    source: str,
    jobs: Mapping[str, Path],
    sentences: Sequence[str],
) -> Path:
    """Write report.html into a sweep's folder: the comparison, its plots, and links to the reports of its jobs.

    Args:
        folder: of the sweep.
        rows: for each setting a column's name to its cell; columns come in the order of their first appearance, and a
            missing cell is a dash.
        plots: PNG files.
        source: name of the data source.
        jobs: a job's name to its report.html, which is linked relative to `folder`.
        sentences: for the top of the page, such as which jobs failed.

    Returns:
        The file's path.
    """
    body = [
        _verdict(sentences) if sentences else "",
        '<h2>Comparison</h2><p class="note">A click on a column sorts by it.</p>',
        f'<div class="scroll">{_sortable(rows)}</div>',
        "".join(_figure(plot, plot.stem.replace("_", " ").capitalize(), "") for plot in plots),
        f"<h2>Runs</h2>{_links(jobs, folder)}" if jobs else "",
    ]
    path = folder / "report.html"
    write_text(path, _page(f"{folder.name}: texture_ad's comparison", source, body))
    return path


def stream_report(path: Path, sentences: Sequence[str], counts: Mapping[str, object], plots: Path, source: str) -> None:
    """Write the report of a watched stream.

    Args:
        path: of the HTML file.
        sentences: for the top of the page.
        counts: name to number of images.
        plots: folder of the charts, those of _STREAM that are there.
        source: name of the data source.
    """
    figures = [(plots / f"{name}.png", *about) for name, about in _STREAM.items()]
    body = [
        _verdict(sentences),
        f"<h2>Images</h2>{_rows(counts)}",
        "<h2>Charts</h2>",
        *(_figure(*figure) for figure in figures if figure[0].is_file()),
    ]
    write_text(path, _page("The stream: texture_ad's report", source, body))


def verdict(metrics: Mapping) -> list[str]:
    """Return what the metrics of a run say, in sentences."""
    normal = metrics["normal_images"]
    anomalous = metrics["anomalous_images"]
    parts = []
    if anomalous:
        parts.append(f"{round(metrics['recall'] * anomalous)} of {anomalous} anomalous images were found")
    if normal:
        parts.append(f"{round(metrics['false_positive_rate'] * normal)} of {normal} normal images raised a false alarm")
    sentences = [" and ".join(parts) + "."]
    if metrics["image_auroc"] is not None:
        sentences.append(
            f"An anomalous image scores higher than a normal one in {metrics['image_auroc']:.1%} of all "
            "pairs (image AUROC)."
        )
    if metrics.get("aupro") is not None:
        sentences.append(f"The anomaly maps cover the true defects with an AUPRO of {metrics['aupro']:.3f}.")
    promise = f": {metrics['threshold_promise']}" if "threshold_promise" in metrics else ""
    sentences.append(f"The threshold was set without any test image{promise}.")
    if "false_alarm_warning" in metrics:
        sentences.append(f"But {metrics['false_alarm_warning']}.")
    return sentences


def thumbnail(tiles: Sequence[np.ndarray]) -> bytes:
    """Return pictures (H, W, 3) uint8 of one size side by side, each `TILE` pixels high, as WebP."""
    from PIL import Image

    height, width = tiles[0].shape[:2]
    width = round(width * TILE / height)
    strip = Image.new("RGB", (len(tiles) * (width + 4) - 4, TILE), "white")
    for number, tile in enumerate(tiles):
        resized = Image.fromarray(tile).resize((width, TILE), Image.Resampling.BICUBIC)
        strip.paste(resized, (number * (width + 4), 0))
    return _webp(strip, quality=70)


@cache
def _asset(name: str) -> str:
    return files("texture_ad.reporting").joinpath(name).read_text("utf-8")


def _page(title: str, source: str, body: Iterable[str]) -> str:
    script = f"\n{_asset('report.js')}"  # as it stands between its tags
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return _asset("page.html").format(
        policy=policy,
        title=_text(title),
        source=_text(source),
        style=_asset("common.css") + _asset("report.css"),
        body="\n".join(body),
        script=script,
    )


def _text(value: object) -> str:
    """Return anything as text that is safe in an element and in a quoted attribute, control characters escaped."""
    shown = printable(str(value), kept="\n")
    return html.escape(shown, quote=True)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _image(content: bytes, caption: str) -> str:
    uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return f'<img src="{uri}" alt="{_text(caption)}">'


def _webp(picture: "Image", quality: int = 80, lossless: bool = False) -> bytes:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "WEBP", quality=quality, lossless=lossless)
    return content.getvalue()


def _figure(path: Path, title: str, caption: str) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        # Charts are smaller without loss, photographs with.
        image = _image(min(_webp(picture, lossless=True), _webp(picture, quality=85), key=len), title)
    return (
        f'<figure><h3>{_text(title)}</h3><div class="scroll">{image}</div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _verdict(sentences: Iterable[str]) -> str:
    return f'<div class="verdict">{"".join(f"<p>{_text(sentence)}</p>" for sentence in sentences)}</div>'


def _metrics(metrics: Mapping) -> str:
    heading, rows = metrics_rows(metrics, metrics["data_source"])
    return _rows({name.replace("_", " "): text for name, text in (heading | rows).items()})


def _rows(rows: Mapping[str, object]) -> str:
    cells = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    return f'<div class="scroll"><table>{"".join(cells)}</table></div>'


def _gallery(images: Sequence[GalleryImage], threshold: float, note: str, source: str) -> str:
    worst = sorted(images, key=lambda i: (_outcome(i, threshold) == "correct", -abs(i["score"] - threshold)))
    if len(images) > GALLERY:
        note += f" The {GALLERY} clearest mistakes and scores of {len(images)} images; scores.csv has all."
    return _asset("gallery.html").format(
        note=note,
        source=_text(source),
        kinds="".join(f"<option>{_text(kind)}</option>" for kind in sorted({image["kind"] for image in images})),
        cards="".join(_card(image, threshold) for image in worst[:GALLERY]),
    )


def _mistakes(images: Sequence[GalleryImage], threshold: float, note: str) -> str:
    """Return the section of the WORST missed defects and false alarms, those farthest from the threshold first."""
    parts = []
    for found, title in (("missed", "Missed defects"), ("false alarm", "False alarms")):
        of_kind = [image for image in images if _outcome(image, threshold) == found]
        worst = sorted(of_kind, key=lambda image: -_mistake(image, threshold))[:WORST]
        count = f"the worst {len(worst)} of {len(of_kind)}" if len(of_kind) > WORST else str(len(of_kind) or "none")
        shown = "".join(_worst(image, threshold) for image in worst)
        parts.append(f'<h3>{title}: {count}</h3><div class="mistakes">{shown}</div>')
    return f'<h2 id="mistakes">The worst mistakes</h2><p class="note">{note}</p>{"".join(parts)}'


def _worst(image: GalleryImage, threshold: float) -> str:
    told = f"{image['path']} ({image['kind']}): score {image['score']:.4g}, threshold {threshold:.4g}"
    return f"<figure>{_image(image['thumbnail'], told)}<figcaption>{_text(told)}</figcaption></figure>"


def _outcome(image: GalleryImage, threshold: float) -> str:
    return outcome(image["score"] > threshold, image["label"])


def _mistake(image: GalleryImage, threshold: float) -> float:
    """Return what the gallery is sorted by: the clearest mistake has most, the clearest correct score least."""
    distance = abs(image["score"] - threshold)
    return -distance if _outcome(image, threshold) == "correct" else distance


def _card(image: GalleryImage, threshold: float) -> str:
    found = _outcome(image, threshold)
    words = f"correct: {'anomalous' if image['label'] else 'normal'}" if found == "correct" else found
    picture = _image(image["thumbnail"], f"{image['path']}: {words}")
    return (
        f'<article class="card {_CLASSES[found]}" data-score="{image["score"]:.8g}" '
        f'data-mistake="{_mistake(image, threshold):.8g}" data-outcome="{_CLASSES[found]}" '
        f'data-kind="{_text(image["kind"])}" data-name="{_text(image["path"])}">{picture}'
        f'<p><span class="outcome">{words}</span>, score {image["score"]:.4g}</p>'
        f'<p class="note">{_text(image["path"])}</p></article>'
    )


def _folded(card: Card) -> str:
    parts = []
    for section in card.sections:
        parts.append(f"<h3>{_text(section.heading)}</h3>")
        parts += [f"<p>{_text(sentence)}</p>" for sentence in section.sentences]
        parts.append(_rows({name: cell(value) for name, value in section.rows.items()}) if section.rows else "")
        parts.append(f"<pre>{_text(section.command)}</pre>" if section.command else "")
    return f"<details><summary>{_text(card.title)}</summary>{''.join(parts)}</details>"


def _repeat(command: str, fingerprint: str | None) -> str:
    note = f"On the same images (fingerprint {fingerprint}), machine and versions the digits are the same."
    return f'<pre>{_text(command)}</pre><p class="note">{_text(note)}</p>'


def _sortable(rows: Sequence[Mapping[str, Cell]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = ("".join(_cell(row.get(column, Cell(cell(None), ""))) for column in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(one: Cell) -> str:
    return f'<td data-value="{_text(one.key)}">{_text(one.text)}</td>'


def _links(jobs: Mapping[str, Path], folder: Path) -> str:
    return f"<ul>{''.join(_link(name, path, folder) for name, path in jobs.items())}</ul>"


def _link(name: str, path: Path, folder: Path) -> str:
    target = quote(os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")))
    return f'<li><a href="{_text(target)}">{_text(name)}</a></li>'
