"""The steps of a run, one by one."""

import numpy as np
import pytest
import torch
from helpers import arguments, make
from hydra import compose, initialize_config_dir
from PIL import Image

from texture_ad import pipeline
from texture_ad.cli.entry import CONF
from texture_ad.deploy.results import decide
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import Decision, FalseAlarms
from texture_ad.methods.base import Prediction
from texture_ad.methods.registry import load
from texture_ad.models.backbone import Backbone
from texture_ad.reporting.results import write_results
from texture_ad.training.run_folder import prepared_folder


def fitted(data, folder, *more):
    """A run after its second step, and its detector."""
    overrides = arguments(
        data, folder, "logger=none", "trainer.max_epochs=1", "detection.epochs=1", "cross_fit=false", *more
    )
    with initialize_config_dir(CONF, version_base="1.3"):
        run = pipeline.Run(compose("config", overrides), folder)
    with prepared_folder(folder):
        pipeline.prepare_data(run)
        return run, pipeline.fit(run)


def test_a_backbone_that_learns_from_all_images_ends_with_a_whitening_of_its_own(data, tmp_path):
    overrides = (
        "cutpaste=binary",
        "flow.first=0",
        "score.head_weight=0",
        "score.dictionary_weight=0",
        "cross_fit=false",
    )
    more = ("logger=none", "trainer.max_epochs=3", "representation.backbone_lr=0.1")
    with initialize_config_dir(CONF, version_base="1.3"):
        run = pipeline.Run(compose("config", arguments(data, tmp_path, *overrides, *more)), tmp_path)
    with prepared_folder(tmp_path):
        pipeline.prepare_data(run)
        run.data = run.data.with_calibration([])
        run.stage1_epochs = 2
        detector = pipeline.fit(run)
    assert torch.load(tmp_path / "stage1/last.ckpt", weights_only=True)["epoch"] == 1
    found = [detector.whitening.center.clone(), detector.whitening.matrix.clone()]
    features = run.make("features", detector=detector)
    stream = features.stream(run.data.normal_dataloader(), detector.device)
    detector.whitening.refit(stream, run.data.picture_numbers)
    for before, after in zip(found, (detector.whitening.center, detector.whitening.matrix), strict=True):
        assert torch.allclose(before, after, atol=1e-2 * float(after.abs().max()))


def test_calibration_images_pass_the_backbone_once(data, tmp_path, monkeypatch):
    passed = []
    extract = Backbone.extract
    monkeypatch.setattr(
        Backbone, "extract", lambda self, images, **options: passed.append(images) or extract(self, images, **options)
    )
    run, detector = fitted(data, tmp_path)
    in_fit = len(passed)
    pipeline.calibrate(run, detector)
    calibration = torch.cat([batch["image"] for batch in run.data.calibration_dataloader()])
    same = (torch.cat(passed)[:, None] == calibration).flatten(2).all(2)
    assert same.sum(0).tolist() == [1] * len(calibration)
    defects = torch.cat(passed[in_fit:])  # of the calibration images, which stage 1 has watched
    assert len(defects) == len(calibration) and not (defects[:, None] == calibration).flatten(2).all(2).any()


def test_calibration_standardises_scores_and_sets_threshold_and_floor(data, tmp_path):
    run, detector = fitted(data, tmp_path, "false_alarm_rate=0.4", "pixel_false_alarm_rate=0.5")
    pipeline.calibrate(run, detector)
    images = torch.cat([batch["image"] for batch in run.data.calibration_dataloader()])
    with torch.no_grad():
        parts = detector.measure(images).parts
    mean, deviation = detector.patch_statistics.unbind(1)
    standard = (parts - mean[:, None, None]) / deviation[:, None, None]
    assert standard.mean((0, 2, 3)).abs().max() < 1e-3
    assert (standard.std((0, 2, 3)) - 1).abs().max() < 1e-2
    prediction = detector(images)
    assert len(images) == 3  # of which the order statistics are the third, ⌈4 · 0.6⌉, and the second
    assert float(detector.threshold) == pytest.approx(float(prediction.scores.max()), rel=1e-5)
    maxima = prediction.anomaly_maps.amax((1, 2))
    assert float(detector.pixel_threshold) == pytest.approx(float(maxima.sort().values[1]), rel=1e-5)
    assert float(detector.map_floor) == pytest.approx(float(detector.fuse(parts).median()), rel=1e-5)
    saved = load(tmp_path / "detector.pt")
    assert torch.equal(saved.threshold, detector.threshold) and saved.provenance == detector.provenance
    assert saved.provenance.pixel_false_alarm_rate == 0.5
    assert saved.provenance.false_alarm_rate == 0.4 and saved.provenance.data_source == "folder carpet"


