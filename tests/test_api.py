"""The Python API: the run and the digits of the command line, results that draw and save themselves, and silence."""

import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, few_photographs, read_rows, repeatable
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

import texture_ad

ROOT = Path(__file__).parents[1]
QUICK = ("pictures=false", "whitening.mode=global", "detection.epochs=1", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return few_photographs(tmp_path_factory.mktemp("data") / "my photographs")


@pytest.fixture(scope="module")
def settings(photographs):
    """The overrides of a run that takes seconds, without its data and folder."""
    return [a for a in arguments(photographs, "", *QUICK) if not a.startswith(("data=", "data.root=", "run_dir="))]


@pytest.fixture(scope="module")
def fitted(photographs, settings, tmp_path_factory):
    """A detector that was fitted in silence, what was printed, the warnings, and the state around it."""
    folder = tmp_path_factory.mktemp("runs") / "api"
    torch.manual_seed(5)
    os.environ.pop("PL_GLOBAL_SEED", None)  # left by a test of Lightning's own
    state = torch.get_rng_state()
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        detector = texture_ad.fit(photographs, seed=3, run_dir=folder, overrides=settings, progress=False)
    assert torch.equal(torch.get_rng_state(), state) and "PL_GLOBAL_SEED" not in os.environ
    assert not GlobalHydra.instance().is_initialized()
    assert logging.getLogger("lightning.pytorch").level == level
    return detector, [str(w.message) for w in told if w.filename.endswith(("api.py", "test_api.py", "contextlib.py"))]


def test_fit_runs_as_the_command_line_does(fitted, photographs, settings, command, tmp_path):
    detector, _ = fitted
    code, _, errors = command(
        "run", "data=folder", f"data.root={photographs}", f"run_dir={tmp_path}", "seed=3", *settings
    )
    assert code == 0, errors
    assert read_rows(detector.folder / "scores.csv") == read_rows(tmp_path / "scores.csv")  # to the last digit
    again = texture_ad.load(tmp_path / "detector.pt")
    assert repeatable(detector.metrics) == repeatable(again.metrics)
    ours, theirs = detector.module.state_dict(), again.module.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    made, run = (OmegaConf.load(folder / "config.yaml") for folder in (detector.folder, tmp_path))
    for config in (made, run):
        config.run_dir = None
    for logger in (made.logger.csv, run.logger.csv):
        logger.save_dir = None
    assert made == run


def test_predict_gives_the_digits_and_files_of_the_command_line(fitted, photographs, command, tmp_path):
    detector, _ = fitted
    source = photographs / "test"
    code, _, errors = command("predict", f"detector={detector.path}", f"input={source}", f"output={tmp_path / 'cli'}")
    assert code == 0, errors
    results = detector.predict(source)
    results.save(tmp_path / "api")
    assert (tmp_path / "api/scores.csv").read_bytes() == (tmp_path / "cli/scores.csv").read_bytes()
    written = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "api", tmp_path / "cli")
    ]
    assert written[0] == written[1] and len(written[0]) == 9  # scores.csv and eight overlays
    record = tmp_path / "record"
    record.mkdir()
    (record / "scores.csv").touch()
    (record / "watched.json").write_text('{"folder": "/a"}')
    with pytest.raises(texture_ad.UserError, match="is the record of the watched folder /a"):
        results.save(record)
    assert len(list(record.iterdir())) == 2


def test_a_result_holds_what_was_found(fitted, photographs):
    detector, _ = fitted
    results = detector.predict(photographs / "test", threshold=-1e9, pixel_threshold=-1e9)
    assert [r.path for r in results] == sorted((photographs / "test").rglob("*.png"))
    assert len(results.anomalous) == len(results) == 8
    highest = results.anomalous[0]
    assert highest.score == max(r.score for r in results) and highest.label == "anomalous" and highest.level > 0.5
    assert highest.mask.shape == (256, 256) and highest.mask.all() and highest.regions[0].area == 256**2
    assert highest.anomaly_map.shape == (64, 64)
    with Image.open(highest.path) as photograph:
        assert highest.size == photograph.size[::-1]
    assert detector.read(highest.path).shape == (1, 3, 64, 64)
    scores, maps, *_ = detector(detector.read(highest.path))
    assert scores.item() == pytest.approx(highest.score, rel=1e-5)
    assert np.allclose(maps[0], highest.anomaly_map, rtol=1e-4, atol=1e-4)


def test_results_draw_themselves_in_a_notebook(fitted, photographs, tmp_path):
    detector, _ = fitted
    path = sorted((photographs / "test/good").iterdir())[0]
    odd = tmp_path / "<i>.png"
    odd.write_bytes(path.read_bytes())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 2 images could not be scored, first: .*broken.png"):
        results = detector.predict([odd, broken])
    drawn, unread = results
    assert drawn._repr_png_().startswith(b"\x89PNG") and min(drawn.draw().size) > 64
    assert unread._repr_png_() is None and unread.score is None and unread.label == ""
    with pytest.raises(texture_ad.UserError, match=r"broken.png: can't be drawn"):
        unread.draw()
    table = results._repr_html_()
    assert "&lt;i&gt;.png" in table and "<i>" not in table and table.count("<tr>") == 3
    assert "array" not in repr(results)
    assert detector.predict(odd, keep_maps=False)[0].mask is None


