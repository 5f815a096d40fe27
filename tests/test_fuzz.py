"""Random bytes, sizes and settings: each is worked with or refused by a UserError, never by anything else.

A short run here; TEXTURE_AD_LONG=1 tries thousands of cases.
"""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import untrained_detector
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from texture_ad.cli.entry import CONF, check_targets
from texture_ad.cli.explain import explain
from texture_ad.data.cutpaste import AREA, KINDS, cutpaste
from texture_ad.data.geometry import Geometry
from texture_ad.data.images import read_image, read_mask, resize, resize_mask
from texture_ad.deploy.scorer import COLUMNS, Row
from texture_ad.deploy.watch import Rows
from texture_ad.errors import UserError
from texture_ad.files import csv_text
from texture_ad.methods.registry import load
from texture_ad.parameters import NonNegativeInt, check
from texture_ad.pipeline import Run

LONG = bool(os.environ.get("TEXTURE_AD_LONG"))


def cases(short: int, long: int):
    return settings(
        max_examples=long if LONG else short,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def encoded(format: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


SEEDS = [
    encoded(f, m)
    for f, m in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "LA"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "L"),
        ("TIFF", "F"),
        ("WEBP", "RGBA"),
    )
]


@st.composite
def damaged(draw, seeds):
    """A file with some bytes changed, cut out or added."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(["set", "cut", "add", "truncate"]))
        if kind == "set":
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 64))]
        elif kind == "add":
            content[at:at] = draw(st.binary(min_size=1, max_size=32))
        else:
            del content[max(at, 1) :]
        if not content:
            break
    return bytes(content)


@cases(150, 20_000)
@given(damaged(SEEDS) | st.binary(max_size=200), st.sampled_from([".png", ".jpg", ".tif", ".gif"]))
def test_any_bytes_as_an_image(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        try:
            pixels = read_image(path)
        except UserError as error:
            assert str(path) in str(error)
            return
    assert pixels.dtype in (np.uint8, np.float32) and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 <= pixels.min() <= pixels.max() <= 255
    assert resize(pixels, (32, 32)).shape == (3, 32, 32)


@cases(100, 10_000)
@given(damaged([encoded("PNG", "L"), encoded("PNG", "1"), encoded("TIFF", "L")]))
def test_any_bytes_as_a_mask(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        try:
            mask = read_mask(path, (12, 10))
        except UserError as error:
            assert str(path) in str(error)
            return
    assert mask.dtype == bool and mask.shape == (12, 10)


@cases(60, 5_000)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 2**31), st.sampled_from([32, 48]))
def test_no_mask_vanishes_in_resizing(height, width, seed, size):
    mask = np.random.default_rng(seed).random((height, width)) < 0.02
    assume(mask.any())
    small = resize_mask(mask, (size, 32))
    assert small.any() and (not mask.all() or small.all())


@cases(60, 5_000)
@given(st.integers(1, 4), st.integers(16, 80), st.integers(16, 80), st.integers(0, 2**31), st.sampled_from(KINDS))
def test_cutpaste_changes_only_what_its_mask_says(batch, height, width, seed, kind):
    torch.manual_seed(seed)
    images = torch.rand(batch, 3, height, width)
    pasted, masks = cutpaste(images, kind)
    assert pasted.shape == images.shape and masks.shape == (batch, height, width) and masks.dtype == torch.bool
    assert pasted.min() >= 0 and pasted.max() <= 1 and torch.isfinite(pasted).all()
    assert torch.equal(torch.where(masks[:, None], images, pasted), images)
    if kind == "cutpaste":
        # A patch's area, up to a row and a column of rounding and to the clamp at the image's sides.
        assert (masks.sum((1, 2)) <= AREA[1] * height * width + height + width).all()


GROUPS = {
    "backbone": ["alexnet", "resnet18", "efficientnet_lite0", "vgg"],
    "cutpaste": ["binary", "3way", "none", "x"],
    "protocol": ["default", "paper", "theirs"],
    "data": ["embedded", "folder", "mvtec", "cloud"],
}
KEYS = [
    "flow.blocks",
    "flow.clamp",
    "dictionary.num_atoms",
    "score.flow_weight",
    "density.batch",
    "data.size",
    "data.calibration_fraction",
    "representation.lr",
    "backbone.neighborhood",
    "backbone.layers",
    "seed",
    "flow.x",
]
VALUES = st.one_of(
    st.integers(-10, 10).map(str),
    st.floats(-3, 3).map(lambda v: f"{v:.3g}"),
    st.text(max_size=6),
    st.sampled_from(["null", "[]", "[a,b]", "{a: 1}", "nan", "inf", "${seed}", "${nowhere}", "true", "'", "1e400"]),
)


@cases(40, 3_000)
@given(
    st.lists(st.sampled_from([f"{g}={c}" for g, choices in GROUPS.items() for c in choices]), max_size=2),
    st.lists(st.tuples(st.sampled_from(KEYS), VALUES).map("=".join), max_size=3),
)
def test_any_overrides_compose_or_are_refused(groups, keys):
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            config = compose("config", [*groups, *keys, "backbone.weights=none", "run_dir=none", "data.root=null"])
        check_targets(config)
        check("seed", config.seed, NonNegativeInt)
        run = Run(config, Path("none"))
        if config.data.source == "embedded":
            run.make("data")
        run.make("method", make=run.make, geometry=Geometry((64, 64)))
    except Exception as error:
        line = explain(error)
        assert line is not None, (groups, keys, error)


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "detector.pt"
    untrained_detector(32).save(path)
    return path


@cases(40, 4_000)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), st.sampled_from(["set", "cut"])
)
def test_a_damaged_detector_is_refused_or_scores(detector_file, tmp_path_factory, changes, kind):
    content = bytearray(detector_file.read_bytes())
    for place, value in changes:
        # Squared, towards the front, where the structure is; and the tail, where the zip's directory is.
        at = int(place**2 * (len(content) - 1)) if value % 2 else len(content) - 1 - int(place**2 * 4000)
        if kind == "set":
            content[at] = value
        else:
            del content[at : at + value]
    path = detector_file.with_name("damaged.pt")
    path.write_bytes(content)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    try:
        scores = load(path)(images).scores
    except UserError:
        return
    assert scores.shape == (1,)


@cases(40, 4_000)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True), st.integers(0, 400))
def test_rows_survive_a_cut_anywhere(names, cut):
    names = [n.replace("\r", "") or "r" for n in names]
    assume(len(set(names)) == len(names))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.csv"
        names = [n.encode("utf-8", "backslashreplace").decode() for n in names]
        content = csv_text([COLUMNS, *(Row(n, "1.5", anomalous="0") for n in names)])
        path.write_bytes(content[: min(cut, len(content))])
        rows = Rows(path, 1.0)
        kept = [n for n in names if n in rows.names]
        assert kept == names[: len(kept)] and rows.names == set(kept)
        rows.append([Row(n, "1.5", anomalous="0") for n in names[len(kept) :]])
        assert rows.stream.counts["scored"] == len(rows.stream.recent) == len(names)
        rows.close()
        assert path.read_bytes() == content