def test_run_and_predict_draw_an_image_alike(data, tmp_path, command):
    run_dir = tmp_path / "run"
    quick = ("logger=[]", "trainer.max_epochs=1", "detection.epochs=1")
    code, _, errors = command("run", *arguments(data, run_dir, *quick))
    assert code == 0, errors
    code, _, errors = command(
        "predict", f"detector={run_dir / 'detector.pt'}", f"input={data / 'test'}", f"output={tmp_path / 'out'}"
    )
    assert code == 0, errors
    drawn = sorted((run_dir / "overlays").rglob("*.jpg"))
    again = sorted((tmp_path / "out/overlays").rglob("*.jpg"))
    assert [p.name for p in drawn] == [p.name for p in again] and drawn
    for one, other in zip(drawn, again, strict=True):
        tiles = [np.asarray(Image.open(path).convert("RGB"))[-200:-10, -524:-284].astype(int) for path in (one, other)]
        # Of the anomaly map, below the titles; last bits differ between batch sizes, and JPEG's blocks.
        assert (
            tiles[0].std() > 1 and np.abs(tiles[0] - tiles[1]).max() <= 32 and np.abs(tiles[0] - tiles[1]).mean() <= 2
        )


def test_run_and_predict_count_the_regions_of_a_photograph_alike(data, tmp_path, monkeypatch):
    photographs = make("data", ["data=folder"], root=str(data), size=64)
    photographs.setup()
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[10, 10] = anomaly_map[11, 11] = 9  # which touch; in the photograph's pixels they don't
    decision = Decision(1.0, 5.0, 1, 1.0, FalseAlarms(0.1, 0.0, 0.2, 9), None, None, None)
    found = {"score": [2.0], "label": [1], "index": [0], "positions": [[[0, 0]]]}
    predictions = {name: np.array(value) for name, value in found.items()}
    predictions |= {"anomaly_maps": [anomaly_map], "grid": (8, 8)}
    drawn = []
    for name in ("_write_charts", "write_report"):
        monkeypatch.setattr(f"texture_ad.reporting.results.{name}", lambda *_: None)
    monkeypatch.setattr(
        "texture_ad.reporting.results.localization_panel",
        lambda *_, region, region_name, **__: drawn.append((region, region_name)) or [region] * 2,
    )
    monkeypatch.setattr("texture_ad.reporting.results.thumbnail", lambda _: b"")
    write_results(predictions, 0.0, decision, {}, photographs, tmp_path, True, "", [])
    prediction = Prediction(torch.tensor([2.0]), torch.from_numpy(anomaly_map)[None], None, None)
    (result,) = decide(prediction, decision, ["a"], [photographs.test_shape(0)], [""])
    ((region, region_name),) = drawn
    assert len(result.regions) == 2 and region_name == "2 regions"
    assert region.shape == (64, 64) and region.sum() == 2 and region[[10, 11], [10, 11]].all()


def test_a_key_that_its_target_lacks_or_needs_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"flow.depth=3: no such parameter; expected one of .*blocks"):
        pipeline.make("flow", {"_target_": "texture_ad.models.flow.Flow", "depth": 3}, channels=[4])
    with pytest.raises(UserError, match=r"^flow.first: not configured, .*Flow needs it; give \+flow.first=VALUE$"):
        pipeline.make("flow", {"_target_": "texture_ad.models.flow.Flow"}, channels=[4])
    with pytest.raises(ParameterError, match=r"^flow.first=1: 0 is given for it elsewhere; give one of the two$"):
        pipeline.make("flow", {"_target_": "texture_ad.models.flow.Flow", "first": 1}, channels=[4], first=0)
    with pytest.raises(ParameterError, match=r"^flow.channels=3: is made by the run itself; leave it out$"):
        pipeline.make("flow", {"_target_": "texture_ad.models.flow.Flow", "channels": 3}, channels=[4])


def test_the_detectors_examples_come_from_as_many_batches_as_they_need(data, tmp_path):
    run, detector = fitted(data, tmp_path, "examples=2", "data.eval_batch_size=1")
    pipeline.calibrate(run, detector)
    calibration = torch.cat([batch["image"] for batch in run.data.calibration_dataloader()])
    assert torch.equal(load(tmp_path / "detector.pt").examples, calibration[:2])


@pytest.mark.parametrize("path", ["texture_ad.Nosuch", "nowhere.at_all.Logger"])
def test_a_class_that_is_not_there_is_named(path):
    with pytest.raises(ParameterError, match=rf"logger._target_={path}: can't be imported"):
        pipeline.make("logger", {"_target_": path})
