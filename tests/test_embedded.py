import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from texture_ad.data import embedded
from texture_ad.data.embedded import files
from texture_ad.errors import UserError

FEW = 4  # training images


def read(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def textures(tmp_path_factory) -> dict[str, Path]:
    """All five textures; carpet is whole, the others have fewer training images, which take most of the time."""
    root = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "TRAIN_GOOD", FEW)
        others = {category: embedded.ensure(category, root) for category in embedded.TEXTURES[1:]}
    return {"carpet": embedded.ensure("carpet")} | others


@cache
def rendered(category: str, kind: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return embedded.render(category, kind, index)


def test_layout_is_that_of_mvtec(textures):
    assert tuple(textures) == ("carpet", "grid", "leather", "tile", "wood")
    for category, folder in textures.items():
        kinds = embedded.KINDS[category]
        assert len(kinds) >= 5
        assert folder.parts[-2:] == ("embedded-v1-256-0", category)
        assert {path.name for path in folder.iterdir()} == {"train", "test", "ground_truth", "ORIGIN.md"}
        assert "not a benchmark" in (folder / "ORIGIN.md").read_text(encoding="utf-8")
        assert {path.name for path in (folder / "test").iterdir()} == {"good", *kinds}
        assert {path.name for path in (folder / "ground_truth").iterdir()} == set(kinds)
        assert len(read(folder / "train/good")) == (embedded.TRAIN_GOOD if category == "carpet" else FEW)
        assert len(read(folder / "test/good")) == embedded.TEST_GOOD
        for kind in kinds:
            images = read(folder / "test" / kind)
            masks = read(folder / "ground_truth" / kind)
            assert len(images) == len(masks) == embedded.TEST_PER_KIND
            assert (folder / "ground_truth" / kind / "000_mask.png").is_file()
            assert all(image.shape == (256, 256, 3) and image.dtype == np.uint8 for image in images)
            assert all(mask.shape == (256, 256) and set(np.unique(mask)) == {0, 255} for mask in masks)


@pytest.mark.parametrize("category", embedded.TEXTURES)
def test_normal_images_all_differ(category, tmp_path):
    folder = embedded.ensure(category, tmp_path, size=64)
    digests = [*digest(folder / "train/good").values(), *digest(folder / "test/good").values()]
    assert len(set(digests)) == len(digests)
    assert len(digests) == embedded.TRAIN_GOOD + embedded.TEST_GOOD


@pytest.mark.parametrize("category", embedded.TEXTURES)
def test_trivial_detectors_fail(textures, category):
    folder = textures[category]
    good = read(folder / "test/good")
    bad = [image for kind in embedded.KINDS[category] for image in read(folder / "test" / kind)]
    labels = [0] * len(good) + [1] * len(bad)
    trivial = {
        "mean grey level": lambda image: image.mean(),
        "grey variance": lambda image: image.mean(-1).var(),
        "darkest pixel": lambda image: image.mean(-1).min(),
        "lightest pixel": lambda image: image.mean(-1).max(),
        "darkest value": lambda image: image.min(),
        "lightest value": lambda image: image.max(),
    }
    for name, score in trivial.items():
        auroc = roc_auc_score(labels, [float(score(image)) for image in good + bad])
        assert max(auroc, 1 - auroc) < 0.75, f"{name} alone tells damaged {category} with AUROC {auroc:.3f}"


@pytest.mark.parametrize("category", embedded.TEXTURES)
def test_masks_describe_the_damage_exactly(category):
    for kind in embedded.KINDS[category]:
        for index in range(3):
            intact, damaged, mask = rendered(category, kind, index)
            change = np.abs(intact.astype(int) - damaged).max(-1)
            assert change[~mask].max() == 0
            visible = change > embedded.VISIBLE
            assert 24 <= mask.sum() <= 0.2 * mask.size
            assert visible[mask].mean() > 0.4
            # Every marked pixel is a changed one, between two of them, or enclosed by them.
            near = ndimage.distance_transform_edt(~visible) <= 3
            assert ndimage.binary_fill_holes(near)[mask].all()


def test_masks_on_disk_are_those_of_the_images(textures):
    _intact, damaged, mask = embedded.render("leather", "hole", 2)
    assert np.array_equal(read(textures["leather"] / "test/hole")[2], damaged)
    assert np.array_equal(read(textures["leather"] / "ground_truth/hole")[2] > 0, mask)


def test_damage_varies_in_size_and_contrast():
    for category in embedded.TEXTURES:
        areas = []
        contrasts = []
        for kind in embedded.KINDS[category]:
            for index in range(3):
                intact, damaged, mask = rendered(category, kind, index)
                areas.append(mask.mean())
                contrasts.append(np.abs(intact.astype(float) - damaged)[mask].mean())
        assert max(areas) > 4 * min(areas)
        assert max(contrasts) > 2 * min(contrasts)


def test_bytes_repeat_in_another_process(tmp_path):
    first = digest(embedded.ensure("grid", tmp_path / "a", size=64))
    code = "from texture_ad.data import embedded; print(embedded.ensure('grid', size=64))"
    environment = os.environ | {"TEXTURE_AD_CACHE": str(tmp_path / "b"), "PYTHONHASHSEED": "7"}
    root = Path(embedded.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert digest(Path(done.stdout.strip())) == first


def test_seeds_differ(tmp_path):
    one, two = (digest(embedded.ensure("wood", tmp_path, size=64, seed=seed)) for seed in (0, 1))
    assert one.keys() == two.keys()
    images = [name for name in one if name.endswith(".png")]
    assert all(one[name] != two[name] for name in images)


def test_second_call_builds_nothing(tmp_path, monkeypatch):
    folder = embedded.ensure("tile", tmp_path, size=64)
    monkeypatch.setattr(files, "render", None)
    assert embedded.ensure("tile", tmp_path, size=64) == folder


def test_a_build_cut_short_leaves_nothing(tmp_path, monkeypatch):
    render = embedded.render
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 110:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(files, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        embedded.ensure("wood", tmp_path, size=64)
    assert list(tmp_path.rglob("*.png")) == []
    assert list((tmp_path / "embedded-v1-64-0").iterdir()) == []
    monkeypatch.undo()
    assert len(read(embedded.ensure("wood", tmp_path, size=64) / "train/good")) == embedded.TRAIN_GOOD


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path, monkeypatch):
    build = files._build

    def overtaken(folder, *arguments):
        build(folder, *arguments)
        monkeypatch.undo()
        embedded.ensure("wood", tmp_path, size=64)

    monkeypatch.setattr(files, "_build", overtaken)
    folder = embedded.ensure("wood", tmp_path, size=64)
    assert [path.name for path in folder.parent.iterdir()] == ["wood"]
    assert len(read(folder / "train/good")) == embedded.TRAIN_GOOD


def test_unknown_category_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="'bottle'; choose one of carpet, grid, leather, tile, wood"):
        embedded.ensure("bottle", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "message"), [({"size": 32}, "size 32"), ({"seed": -1}, "seed -1")])
def test_options_out_of_range_are_user_errors(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        embedded.ensure("wood", tmp_path, **option)


def test_unwritable_cache_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the cache .*set TEXTURE_AD_CACHE"):
        embedded.ensure("wood", tmp_path / "file")