def test_a_third_verdict_as_on_the_command_line(fitted, photographs, tmp_path):
    detector, _ = fitted
    path = sorted((photographs / "test/good").iterdir())[0]
    with Image.open(path) as photograph:
        photograph.point(lambda level: level // 4).save(tmp_path / "dark.png")
    with pytest.warns(UserWarning, match="they are labelled unsure"):
        (dark,) = detector.predict(tmp_path, unsure=True)
    assert dark.label == dark.to_dict()["label"] == "unsure" and dark.to_dict()["anomalous"] is dark.anomalous
    with pytest.warns(UserWarning, match="their scores may mean little"):
        assert detector.predict(tmp_path)[0].label in ("normal", "anomalous")


def test_silence_is_silence_and_warnings_are_pythons(fitted, photographs, settings, tmp_path, capfd):
    """With a test image that is a copy of a training image, which every run warns of."""
    assert fitted[1] == []
    capfd.readouterr()
    copy = photographs / "test/good/copy.png"
    copy.write_bytes(next((photographs / "train/good").iterdir()).read_bytes())
    padim = {"method": "padim", "run_dir": tmp_path / "padim", "data": {"size": 64}, "overrides": settings}
    try:
        with pytest.warns(UserWarning, match="1 test images are copies of training images"):
            texture_ad.fit(photographs, **padim, progress=False)
        assert capfd.readouterr() == ("", "")
        found = texture_ad.fit(photographs, **padim | {"run_dir": tmp_path / "loud"})
    finally:
        copy.unlink()
    printed = capfd.readouterr().out
    assert "data     folder my photographs" in printed and "fit      padim" in printed and "detector " in printed
    assert found.method == "padim" and "padim of folder my photographs" in repr(found)
    assert "1 test images are copies of training images" in (tmp_path / "loud/model_card.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "quantum"}, "quantum"),
        ({"nowhere": 1}, "nowhere"),
        ({"flow": {"block": 4}}, "block"),
        ({"data": {"size": 3}}, "data.size=3: expected"),
        ({"overrides": ["seed=0,1"]}, "seed"),
        ({"overrides": "seed=1"}, r"overrides=seed=1: expected a list of texts, \['seed=1'\]"),
        ({"overrides": ["data.root=no where (1)"]}, r"data.root=no where \(1\): no such folder"),
        ({"overrides": ["data=embedded", "data.category=2024_01"]}, "data.category=2024_01: embedded data has carpet"),
        ({"backbone": {"weights": ""}}, "backbone.weights='': has no value; give backbone.weights=VALUE"),
        ({"data": {"root": "nowhere"}}, "data.root=nowhere: stands beside the photographs"),
        ({"data": {"_target_": "os.system"}}, r"add allow=\[os\]"),
        ({"backbone": {"_target_": "os.system"}}, r"add allow=\[os\]"),
        ({"trainer": {"devices": 2}}, "trainer.devices=2: expected 1: fit has one process"),
        ({"method": {"name": "padim"}}, "method.name=padim: missing a required argument: .*; choose a method"),
    ],
)
def test_errors_are_one_line(photographs, tmp_path, arguments, message):
    with pytest.raises(texture_ad.UserError, match=message) as error:
        texture_ad.fit(photographs, run_dir=tmp_path / "run", progress=False, **arguments)
    assert not GlobalHydra.instance().is_initialized()
    assert "/" not in str(error.value).split(": ")[0]


def test_no_photographs(tmp_path, fitted):
    with pytest.raises(texture_ad.UserError, match="data.root"):
        texture_ad.fit(tmp_path / "nowhere", progress=False, run_dir=tmp_path / "run")
    for nothing in (tmp_path / "nowhere", tmp_path, [], None):
        with pytest.raises(texture_ad.UserError):
            fitted[0].predict(nothing)
    with pytest.raises(texture_ad.UserError, match="device=cuda:99: not available"):
        fitted[0].to("cuda:99")


def test_the_stages_train_in_a_trainer_of_ones_own(photographs, settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import own_trainer

    kept = [a for a in settings if not a.startswith("trainer.")]
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    detector = own_trainer.train(photographs, tmp_path, *kept, accelerator="cpu", **dict.fromkeys(quiet, False))
    saved = texture_ad.load(tmp_path / "detector.pt")
    assert torch.equal(saved.module.flow.center, detector.flow.center) and detector.flow.center.any()
    assert len(saved.predict(photographs / "test")) == 8
    sys.modules.pop("own_trainer")


@pytest.mark.parametrize("group", ["ablation", "search"])
def test_what_only_a_sweep_tries_is_refused(tmp_path, group):
    with pytest.raises(texture_ad.UserError, match=f"{group}=flow.*a sweep tries, and this is a single run"):
        texture_ad.fit(tmp_path, overrides=[f"+{group}=flow{'_depth' * (group == 'ablation')}"])


def test_a_fit_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for folder in ("new/run", "there/new/run", "there"):
        with pytest.raises(texture_ad.UserError, match="no such folder"):
            texture_ad.fit("nowhere", run_dir=folder)
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]
