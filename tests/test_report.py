"""The report of a run and of a sweep: hostile names, and a headless browser at the width of a phone and of a desk."""

import html.parser
import re

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from texture_ad.cli.experiment import repeat_command
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.reporting.report import Cell, sweep_report, thumbnail, verdict, write_report
from texture_ad.reporting.tables import mean_and_deviation

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "two\nlines\u202e &amp; ]]>",
    "\udcff",
    "{x}%s",
]
SOURCE = "embedded carpet (generated, not a benchmark) <b>&"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Page(html.parser.HTMLParser):
    """A page's elements, and the text outside scripts and styles."""

    def __init__(self, content: str):
        super().__init__()
        self.elements = []
        self.text = ""
        self.inside = ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def images(names, scores, labels):
    rng = np.random.default_rng(0)
    tiles = [[rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)] * 3 for _ in names]
    return [
        {"path": n, "kind": n, "label": y, "score": s, "thumbnail": thumbnail(t)}
        for n, s, y, t in zip(names, scores, labels, tiles, strict=True)
    ]


@pytest.fixture
def report(tmp_path):
    """A run folder whose every name is hostile, with its report."""
    scores = [0.5, 3.0, 1.5, 4.0, 2.5]
    labels = [0, 1, 1, 1, 0]
    metrics = {"data_source": SOURCE, "category": HOSTILE[0], "versions": {HOSTILE[1]: HOSTILE[2]}}
    metrics |= image_metrics(scores, labels, 2.0)
    (tmp_path / "config.yaml").write_text("\n".join(HOSTILE[:3]))
    Image.new("RGB", (1200, 600), "white").save(tmp_path / "scores.png")
    return write_report(
        tmp_path,
        metrics,
        images(HOSTILE, scores, labels),
        repeat_command(["data.root='</pre><script>x'", "run_dir=elsewhere"]),
    )


def test_every_name_is_text_and_nothing_is_fetched(report):
    content = report.read_text(encoding="utf-8")
    page = Page(content)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and tags.count("article") == len(HOSTILE)
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    links = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert links and all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    # The policy allows this script alone, and no network.
    policy = next(
        a["content"] for tag, a in page.elements if tag == "meta" and "content" in a and "src" in a["content"]
    )
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    assert all(text in page.text for text in (HOSTILE[0], HOSTILE[1], "\\u202e &amp; ]]>", "\\udcff", "{x}%s", SOURCE))
    assert not list(report.parent.glob("*.partial"))
    assert "max-width: 70rem" in content and "--mistake" in content  # rules of both style sheets


def test_report_tells_what_was_found_and_how_to_repeat_it(report):
    text = Page(report.read_text(encoding="utf-8")).text
    assert "2 of 3 anomalous images were found and 1 of 2 normal images raised a false alarm" in text
    assert "python -m texture_ad.run 'data.root='" in text and "elsewhere" not in text
    assert re.search(r"missed, score 1\.5", text) and "false alarm, score 2.5" in text


def test_the_worst_mistakes_have_a_section(report, monkeypatch):
    monkeypatch.setattr("texture_ad.reporting.report.WORST", 2)
    scores, labels = [1.0, 0.5, 1.9, 2.5, 3.0, 0.1], [1, 1, 1, 0, 1, 0]
    metrics = {"data_source": SOURCE} | image_metrics(scores, labels, 2.0)
    write_report(report.parent, metrics, images("abcdef", scores, labels), "again")
    section = report.read_text(encoding="utf-8").split('id="mistakes"')[1].split('id="images"')[0]
    assert "Missed defects: the worst 2 of 3" in section and "False alarms: 1<" in section
    told = re.findall(r"<figcaption>(.*?)</figcaption>", section)
    assert [text[0] for text in told] == ["b", "a", "d"]  # the farthest from the threshold first
    assert "b (b): score 0.5, threshold 2" in told
    metrics |= image_metrics([1.0, 3.0], [0, 1], 2.0)
    for more, told in (({"pixel_threshold": 3.0}, "the anomaly map, the located region"), ({}, "has no anomaly map")):
        write_report(report.parent, metrics | more, images("ab", [1.0, 3.0], [0, 1]), "again")
        page = report.read_text(encoding="utf-8")
        assert "Missed defects: none" in page and page.count(told) == 2 and page.count("anomaly map") == 2


