"""A saved detector that learns from more photographs: its promise for images to come, and the command's file."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import baseline, make, tiny_backbone, untrained_detector, untrained_fusion
from PIL import Image

from texture_ad.data.drift import brightness, differences, either, training_statistics
from texture_ad.data.geometry import Geometry
from texture_ad.data.images import header
from texture_ad.data.roi import Roi
from texture_ad.deploy.update import extended, update
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import conformal_threshold
from texture_ad.methods.base import Provenance
from texture_ad.methods.registry import load
from texture_ad.models.backbone import flatten_patches

SIZE = 32


def draw(folder, count, seed, light=0):
    """Photographs of noise, all of one kind; `light` makes another kind of it."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(40, 120, (SIZE // 4, SIZE // 4, 3)).repeat(4, 0).repeat(4, 1) + rng.integers(0, 20)
        Image.fromarray((pixels + light).astype(np.uint8)).save(folder / f"{i:03}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("update")
    return {
        "fit": draw(root / "fit", 30, seed=0),
        "calibration": draw(root / "calibration", 19, seed=1),
        "new": draw(root / "new", 59, seed=2, light=90),
        "later": draw(root / "later", 200, seed=3, light=90),
    }


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """A PaDiM that knows the dark photographs alone."""
    torch.manual_seed(0)
    detector = baseline("padim", tiny_backbone("resnet18", ["layer1"]).eval(), size=SIZE, channels=6)
    detector.set_geometry(Geometry((SIZE, SIZE)))
    detector.eval().requires_grad_(False)
    images = detector.read(*folders["fit"])
    detector.learn([{"image": images}])
    detector.calibrate_on(detector.measure_all(detector.read(*folders["calibration"])), 0.05, 0.2)
    statistics = training_statistics([header(path) for path in folders["fit"]], brightness(images))
    detector.provenance = Provenance("a test", "test", "0" * 16, 0, 0.05, 0.2, {}, statistics)
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    detector.save(path)
    return path


def share_above(detector, paths):
    return float((detector(detector.read(*paths)).scores > detector.threshold).float().mean())


def test_the_promise_holds_for_new_images_of_the_kind_that_was_added(saved, folders, monkeypatch):
    detector = load(saved)
    read, opened = [], Counter()
    monkeypatch.setattr(detector, "read", lambda *paths: read.extend(paths) or type(detector).read(detector, *paths))
    assert share_above(detector, folders["later"]) > 0.9  # to the detector of then, all of them are anomalous
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.update([path]) or open_image(path, **options))
    change = update(detector, folders["new"][0].parent, folders["new"], 16, 0.05)
    assert read == [*folders["later"], *folders["new"]]  # each photograph once
    assert {opened[path] for path in folders["new"]} == {3}  # its size, its pixels, and its header for all that is told
    told = detector.decision().false_alarms
    assert told.images == change.images == 59 and told.expected == pytest.approx(0.05)
    assert told.low <= share_above(detector, folders["later"]) <= told.high
    assert len(change.above_before) > 50 and change.above == 2
    assert len(detector.calibration_maxima) == 59


def test_scores_of_their_own_update_would_promise_too_much(saved, folders):
    """Why each new photograph is measured by what the others taught: its own moments know it too well."""
    detector = load(saved)
    update(detector, folders["new"][0].parent, folders["new"], 64, 0.05)
    cross_fitted = detector.calibration_scores.median()
    own = detector(detector.read(*folders["new"])).scores.median()
    later = detector(detector.read(*folders["later"])).scores.median()
    assert abs(cross_fitted - later) < abs(own - later) and own < later


def test_the_command_writes_another_file_and_says_what_changed(saved, folders, command):
    target = saved.with_name("detector_updated.pt")
    before = saved.read_bytes()
    images = folders["new"][0].parent
    code, out, errors = command("update", f"detector={saved}", f"images={images}")
    assert code == 0, errors
    assert "59 photographs" in out and "of 59 were above the threshold before, 2 are now" in out
    assert "of normal images 5.0% (95% interval" in out and str(target) in out
    assert "of 59 images differ in brightness from the training images, first 0" in errors
    detector = load(target)
    assert saved.read_bytes() == before and int(detector.count) == 30 + 59
    assert detector.provenance.data_source == "a test and 59 photographs of new"
    assert detector.provenance.data_fingerprint != "0" * 16
    # Neither the old nor the new kind is warned of.
    for name in ("fit", "later"):
        path = folders[name][0]
        levels = brightness(detector.read(path))[0]
        assert differences(detector.provenance.training_images, header(path), levels) == {}
    code, _, errors = command("update", f"detector={saved}", f"images={images}")
    assert code == 2 and f"output={target}: exists; give another file, or overwrite=true" in errors
    assert float(detector.pixel_threshold) == conformal_threshold(detector.calibration_maxima, 0.2)
    code, _, errors = command("update", f"detector={saved}", f"images={images}", "overwrite=no")
    assert code == 2 and "overwrite=no: expected true or false" in errors
    rates = ("false_alarm_rate=0.1", "pixel_false_alarm_rate=0.4")
    assert command("update", f"detector={saved}", f"images={images}", "overwrite=true", *rates)[0] == 0
    other = load(target)
    assert float(other.threshold) == conformal_threshold(detector.calibration_scores, 0.1)
    assert float(other.pixel_threshold) == conformal_threshold(detector.calibration_maxima, 0.4)
    assert (other.provenance.false_alarm_rate, other.provenance.pixel_false_alarm_rate) == (0.1, 0.4)
    target.unlink()


