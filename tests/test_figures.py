from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from texture_ad.errors import UserError
from texture_ad.evaluation.curves import bin_scores, precision_recall_curve, roc_curve
from texture_ad.evaluation.embedding import embed
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.reporting import charts, panels
from texture_ad.reporting.tables import markdown_table, metrics_table

SOURCE = "embedded carpet (generated, not MVTec AD)"
LABELS = np.array([0] * 12 + [1] * 18)
SCORES = np.random.default_rng(0).normal(2 + LABELS, 0.6)


def panel(path, size=128, **changes):
    region, mask = np.zeros((2, size, size), dtype=bool)
    region[8:24, 8:24] = mask[10:20, 10:30] = True
    arguments = {
        "image": np.random.default_rng(0).integers(90, 160, (size, size, 3), dtype=np.uint8),
        "anomaly_map": np.linspace(0, 1, size * size, dtype=np.float32).reshape(size, size),
        "region": region,
        "region_name": "region",
        "mask": mask,
        "score": 3.0,
        "threshold": 2.0,
        "label": 1,
        "path": path,
        "vmin": 0.0,
        "vmax": 1.0,
        "source": SOURCE,
    }
    panels.localization_panel(**(arguments | changes))
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def histogram(scores, labels, threshold, path, source):
    charts.score_histogram(bin_scores(scores, labels), threshold, path, source)


def roc_pr(scores, labels, threshold, path, source):
    curves = roc_curve(scores, labels), precision_recall_curve(scores, labels)
    charts.roc_pr(*curves, image_metrics(scores, labels, threshold), path, source)


def tsne(features, labels, path, seed=0):
    charts.tsne(*embed(features, labels, seed, max_points=40), path, SOURCE, "patches")


def tiles(page, size=256):
    """The four pictures of a panel, by their place: 8 pixels apart, at the page's lower end."""
    return [page[-size - 8 : -8, 8 + k * (size + 8) : 8 + k * (size + 8) + size] for k in range(4)]


def test_panel_shows_image_mask_map_and_region(tmp_path):
    image = np.random.default_rng(1).integers(90, 160, (128, 128, 3), dtype=np.uint8)
    page = panel(tmp_path / "a.png", image=image)
    picture, truth, heat, located = tiles(page)
    enlarged = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    assert np.array_equal(picture, enlarged)
    changed = np.argwhere((truth != enlarged).any(axis=2))
    # The outline lies round the mask (rows 20-39, columns 20-59 when enlarged); the defect itself stays seen.
    assert changed.min(axis=0).tolist() == [17, 17] and changed.max(axis=0).tolist() == [42, 62]
    assert np.array_equal(truth[20:40, 20:60], enlarged[20:40, 20:60])
    assert heat[-20:].mean() > heat[:20].mean() + 40
    assert np.array_equal(located[16:48, 16:48], enlarged[16:48, 16:48])
    assert located[100:].mean() < 0.7 * enlarged[100:].mean()


def test_panel_tells_the_verdict_the_truth_and_the_source(tmp_path):
    def heading(name, **changes):
        return panel(tmp_path / name, **changes)[: -256 - 8]

    shown = [
        heading("hit.png"),
        heading("miss.png", score=1.0),
        heading("alarm.png", label=0, mask=None),
        heading("unknown.png", label=None, mask=None),
        heading("source.png", source="MVTec AD carpet"),
    ]
    for one in range(len(shown)):
        for other in range(one):
            assert not np.array_equal(shown[one], shown[other])


def test_panels_of_one_scale_can_be_compared(tmp_path):
    low = tiles(panel(tmp_path / "low.png", anomaly_map=np.full((128, 128), 0.1)))[2]
    high = tiles(panel(tmp_path / "high.png", anomaly_map=np.full((128, 128), 0.9)))[2]
    beyond = tiles(panel(tmp_path / "beyond.png", anomaly_map=np.full((128, 128), 7.0)))[2]
    assert low.mean() + 50 < high.mean() < beyond.mean()


def test_panel_takes_odd_shapes_and_a_constant_scale(tmp_path):
    flat = np.zeros((50, 300), dtype=bool)
    page = panel(
        tmp_path / "wide.png",
        image=np.zeros((50, 300, 3), dtype=np.uint8),
        anomaly_map=np.zeros((50, 300)),
        region=flat,
        mask=flat,
        vmin=0.0,
        vmax=0.0,
    )
    # Wide pictures stand below each other.
    assert page.shape[0] > 4 * 50 and 300 < page.shape[1] < 2 * 300