def test_verdict_does_without_one_of_the_classes():
    assert verdict(image_metrics([1.0, 3.0], [0, 0], 2.0))[0] == "1 of 2 normal images raised a false alarm."
    assert verdict(image_metrics([1.0], [1], 2.0))[0] == "0 of 1 anomalous images were found."


def test_report_without_pictures_and_a_gallery_beyond_its_limit(report, monkeypatch):
    monkeypatch.setattr("texture_ad.reporting.report.GALLERY", 2)
    metrics = {"data_source": SOURCE} | image_metrics([1.0, 3.0, 2.5], [1, 1, 0], 2.0)
    write_report(report.parent, metrics, images(["a", "b", "c"], [1.0, 3.0, 2.5], [1, 1, 0]), "again")
    page = Page(report.read_text(encoding="utf-8"))
    assert [a["data-name"] for tag, a in page.elements if tag == "article"] == ["a", "c"] and "of 3 images" in page.text
    write_report(report.parent, metrics, [], "again")
    assert "article" not in [tag for tag, _ in Page(report.read_text(encoding="utf-8")).elements]


def sweep(folder):
    def auroc(*values):
        return Cell(mean_and_deviation(values, 3), sum(values) / len(values))

    rows = [
        {"flow.blocks": Cell("4", 4), "AUROC": auroc(0.9, 0.8), "text": Cell(HOSTILE[0], HOSTILE[0])},
        {"flow.blocks": Cell("16", 16), "AUROC": auroc(0.7, 0.75)},
        {"flow.blocks": Cell("8", 8), "AUROC": auroc(0.95, 0.93), HOSTILE[1]: Cell("1", 1)},
    ]
    Image.new("RGB", (900, 400), "white").save(folder / "auroc.png")
    jobs = {HOSTILE[0]: folder / "a b<script>" / "report.html", "failed": folder / "c" / "report.html"}
    return sweep_report(folder, rows, [folder / "auroc.png"], SOURCE, jobs, ["1 of 3 jobs failed: " + HOSTILE[0]])


def test_sweep_report_links_its_jobs_and_escapes_their_names(tmp_path):
    page = Page(sweep(tmp_path).read_text(encoding="utf-8"))
    assert [a["href"] for tag, a in page.elements if tag == "a"] == ["a%20b%3Cscript%3E/report.html", "c/report.html"]
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "0.850 ± 0.071" in page.text and "–" in page.text and HOSTILE[1] in page.text


@needs_chromium
def test_reports_in_a_browser(report, tmp_path):
    (tmp_path / "sweep").mkdir()
    comparison = sweep(tmp_path / "sweep")
    with Browser(tmp_path / "profile") as browser:
        for path in (report, comparison):
            for width in (360, 1200):
                browser.open(path, width)
                # Nothing wider than the window, nothing fetched, nothing that the browser complains of.
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                fetched = [e["params"]["request"]["url"] for e in browser.events if e["method"].endswith("WillBeSent")]
                assert all(url.startswith(("data:", path.as_uri())) for url in fetched)
                said = ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
                assert not [e for e in browser.events if e["method"] in said]
                assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

        browser.evaluate("document.querySelectorAll('th')[1].click()")
        first = "document.querySelector('tbody').rows[0].cells[0].textContent"
        assert browser.evaluate(first) == "8"
        browser.evaluate("document.querySelectorAll('th')[1].click()")
        assert browser.evaluate(first) == "16"

        browser.open(report)
        shown = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => Number(c.dataset.score))"

        def choose(key, value):
            browser.evaluate(
                f"document.getElementById('{key}').value = {value!r};"
                f"document.getElementById('{key}').dispatchEvent(new Event('input'))"
            )
            return browser.evaluate(shown)

        assert browser.evaluate(shown)[:2] == [1.5, 2.5]  # both are wrong by 0.5
        assert choose("order", "high") == [4, 3, 2.5, 1.5, 0.5]
        assert choose("outcome", "missed alarm") == [2.5, 1.5]
        assert choose("outcome", "missed") == [1.5]
        assert choose("outcome", "") == choose("order", "high")
        assert choose("name", "ALERT") == [3, 0.5]
        assert browser.evaluate("document.getElementById('shown').textContent") == "2 of 5 shown"