def test_too_few_photographs_for_a_rate(saved, folders, command):
    few = folders["calibration"][0].parent
    code, _, errors = command("update", f"detector={saved}", f"images={few}", "false_alarm_rate=0.01")
    assert code == 2 and not saved.with_name("detector_updated.pt").exists()
    assert "false_alarm_rate=0.01: 19 photographs promise no less than 0.05; give at least 99" in errors
    code, _, errors = command("update", f"detector={saved}", "images=no/such/folder")
    assert code == 2 and "images=no/such/folder: no such file or folder" in errors
    code, _, errors = command("update", f"detector={saved}", f"images={few}", "pixel_false_alarm_rate=0.01")
    assert code == 2 and "pixel_false_alarm_rate=0.01: 19 photographs promise no less" in errors


@pytest.mark.parametrize("count", [2, 4])
def test_a_few_photographs_are_enough_for_a_high_rate(saved, folders, count):
    detector = load(saved)
    change = update(detector, folders["new"][0].parent, folders["new"][:count], 64, 0.5, 0.5)
    assert change.images == count == len(detector.calibration_scores)


def test_a_copy_counts_once(saved, folders, tmp_path, command):
    for path in folders["later"][:30]:
        for end in ("a", "b"):
            (tmp_path / f"{path.stem}{end}.png").write_bytes(path.read_bytes())
    target = tmp_path / "updated.pt"
    code, out, errors = command("update", f"detector={saved}", f"images={tmp_path}", f"output={target}")
    assert code == 0 and "30 photographs are copies of others, left out" in out, errors
    assert "and 30 photographs of" in out and int(load(target).count) == 30 + 30
    assert len(load(target).calibration_scores) == 30


@pytest.mark.parametrize(("place", "stopped"), [(".", False), (".", True), ("predictions", False)])
def test_pictures_that_predict_left_among_the_photographs_teach_nothing(
    saved, folders, tmp_path, command, monkeypatch, place, stopped
):
    for path in folders["new"][:20]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    given = (f"detector={saved}", f"input={tmp_path}", f"output={tmp_path / place}", "masks=true", "maps=true")
    assert command("predict", *given)[0] == 0
    monkeypatch.chdir(tmp_path.parent)
    if stopped:
        (tmp_path / "scores.csv").unlink()
    target = saved.with_name("other.pt")
    images = tmp_path.name
    code, out, errors = command("update", f"detector={saved}", f"images={images}", f"output={target}", "overwrite=true")
    assert code == 0, errors
    first = Path(images, place, "maps/000.png.tiff")
    assert f"note     60 files of {images} are results of predict, left out: {first}, " in out
    assert "and 20 photographs of" in out and int(load(target).count) == 30 + 20


def test_a_defect_among_good_photographs_is_named_and_the_threshold_that_it_lifts_told(
    saved, folders, tmp_path, command
):
    detector = load(saved)
    for i, path in enumerate(folders["calibration"]):
        image = Image.open(path)
        if i == 7:
            image.paste((250, 0, 250), (4, 4, 20, 20))
        image.save(tmp_path / path.name)
    arguments = (f"detector={saved}", f"images={tmp_path}", f"output={tmp_path / 'updated.pt'}")
    code, _, errors = command("update", *arguments)
    assert code == 0, errors
    above = detector(detector.read(*sorted(tmp_path.glob("*.png")))).scores > detector.threshold
    assert (
        above.sum() == 1 and f"look at those that were above the threshold, {tmp_path / '007.png'}: a defect" in errors
    )
    assert "the threshold rose by " in errors and "look at the photographs before you use" in errors


