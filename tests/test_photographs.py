"""Photographs as they come: sub-folders, files left out, bit depth, masks for some."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make
from PIL import Image

from texture_ad.data.layouts import check_masks, files_below, samples, scan
from texture_ad.errors import UserError
from texture_ad.evaluation.metrics import pixel_metrics, prediction_metrics
from texture_ad.files import content_digest


def grey(path, seed=0, high=256):
    """Save noise of `high` levels, as 16-bit where they need it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if high <= 256 else np.uint16
    Image.fromarray(np.random.default_rng(seed).integers(0, high, (40, 40)).astype(kind)).save(path)
    return path


def mask(path, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:20, 10:20] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Batches of training images, two of test images with the same names, and masks for all but one."""
    root = tmp_path / "cloth"
    for batch in ("batch1", "batch2"):
        for i in range(3):
            grey(root / f"train/good/{batch}/{i}.pgm", i)
        for i in range(2):
            grey(root / f"test/hole/{batch}/{i}.png", 10 + i)
            mask(root / f"ground_truth/hole/{batch}/{i}_mask.png", value=1 + i)
    grey(root / "test/good/0.png", 20)
    return root


def data(root, **options):
    module = make("data", ["data=folder"], root=str(root), size=32, overlap=8, **options)
    module.setup()
    return module


def test_sub_folders_are_searched_and_masks_found_there(folder):
    layout = scan(folder)
    assert [sample.name for sample in layout.train] == [f"batch{b}/{i}.pgm" for b in (1, 2) for i in range(3)]
    holes = [sample for sample in layout.test if sample.label]
    assert len(holes) == 4 and layout.left_out == {}
    for sample in holes:
        assert sample.mask.relative_to(folder / "ground_truth/hole").parent == sample.path.parent.relative_to(
            folder / "test/hole"
        )


def test_masks_in_one_folder_serve_images_in_sub_folders(folder):
    shutil.rmtree(folder / "ground_truth/hole/batch2")
    (folder / "test/hole/batch2/0.png").rename(folder / "test/hole/batch2/7.png")
    mask(folder / "ground_truth/hole/batch1/7_mask.png")
    found = {sample.name: sample.mask for sample in scan(folder).test if sample.label}
    assert found["batch2/7.png"] == folder / "ground_truth/hole/batch1/7_mask.png"


def test_what_is_left_out_is_counted_and_named(folder):
    (folder / "train/good/notes.doc").write_text("")
    grey(folder / "train/stray.png")
    mask(folder / "ground_truth/hole/batch1/9_mask.png")
    (folder / "licence.txt").write_text("")
    (told,) = data(folder).warnings
    assert told.startswith(f"3 files of {folder} are used for nothing: ")
    assert all(name in told for name in ("notes.doc", "stray.png", "9_mask.png"))


def test_files_of_unknown_kinds_alone_are_named(folder):
    for path in (folder / "train/good").rglob("*.pgm"):
        path.rename(path.with_suffix(".raw"))
    with pytest.raises(UserError, match=r"0 normal images for training; .* formats that can't be read: \.raw"):
        scan(folder)


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    outside = grey(tmp_path / "elsewhere/0.png").parent
    good = folder / "train/good"
    (good / "linked").symlink_to(outside)
    (good / "again").symlink_to(outside)
    (good / "up").symlink_to(folder)
    assert len(files_below(good)) == 7


def test_a_folder_that_goes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    real = Path.resolve

    def resolve(path, **options):
        found = real(path, **options)
        if path == tmp_path / "b":  # listed, and now removed
            shutil.rmtree(path, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "resolve", resolve)
    assert files_below(tmp_path) == [tmp_path / "a/1.png"]
    with pytest.raises(UserError, match="can't be read"):
        files_below(tmp_path / "b")


def test_pixel_metrics_are_of_images_with_masks_and_image_metrics_of_all(folder):
    (folder / "ground_truth/hole/batch1/0_mask.png").unlink()
    Image.new("L", (40, 40)).save(folder / "ground_truth/hole/batch2/1_mask.png")
    module = data(folder)
    (told,) = module.warnings
    assert told.startswith("2 anomalous images have no mask, or one that marks no pixel")
    assert module.has_masks and sum(sample.mask is not None for sample in module.test_samples) == 2
    masks = list(module.true_masks(range(5)))
    known = [number for number, one in enumerate(masks) if one is not None]
    maps = np.random.default_rng(0).random((5, 40, 40)).astype(np.float32)
    labels = np.array([sample.label for sample in module.test_samples])
    predictions = {"score": np.arange(5.0), "label": labels, "anomaly_maps": maps}
    decision = SimpleNamespace(
        threshold=1.5, pixel_threshold=0.5, pixel_threshold_of=lambda score: 0.5 if score > 1.5 else np.inf
    )
    found = prediction_metrics(predictions, decision, masks)
    assert found["normal_images"] + found["anomalous_images"] == 5 and len(known) == 3
    maps[:2] -= 1  # of the two images that are called normal no pixel is anomalous
    of_pixels = pixel_metrics(maps[known], [masks[i] for i in known], [0.5] * 3)
    assert found["seg_f1"] == of_pixels["seg_f1"] and found["pixel_auroc"] != of_pixels["pixel_auroc"]
    with pytest.raises(UserError, match="2 anomalous images have no mask"):
        data(folder, strict=True)


def test_every_mask_that_cannot_be_used_is_counted(folder):
    for i in range(2):
        grey(folder / f"ground_truth/hole/batch1/{i}_mask.png")
    with pytest.raises(UserError, match=r"not a mask but a picture.*2 masks can't be used"):
        check_masks(scan(folder).test)


def test_class_numbers_reach_the_batch(folder):
    module = data(folder)
    batch = next(iter(module.test_dataloader()))
    shares = batch["mask"].flatten(1).float().mean(1)[batch["label"] == 1]
    assert shares.tolist() == pytest.approx([100 / 1600] * 4, abs=0.01)


@pytest.mark.parametrize("tile", [None, 32])
def test_twelve_bits_keep_their_levels_and_later_images_are_read_alike(tmp_path, tile):
    root = tmp_path / "xray"
    for i in range(6):
        grey(root / f"train/good/{i}.png", i, high=4096)
    brighter = grey(root / "test/good/0.png", 9, high=4096)
    module = data(root, tile=tile)
    low, high = module.reading.levels
    assert low == 0 and 4096 < high < 5200
    image = next(iter(module.train_dataloader()))["image"]
    # Read by the type's limit, 4095 of 65535 would be a mean of 8.
    assert 90 < image.float().mean() < 120 and len(image.unique()) > 50
    narrow = data(root, tile=tile, range=[0, 2000])
    assert narrow.reading.levels == (0, 2000)
    assert next(iter(narrow.train_dataloader()))["image"].float().mean() > 150
    detector = make_detector(module)
    read = detector.read(brighter)
    seen = read[0].view((32, 32)) if tile else read[0]
    assert torch.equal(seen, module.test_batch([0])["image"][0]) or tile


def test_all_frames_of_a_file_are_samples(folder, monkeypatch):
    frames = [Image.new("L", (40, 40), 50 * i) for i in range(4)]
    frames[0].save(folder / "test/good/0.gif", save_all=True, append_images=frames[1:])
    first = data(folder)
    assert len(first.test_samples) == 6 and "the first alone is read" in first.warnings[0]
    module = data(folder, frames="all")
    found = [sample.below(folder) for sample in module.test_samples if sample.path.suffix == ".gif"]
    assert found == [f"test/good/0.gif#{i}" for i in (1, 2, 3, 4)] and module.warnings == []
    means = next(iter(module.test_dataloader()))["image"].float().mean((1, 2, 3))
    assert means[[sample.path.suffix == ".gif" for sample in module.test_samples]].tolist() == [0, 50, 100, 150]
    read = []
    monkeypatch.setattr(samples, "content_digest", lambda path: read.append(path) or content_digest(path))
    assert len(module.fingerprint) == 16 and read.count(folder / "test/good/0.gif") == 1


def test_the_frames_of_a_file_lie_in_one_part(folder):
    for i in range(6):
        frames = [
            Image.fromarray(np.random.default_rng(3 * i + frame).integers(0, 255, (40, 40), np.uint8))
            for frame in range(3)
        ]
        frames[0].save(folder / f"train/good/{i}.gif", save_all=True, append_images=frames[1:])
    module = data(folder, frames="all")
    learnt, held_out = ({sample.path for sample in part} for part in (module.train_samples, module.calibration_samples))
    assert len(held_out) >= 1 and not learnt & held_out


@pytest.mark.parametrize("options", [{}, {"tile": 32}])
def test_frames_have_sizes_and_masks_of_their_own(folder, options):
    shapes = ((40, 40), (64, 48), (48, 64))
    pages, masks = [], []
    for number, (height, width) in enumerate(shapes):
        pages.append(Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)))
        mask = np.zeros((height, width), np.uint8)
        mask[number : number + 4, :4] = 255
        masks.append(Image.fromarray(mask))
    kind = next(path for path in (folder / "test").iterdir() if path.name != "good")
    path, mask_path = kind / "pages.tif", folder / "ground_truth" / kind.name / "pages_mask.tif"
    mask_path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:])
    masks[0].save(mask_path, save_all=True, append_images=masks[1:])
    module = data(folder, frames="all", **options)
    rows = [i for i, sample in enumerate(module.test_samples) if sample.path == path]
    assert [found.tolist() for found in module.true_masks(rows)] == [(np.array(one) > 0).tolist() for one in masks]
    assert len(list(module.test_dataloader())) and module.test_batch(rows)["mask"].flatten(1).any(1).all()
    masks[0].save(mask_path, save_all=True, append_images=masks[1:2])
    with pytest.raises(UserError, match=r"pages_mask.tif: 2 masks for the 3 images of .*pages.tif; save one for each"):
        data(folder, frames="all", **options)


def make_detector(module):
    """Return an untrained detector that reads as a data module does, from its file."""
    from helpers import baseline

    from texture_ad.methods.registry import load

    detector = baseline("sparse_coding", num_atoms=4)
    detector.reading = module.reading
    path = module.folder.parent / "detector.pt"
    detector.set_geometry(module.geometry)
    detector.save(path)
    return load(path)