def test_panel_refuses_other_sizes_and_types(tmp_path):
    with pytest.raises(UserError, match=r"a.png: mask is \(64, 64\)"):
        panel(tmp_path / "a.png", mask=np.zeros((64, 64), dtype=bool))
    with pytest.raises(UserError, match="uint8"):
        panel(tmp_path / "a.png", image=np.zeros((128, 128, 3)))
    assert not list(tmp_path.iterdir())


def test_a_long_source_is_wrapped_not_cut(tmp_path):
    short = panel(tmp_path / "short.png", size=64)
    long = panel(tmp_path / "long.png", size=64, source="a folder with quite a long name / " * 8)
    assert long.shape[0] > short.shape[0] and long.shape[1] == short.shape[1]


@pytest.mark.parametrize("draw", [charts.score_line_graph, histogram, roc_pr])
def test_charts_name_their_source_and_leave_only_their_files(tmp_path, draw):
    path = tmp_path / "new" / "chart.png"
    draw(SCORES, LABELS, 2.5, path, "a $strange$ folder_name")
    assert sorted(p.name for p in path.parent.iterdir()) == ["chart.png", "chart.svg"]
    # matplotlib writes each text as a comment beside its outline.
    assert "a $strange$ folder_name" in path.with_suffix(".svg").read_text(encoding="utf-8")
    assert Image.open(path).width > 800
    first = path.read_bytes(), path.with_suffix(".svg").read_bytes()
    draw(SCORES, LABELS, 2.5, path, "a $strange$ folder_name")
    assert first == (path.read_bytes(), path.with_suffix(".svg").read_bytes())


def test_charts_use_the_papers_colours(tmp_path):
    path = tmp_path / "line.png"
    charts.score_line_graph(SCORES, LABELS, 2.5, path, SOURCE)
    svg = path.with_suffix(".svg").read_text(encoding="utf-8").lower()
    assert svg.count(charts.NORMAL.lower()) >= 12 and svg.count(charts.ANOMALOUS.lower()) >= 18
    assert "normal (12)" in svg and "anomalous (18)" in svg and "threshold 2.5" in svg


def test_roc_prints_the_metrics_and_needs_both_classes(tmp_path):
    path = tmp_path / "roc.png"
    roc_pr([1, 2, 3, 4], [0, 1, 0, 1], 9.0, path, SOURCE)
    assert "AUROC 0.750" in path.with_suffix(".svg").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="one class"):
        roc_pr([1.0, 2.0], [1, 1], 1.5, tmp_path / "one.png", SOURCE)
    histogram([1.0, 1.0], [1, 1], 1.5, tmp_path / "one.png", SOURCE)
    charts.score_line_graph([1.0], [0], 1.5, tmp_path / "line.png", SOURCE)
    with pytest.raises(UserError, match="finite"):
        charts.score_line_graph([np.nan], [0], 1.5, tmp_path / "line.png", SOURCE)


def test_a_failure_leaves_the_earlier_picture_and_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "panel.png"
    panel(path)
    before = path.read_bytes()

    def fail(image, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError):
        panel(path, score=1.0)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["panel.png"]


def test_tsne_chooses_by_seed_and_from_both_classes(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(200, dtype=int), np.ones(10, dtype=int)]
    before = rng.standard_normal((210, 8))
    after = rng.standard_normal((210, 4)) + 5 * labels[:, None]
    path = tmp_path / "tsne.png"
    features = {"before the flow": before, "after the flow": after}
    tsne(features, labels, path)
    svg = path.with_suffix(".svg").read_bytes()
    assert b"normal patches (30)" in svg and b"anomalous patches (10)" in svg and b"after the flow" in svg
    tsne(features, labels, path)
    assert path.with_suffix(".svg").read_bytes() == svg
    tsne(features, labels, path, seed=1)
    assert path.with_suffix(".svg").read_bytes() != svg


def test_tsne_refuses_collapsed_and_unequal_features():
    features = np.random.default_rng(0).standard_normal((20, 3))
    labels = np.arange(20) % 2
    with pytest.raises(UserError, match="after.*collapsed"):
        embed({"before": features, "after": np.ones((20, 3))}, labels, seed=0)
    with pytest.raises(UserError, match="'before': 19"):
        embed({"before": features[1:], "after": features}, labels, seed=0)