def test_files_of_several_images_are_told(saved, folders, tmp_path):
    for path in folders["new"][:3]:
        image = Image.open(path)
        image.save(tmp_path / f"{path.stem}.tif", save_all=True, append_images=[image])
    change = update(load(saved), tmp_path, sorted(tmp_path.iterdir()), 64, 0.5, 0.5)
    assert any(sentence.startswith("3 of 3 images hold several, first ") for sentence in change.unlike)


def test_one_photograph_is_too_few(saved, folders):
    with pytest.raises(UserError, match="1 different photographs; at least 2 are needed"):
        update(load(saved), folders["new"][0].parent, folders["new"][:1], 64, 0.5, 0.5)


def test_the_fusions_whitening_grows_and_nothing_else_does(folders):
    torch.manual_seed(0)
    detector = untrained_fusion(tiny_backbone("resnet18", ["layer1"]).eval(), SIZE)
    detector.whitening = make("whitening", channels=[64], mode="position")
    images = detector.read(*folders["fit"])

    def patches(*batches):
        return [flatten_patches(detector.patch_features(b)).unflatten(0, (len(b), -1)) for b in batches]

    with torch.no_grad():
        detector.whitening.fit(lambda: patches(images[:20]))
        before = copy.deepcopy(detector)
        expected = copy.deepcopy(detector.whitening)
        expected.refit(patches(images))
    detector.update(images[20:].split(4))
    for name, tensor in detector.state_dict().items():
        if name.startswith("whitening."):
            right = expected.state_dict()[name.removeprefix("whitening.")]
            assert torch.allclose(tensor, right, rtol=1e-3, atol=1e-3 * float(right.abs().max())), name
        else:
            assert torch.equal(tensor.nan_to_num(), before.state_dict()[name].nan_to_num()), name


def test_what_lies_outside_the_region_of_interest_teaches_nothing(saved, folders, tmp_path):
    roi = Roi(torch.ones(SIZE, SIZE, dtype=torch.bool))
    roi.inside[:, SIZE // 2 :] = False
    found = []
    for outside in (0, 255):
        folder = tmp_path / str(outside)
        folder.mkdir()
        for path in folders["new"][:20]:
            pixels = np.asarray(Image.open(path)).copy()
            pixels[:, SIZE // 2 :] = outside
            Image.fromarray(pixels).save(folder / path.name)
        detector = load(saved)
        detector.roi = roi
        update(detector, folder, sorted(folder.iterdir()), 16, 0.05, 0.2)
        found.append(detector.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_the_fingerprint_is_of_the_first_images_and_of_the_new_ones(saved, folders):
    own = load(saved).provenance
    others = [own, replace(own, data_fingerprint="1" * 16)]
    source, paths = folders["new"][0].parent, folders["new"][:3]
    headers, grey = [header(path) for path in paths], torch.zeros(3, 2)
    found = [extended(one, headers, grey, source, chosen, 0.1, 0.2) for one in others for chosen in (paths, paths[:2])]
    assert len({one.data_fingerprint for one in found}) == 4


@pytest.mark.parametrize("source", [".", "../new", "../new/."])
def test_the_folder_is_named_wherever_the_command_stands(saved, folders, monkeypatch, source):
    monkeypatch.chdir(folders["new"][0].parent)
    paths = folders["new"][:3]
    found = extended(
        load(saved).provenance, [header(path) for path in paths], torch.zeros(3, 2), Path(source), paths, 0.1, 0.2
    )
    assert found.data_source == "a test and 3 photographs of new"


def test_what_cannot_grow_says_so_before_photographs_are_read(folders):
    tiled = untrained_detector(SIZE)
    tiled.set_geometry(Geometry((SIZE, SIZE), 8, (2 * SIZE, 2 * SIZE)))
    patchcore = baseline("patchcore", tiny_backbone("resnet18", ["layer1"]).eval(), size=SIZE)
    for detector, problem in (
        (untrained_detector(SIZE), "mode=none: keeps no covariance to add to; fit again on all images"),
        (patchcore, "method=patchcore: can't be updated; fit it again on all images"),
        (tiled, "cuts pictures into tiles and can't be updated"),
    ):
        detector.read = lambda *_: pytest.fail("read")
        with pytest.raises(ParameterError, match=problem):
            update(detector, folders["new"][0].parent, folders["new"], 64, 0.05)


def test_either_of_two_statistics(folders):
    dark, light = (
        training_statistics([header(path) for path in p], torch.tensor([[b - 1.0, 20], [b + 1.0, 20]]))
        for p, b in ((folders["fit"], 80), (folders["new"], 170))
    )
    both = either(dark, light)
    for level, found in ((74, {"brightness"}), (76, set()), (120, set()), (174, set()), (176, {"brightness"})):
        assert differences(both, header(folders["fit"][0]), torch.tensor([float(level), 20])).keys() == found
