"""One self-contained HTML page for a run, and one for a sweep: opens from disk, asks no network for anything.

Every name and value that comes from data or configuration goes through `_text`; beyond that, the page's own policy
lets no script run but the one below, by its hash.
"""

import base64
import hashlib
import html
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from texture_ad.files import write_text
from texture_ad.reporting.tables import cell, metrics_rows

TILE = 192  # pixels of a thumbnail's side
GALLERY = 600  # images shown at most, the worst mistakes first
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
_STYLE = """
:root { --ink: #1c1c1c; --quiet: #5c5c5c; --line: #dcdcdc; --normal: #cc3311; --anomalous: #0077bb; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.source, .note, figcaption { color: var(--quiet); margin: .25rem 0; }
.verdict { border-left: .3rem solid var(--anomalous); background: #f3f7fa; padding: .75rem 1rem; margin: 1rem 0; }
.verdict p { margin: .25rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); } th { font-weight: 600; }
table.sortable th { cursor: pointer; } table.sortable td { white-space: nowrap; }
nav a { margin-right: 1rem; }
figure { margin: 0 0 1.5rem; } figure img { min-width: 36rem; max-width: 100%; max-height: 40rem; } h3 { margin: 0; }
.controls { background: #fff; padding: .5rem 0; display: flex; flex-wrap: wrap; gap: .5rem;
  border-bottom: 1px solid var(--line); }
@media (min-width: 40rem) { .controls { position: sticky; top: 0; } }
.controls select, .controls input { font: inherit; padding: .3rem; max-width: 100%; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1rem; }
.card { border: 1px solid var(--line); border-top: .25rem solid var(--line); padding: .5rem; }
.card.missed, .card.alarm { border-top-color: #ddaa33; }
.card img { width: 100%; height: auto; display: block; background: #eee; } .card p { margin: .25rem 0 0; }
.card .outcome { font-weight: 600; } [hidden] { display: none !important; }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; overflow-wrap: normal; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; margin: .5rem 0; }
a { color: #005a8c; }
"""
_SCRIPT = """
"use strict";
const gallery = document.querySelector(".gallery");
if (gallery) {
  const cards = [...gallery.children], get = id => document.getElementById(id);
  const orders = {
    mistake: (a, b) => b.dataset.mistake - a.dataset.mistake,
    high: (a, b) => b.dataset.score - a.dataset.score,
    low: (a, b) => a.dataset.score - b.dataset.score,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  };
  const update = () => {
    const outcome = get("outcome").value, kind = get("kind").value, name = get("name").value.toLowerCase();
    cards.sort(orders[get("order").value]);
    let shown = 0;
    for (const card of cards) {
      const d = card.dataset;
      card.hidden = !((!outcome || outcome.split(" ").includes(d.outcome)) && (!kind || d.kind === kind)
        && d.name.toLowerCase().includes(name));
      shown += !card.hidden;
      gallery.append(card);
    }
    get("shown").textContent = shown + " of " + cards.length + " shown";
  };
  for (const id of ["order", "outcome", "kind", "name"]) get(id).addEventListener("input", update);
  update();
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th");
    if (!head) return;
    const column = head.cellIndex, turn = head.ariaSort === "descending" ? 1 : -1, rows = [...table.tBodies[0].rows];
    const value = row => row.cells[column].dataset.value, number = row => parseFloat(value(row));
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = turn < 0 ? "descending" : "ascending";
    rows.sort((a, b) => {
      const difference = number(a) - number(b);
      return turn * (isNaN(difference) ? value(a).localeCompare(value(b)) : difference);
    });
    table.tBodies[0].append(...rows);
  });
}
"""
_CONTENTS = """<nav><a href="#metrics">Metrics</a><a href="#figures">Figures</a><a href="#images">Test images</a>
<a href="#repeat">How to repeat it</a></nav>"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="source">Data: {source}</p>
{body}
<script>{script}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    """Anything as text that is safe in an element and in a quoted attribute; control characters are shown escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(value))
    return html.escape(shown, quote=True)