def test_atoms_draws_at_most_64_and_any_number_of_patches(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (70, 1, 1, 1, 3), dtype=np.uint8)
    crops = [np.broadcast_to(colour, (1 + i % 6, 12, 12, 3)).copy() for i, colour in enumerate(colours)]
    usage = np.linspace(0.2, 0.01, 70)
    panels.atoms(crops, range(70), usage, tmp_path / "many.png", SOURCE)
    panels.atoms(crops[:64], range(64), usage[:64], tmp_path / "exact.png", SOURCE)
    assert (tmp_path / "many.png").read_bytes() == (tmp_path / "exact.png").read_bytes()
    page = np.asarray(Image.open(tmp_path / "many.png").convert("RGB"))
    found = {tuple(colour) for colour in page.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in colours[:64].reshape(-1, 3).tolist()} <= found
    with pytest.raises(UserError, match="at least one patch"):
        panels.atoms([crops[0][:0]], [0], [0.1], tmp_path / "none.png", SOURCE)


def test_one_scale_for_run_and_predict_has_the_threshold_in_its_middle():
    assert panels.colour_scale(-0.5, 2.0) == (-0.5, 4.5)
    assert panels.colour_scale(3.0, 2.0) == (3.0, 4.0)


def test_overlays_of_images_that_differ_in_their_suffix_alone_differ():
    names = [Path("hole/1.png"), Path("hole/1.jpg"), Path("hole/1.PNG")]
    paths = [panels.overlay_path(name) for name in names]
    assert paths[1] == Path("overlays/hole/1.jpg") and len(set(paths)) == 3 and {p.suffix for p in paths} == {".jpg"}


def test_a_panel_without_a_known_truth_leaves_its_picture_out(tmp_path):
    page = panel(tmp_path / "a.png", label=None, mask=None)
    assert page.shape[1] == 3 * 264 + 8
    told = panel(tmp_path / "b.png")
    for kept, number in enumerate((0, 2, 3)):
        assert np.array_equal(page[-264:-8, 8 + kept * 264 :][:, :256], tiles(told)[number])


def test_a_jpeg_shows_what_the_png_shows(tmp_path):
    soft = np.tile(np.linspace(60, 200, 128).astype(np.uint8)[:, None, None], (1, 128, 3))
    png, jpeg = panel(tmp_path / "a.png", image=soft), panel(tmp_path / "a.jpg", image=soft)
    assert png.shape == jpeg.shape and np.abs(png - jpeg).mean() < 2


def test_metrics_table_explains_what_is_missing_and_names_the_source():
    metrics = {
        "image_auroc": None,
        "image_f1": 0.98765,
        "precision": None,
        "aupro": None,
        "threshold": 12.345678,
        "threshold_origin": "for a false-alarm rate of 0.01",
        "normal_images": 3,
        "anomalous_images": 4,
        "pixel_threshold": 3.21098,
        "fit_seconds": 2.25,
        "test_seconds_per_image": 0.0125,
        "seconds": 12.5,
        "versions": {"torch": "2"},
    }
    table = metrics_table(metrics, SOURCE)
    lines = table.splitlines()
    assert lines[0].endswith(SOURCE)
    assert "7 (3 normal, 4 anomalous)" in lines[1]
    assert lines[2].endswith("12.35 (for a false-alarm rate of 0.01)")
    assert lines[3].endswith("3.211 (in images above the threshold)") and lines[3].startswith("pixel threshold")
    assert [line.split()[-1] for line in lines if line.startswith(("training, s", "test, ms an image"))] == [
        "2.2",
        "12.5",
    ]
    assert next(line for line in lines if "F1" in line).split()[-1] == "0.988"
    assert "n/a (needs normal and anomalous images)" in table and "n/a (needs masks of defects)" in table
    assert "n/a (no image was called anomalous)" in table
    assert lines[-1].startswith("seconds") and lines[-1].endswith("12.500")
    assert "recall" not in table and "None" not in table and "torch" not in table


def test_markdown_table_shows_mean_and_spread():
    rows = [
        {"method": "a|b", "AUROC": [0.9, 0.8, 0.7], "n": 3},
        {"method": "ours", "AUROC": (0.95,), "AP": None},
    ]
    assert markdown_table(rows).splitlines() == [
        "| method |         AUROC |   n |  AP |",
        "| ------ | ------------: | --: | --: |",
        "| a\\|b   | 0.800 ± 0.100 |   3 |   – |",
        "| ours   |         0.950 |   – |   – |",
    ]