def _page(title: str, source: str, body: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return _PAGE.format(
        policy=policy, title=_text(title), source=_text(source), style=_STYLE, body=body, script=_SCRIPT
    )


def _image(content: bytes, caption: str) -> str:
    uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return f'<img src="{uri}" alt="{_text(caption)}">'


def _webp(picture, **options) -> bytes:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "WEBP", **options)
    return content.getvalue()


def thumbnail(tiles: Sequence[np.ndarray]) -> bytes:
    """Pictures (H, W, 3) uint8 of one size side by side, each `TILE` pixels high, as WebP."""
    from PIL import Image

    height, width = tiles[0].shape[:2]
    width = round(width * TILE / height)
    strip = Image.new("RGB", (len(tiles) * (width + 4) - 4, TILE), "white")
    for place, tile in enumerate(tiles):
        strip.paste(Image.fromarray(tile).resize((width, TILE), Image.Resampling.BICUBIC), (place * (width + 4), 0))
    return _webp(strip, quality=70)


def _figure(path: Path, title: str, caption: str) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        # Charts are smaller without loss, photographs with.
        image = _image(min(_webp(picture, lossless=True), _webp(picture, quality=85), key=len), title)
    return (
        f'<figure><h3>{_text(title)}</h3><div class="scroll">{image}</div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _rows(rows: Mapping[str, object]) -> str:
    cells = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    return f'<div class="scroll"><table>{"".join(cells)}</table></div>'


def verdict(metrics: Mapping) -> list[str]:
    """What the metrics of a run say, in sentences."""
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
    sentences.append("The threshold was set without any test image.")
    return sentences


def _card(image: Mapping, threshold: float) -> str:
    score = image["score"]
    called = image["score"] > threshold
    outcome = "correct" if called == image["label"] else "alarm" if called else "missed"
    words = {"correct": f"correct: {'anomalous' if called else 'normal'}", "alarm": "false alarm", "missed": "missed"}
    # Mistakes first, the clearest first; then what is right, the closest to the threshold first.
    mistake = abs(score - threshold) * (-1 if outcome == "correct" else 1)
    picture = _image(image["thumbnail"], f"{image['path']}: {words[outcome]}") if image.get("thumbnail") else ""
    return (
        f'<article class="card {outcome}" data-score="{score:.8g}" data-mistake="{mistake:.8g}" '
        f'data-outcome="{outcome}" data-kind="{_text(image["kind"])}" data-name="{_text(image["path"])}">{picture}'
        f'<p><span class="outcome">{words[outcome]}</span>, score {score:.4g}</p>'
        f'<p class="note">{_text(image["path"])}</p></article>'
    )


def _gallery(images: Sequence[Mapping], threshold: float, source: str) -> str:
    if not images:
        return ""
    worst = sorted(images, key=lambda i: ((i["score"] > threshold) == i["label"], -abs(i["score"] - threshold)))
    kinds = "".join(f"<option>{_text(kind)}</option>" for kind in sorted({i["kind"] for i in images}))
    note = "Left to right: the image with the true defect's outline, the anomaly map, the located region."
    if len(images) > GALLERY:
        note += f" The {GALLERY} clearest mistakes and scores of {len(images)} images; scores.csv has all."
    return f"""<section id="images"><h2>Test images</h2>
<p class="note">{note} Data: {_text(source)}.</p>
<div class="controls">
<select id="order" aria-label="order"><option value="mistake">worst mistakes first</option>
<option value="high">highest score first</option><option value="low">lowest score first</option>
<option value="name">by name</option></select>
<select id="outcome" aria-label="outcome"><option value="">all outcomes</option>
<option value="missed alarm">mistakes</option><option value="missed">missed defects</option>
<option value="alarm">false alarms</option><option value="correct">correct</option></select>
<select id="kind" aria-label="kind"><option value="">all kinds</option>{kinds}</select>
<input id="name" type="search" placeholder="name" aria-label="name"> <span class="note" id="shown"></span>
</div>
<div class="gallery">{"".join(_card(image, threshold) for image in worst[:GALLERY])}</div></section>"""


def _repeat(folder: Path, metrics: Mapping) -> str:
    overrides = folder / "hydra" / "overrides.yaml"
    arguments = []
    if overrides.is_file():
        from omegaconf import OmegaConf

        arguments = [str(o) for o in OmegaConf.load(overrides) if not str(o).startswith("run_dir=")]
    command = shlex.join(["python", "-m", "texture_ad.run", *arguments])
    fingerprint = metrics.get("data_fingerprint")
    note = f"On the same images (fingerprint {fingerprint}), machine and versions the digits are the same."
    return f"<pre>{_text(command)}</pre><p class=note>{_text(note)}</p>"


def write_report(folder: Path, metrics: Mapping, images: Sequence[Mapping]) -> Path:
    """Writes report.html into a run folder, from the figures and the configuration that are there.

    Args:
        folder: of the run.
        metrics: what metrics.json holds.
        images: of the test, each with `path`, `kind`, `label`, `score` and, for the gallery, `thumbnail` (WebP bytes);
            empty for a report without a gallery.

    Returns:
        The file's path.
    """
    source = metrics["data_source"]
    heading, rows = metrics_rows({k: v for k, v in metrics.items() if k not in ("data_source", "category")}, source)
    warnings = []
    if (folder / "duplicates.csv").is_file():
        warnings.append("Some test images are copies of training images (duplicates.csv): the metrics are too good.")
    figures = [
        _figure(folder / f"{name}.png", *about)
        for name, about in _FIGURES.items()
        if (folder / f"{name}.png").is_file()
    ]
    config = folder / "config.yaml"
    settings = config.read_text(encoding="utf-8") if config.is_file() else ""
    body = [
        f'<div class="verdict">{"".join(f"<p>{_text(s)}</p>" for s in verdict(metrics) + warnings)}</div>',
        _CONTENTS if images else "",
        f'<h2 id="metrics">Metrics</h2>{_rows({k.replace("_", " "): v for k, v in (heading | rows).items()})}',
        f'<h2 id="figures">Figures</h2>{"".join(figures)}' if figures else "",
        _gallery(images, metrics["threshold"], source),
        f'<h2 id="repeat">How to repeat it</h2>{_repeat(folder, metrics)}',
        f"<details><summary>Versions</summary>{_rows(metrics.get('versions', {}))}</details>",
        f"<details><summary>Configuration</summary><pre>{_text(settings)}</pre></details>",
    ]
    path = folder / "report.html"
    write_text(path, _page(f"{metrics.get('category', folder.name)}: texture_ad's report", source, "\n".join(body)))
    return path


def sweep_report(
    folder: Path,
    rows: Sequence[Mapping],
    plots: Sequence[Path],
    source: str,
    jobs: Mapping[str, Path],
    verdict: Sequence[str] = (),
) -> Path:
    """Writes report.html into a sweep's folder: the comparison, its plots, and the way to each job's own report.

    Args:
        folder: of the sweep.
        rows: one a setting; columns are the keys in the order of their first appearance, a list or tuple of numbers
            (one for each seed) is shown as mean ± sample standard deviation, None as a dash.
        plots: PNG files.
        source: the data source's name.
        jobs: a job's name to its report.html, which is linked relative to `folder`.
        verdict: sentences for the top of the page, such as which jobs failed.

    Returns:
        The file's path.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        values = [row.get(column) for column in columns]
        keys = [float(np.mean(v)) if isinstance(v, list | tuple) and v else "" if v is None else v for v in values]
        lines.append(
            "".join(f'<td data-value="{_text(k)}">{_text(cell(v))}</td>' for k, v in zip(keys, values, strict=True))
        )
    links = []
    for name, path in jobs.items():
        target = quote(os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")))
        links.append(f'<li><a href="{_text(target)}">{_text(name)}</a></li>')
    body = [
        f'<div class="verdict">{"".join(f"<p>{_text(s)}</p>" for s in verdict)}</div>' if verdict else "",
        '<h2>Comparison</h2><p class="note">A click on a column sorts by it.</p><div class="scroll">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>'
        f"{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table></div>",
        "".join(_figure(plot, plot.stem.replace("_", " ").capitalize(), "") for plot in plots),
        f"<h2>Runs</h2><ul>{''.join(links)}</ul>" if links else "",
    ]
    path = folder / "report.html"
    write_text(path, _page(f"{folder.name}: texture_ad's comparison", source, "\n".join(body)))
    return path
