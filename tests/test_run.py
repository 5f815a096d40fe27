"""Whole runs through the real command lines, on embedded data and, where named, on real photographs."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, few_photographs, read_rows, read_scores
from miniatures import mvtec
from PIL import Image

SMALL = [
    "data.size=64",
    "backbone.min_size=0",
    "cutpaste=3way",
    "data.batch_size=4",
    "score.head_weight=0",
    "flow.first=0",
    "trainer.max_epochs=1",
    "dictionary.num_atoms=32",
    "flow.blocks=2",
    "detection.iterations=20",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def carpet(tmp_path_factory, process):
    folder = tmp_path_factory.mktemp("carpet")
    done = process("run", "+experiment=carpet", f"run_dir={folder}", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_run_folder_is_complete_and_names_its_source(carpet):
    folder, out = carpet
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < metrics["stage1_loader_share"] < 0.5
    assert 0 <= metrics["image_auroc"] <= 1 and 0 <= metrics["aupro"] <= 1
    assert "generated" in metrics["data_source"] and "generated" in out
    rows = read_rows(folder / "scores.csv")
    assert len(rows) == 68 and all("generated" in r["source"] for r in rows)
    assert len(list((folder / "overlays").rglob("*.jpg"))) == 68
    for name in ("detector.pt", "config.yaml", "scores.png", "roc_pr.png", "logs/metrics.csv"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.partial"))


def test_same_seed_same_digits(carpet, tmp_path, process):
    done = process("run", "+experiment=carpet", f"run_dir={tmp_path}", "pictures=false", *SMALL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores.csv").read_text() == (carpet[0] / "scores.csv").read_text()


def test_predict_gives_the_runs_scores(carpet, tmp_path, process):
    folder, _ = carpet
    rows = read_scores(folder / "scores.csv")
    from texture_ad.data.embedded import ensure

    done = process(
        "predict",
        f"detector={folder / 'detector.pt'}",
        f"input={ensure('carpet') / 'test'}",
        f"output={tmp_path}",
        "batch_size=7",
    )
    assert done.returncode == 0, done.stderr
    found = {f"test/{path}": score for path, score in read_scores(tmp_path / "scores.csv").items()}
    assert found.keys() == rows.keys()
    # Other batches than the run's: the last bits differ.
    assert max(abs(found[k] - rows[k]) / max(1, abs(rows[k])) for k in rows) < 1e-5
    assert len(list((tmp_path / "overlays").rglob("*.jpg"))) == len(rows)


def test_the_default_trains_in_mixed_precision(tmp_path, process):
    data = few_photographs(tmp_path / "carpet")
    quick = arguments(data, tmp_path / "run", "pictures=false", "trainer.max_epochs=1", "density.epoch_steps=3")
    done = process("run", *quick, "trainer.precision=bf16-mixed")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["image_auroc"] > 0.5


def test_stage_1_in_mixed_precision(tmp_path, process):
    data = few_photographs(tmp_path / "carpet")
    quick = (
        "pictures=false",
        "trainer.max_epochs=1",
        "cutpaste=binary",
        "data.batch_size=4",
        "representation.flow_weight=0.5",
        "score.head_weight=0",
        "flow.first=0",
    )
    found = {}
    for precision in ("bf16-mixed", "32-true"):
        folder = tmp_path / precision
        done = process("run", *arguments(data, folder, *quick, f"trainer.precision={precision}"))
        assert done.returncode == 0, done.stderr
        found[precision] = (
            json.loads((folder / "metrics.json").read_text())["image_auroc"],
            (folder / "scores.csv").read_text(),
        )
    (mixed, mixed_scores), (whole, whole_scores) = found.values()
    assert mixed == pytest.approx(whole, abs=0.15) and mixed_scores != whole_scores


def test_dictionary_checkpoint_holds_spams_statistics(carpet):
    checkpoint = torch.load(carpet[0] / "stage2/last.ckpt", weights_only=True)
    assert checkpoint["spams"]["A"].shape == (32, 32) and checkpoint["spams"]["iter"] > 0


def test_a_finished_stage_is_not_trained_again(carpet, process):
    folder, _ = carpet
    before = (folder / "scores.csv").read_text()
    done = process("run", "+experiment=carpet", f"run_dir={folder}", "pictures=false", *SMALL)
    assert done.returncode == 0, done.stderr
    assert (folder / "scores.csv").read_text() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data=mvtec"], "no data.root was given"),
        (["data.root=/nowhere"], "data.root=/nowhere: no such folder"),
        (["data=embedded", "data.category=carpte"], "did you mean carpet"),
        (["data=embedded", "data.category=2024_01"], "data.category=2024_01: embedded data has carpet, "),
        (["data=embedded", "data.category=1.10"], "data.category=1.10: embedded data has carpet, "),
        (["data.size=8"], "data.size=8"),
        (["flow.blocks=0"], "flow.blocks=0"),
        (["score.trust=-1"], "score.trust=-1"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: expected one of 32-true"),
        (["method=cutpaste", "trainer.precision=bf16-mixed"], "expected 32-true with method=cutpaste"),
        (["+trainer.limit_train_batchs=3"], "trainer.limit_train_batchs=3: nothing that can be set here"),
        (["+trainer.logger=3"], "trainer.logger=3: nothing that can be set here; expected one of accelerator, "),
        (["trainer.accelerator=cpu", "trainer.devices=-1"], "trainer: `devices` selected with `CPUAccelerator`"),
        (["trainer.strategy=foo"], "trainer: You selected an invalid strategy name"),
        (["dictionary.nonzeros=-1"], "dictionary.nonzeros=-1"),
        (["+logger.csv.foo=1"], "logger.csv.foo=1: no such parameter; expected one of "),
        (["+score.whitening=3"], "score.whitening=3: is made by the run itself; leave it out"),
        (["detection.lambda1=0"], "detection.lambda1=0"),
        (["backbone.layers=[block99]"], "backbone.layers=['block99']"),
        (["backbone.layers=block4"], "backbone.layers=block4: expected a list; give [block4]"),
        (["backbone.layers=3"], "backbone.layers=3: expected a list; give [3]"),
        (["backbone.weights=/nowhere.pth"], "backbone.weights=/nowhere.pth: no such file"),
        (["+colour=red"], "colour: no such key"),
        (["colour=red"], "colour: no such key; expected one of allow, augmentation, backbone, "),
        (["metod=padim"], "metod: no such key; did you mean method? expected one of allow, "),
        (["+metod=padim"], "metod: no such key; did you mean method? expected one of allow, "),
        (["+flow.blocs=4"], "flow.blocs=4: no such parameter; did you mean blocks? expected one of "),
        (["logger=[csv,wndb]"], "logger=wndb: no such choice; did you mean wandb? expected one of csv, mlflow, "),
        (["logger.wandb.project=x"], "logger.wandb: this logger is not chosen; give logger=[csv,wandb]"),
        (["seed.x=3"], "seed.x: no such key; did you mean seed? it has a single value"),
        (
            ["flow.blocks=2,4"],
            "flow.blocks=2,4: several values; add -m to run each of them, or write flow.blocks=[2,4]",
        ),
        (["+method=padim"], "method: has a choice already; change it without a plus: method=CHOICE"),
        (["+flow=realnvp"], "flow: has a choice already; change it without a plus: flow=CHOICE"),
        (["logger=null"], "logger=null: no such choice; expected one of csv, mlflow, none, tensorboard, wandb"),
        (["flow=8"], "flow=8: no such choice; expected one of realnvp"),
        (["flow=nan"], "flow=nan: no such choice; expected one of realnvp"),
        (["flow@flow=8"], "flow@flow=8: no such choice; expected one of realnvp"),
        (["logger=[csv, null]"], "logger=[csv, null]: no such choice; expected one of csv, mlflow, "),
        (["+experiment=carpet", "+experiment=wood"], "experiment: is given twice; give one of them, or both as +exp"),
        (["+ablation=fusion", "+ablation=fusion"], "ablation: is given twice; give one of them, or both as +abl"),
        (["=3"], "=3: expected KEY=VALUE"),
        (["--seed=3"], "--seed=3: no such option; a setting has no dashes: seed=3"),
        (["--seed", "3"], "--seed: no such option; a setting has no dashes: seed=VALUE"),
        (["-m", "--cfg", "job"], "--multirun, --cfg and --info exclude each other; give one of them"),
        (["hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs: no such key, hydra.launcher has none; choose another by"),
        (
            ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs=0: expected at least 1, or",
        ),
        (["run_dir="], "run_dir=: has no value; give run_dir=VALUE, or leave it out"),
        (["data.root="], "data.root=: has no value"),
        (["name=null"], "name=null: expected a name"),
        (["name="], "name=: expected a name"),
        (
            ["backbone.layers.x=3"],
            "backbone.layers.x=3: backbone.layers is a list; give all of it: backbone.layers=[...]",
        ),
        (["+allow.x=os"], "+allow.x=os: allow is a list; give all of it: allow=[...]"),
        (["flow@flow=realnvp"], "flow@flow: a group has one place; give flow=CHOICE"),
        (["experiment=carpet"], "experiment: has no choice yet; give +experiment=carpet"),
        (["hydra/launcher=[a]"], "hydra/launcher=a: no such choice"),
        (["+ablation=fusion"], "ablation=fusion: says what a sweep tries, and this is a single run; add -m"),
        (["+search=flow"], "search=flow: says what a sweep tries, and this is a single run; add -m"),
        (["flow.block=4"], "flow.block: no such key; did you mean blocks? expected one of blocks, clamp, "),
        (["trainer.max_time=1"], "or add one that its class takes with +trainer.max_time="),
        (["method=patchcroe"], "method=patchcroe: no such choice; did you mean patchcore? expected one of cutpaste, "),
        (["~flow"], "~flow: a setting can't be taken away"),
        (["~flow.blocks"], "~flow.blocks: a setting can't be taken away"),
        (["seed=-1"], "seed=-1"),
    ],
)
def test_bad_input_gets_one_line_and_a_non_zero_exit(args, message, tmp_path, command):
    if not args[0].startswith("data"):
        args = ["data=folder", f"data.root={mvtec(tmp_path / 'data')}", *args]
    code, _, errors = command("run", f"run_dir={tmp_path / 'run'}", "data.size=64", *args)
    assert code != 0
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], errors
    assert "Traceback" not in errors


def test_a_grid_of_one_position_leaves_nothing_to_tell_apart(tmp_path, process):
    layer = ("backbone.layers=[layer4]", "backbone.grid=layer4", "backbone.min_size=0")
    done = process("run", *arguments(few_photographs(tmp_path / "carpet"), tmp_path / "run", *layer, "data.size=32"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "score.head_weight=1.0: a grid of 1 x 1 is too coarse" in done.stderr


def test_a_misspelt_override_is_an_error(process):
    done = process("run", "flow.block=4")
    assert done.returncode != 0 and "flow.block" in done.stderr and "Traceback" not in done.stderr


def test_predict_refuses_what_is_no_detector(tmp_path, process):
    (tmp_path / "detector.pt").write_bytes(b"nonsense")
    done = process("predict", f"detector={tmp_path / 'detector.pt'}", f"input={tmp_path}")
    assert done.returncode == 2
    done = process("predict", f"detector={tmp_path / 'none.pt'}", f"input={tmp_path}")
    assert done.returncode == 2 and "error: " in done.stderr


def every_third(complete: Path, folder: Path) -> Path:
    """Return a folder with every third photograph of a data set, and its mask."""
    for kind in complete.glob("*/*/"):
        target = folder / complete.name / kind.relative_to(complete)
        target.mkdir(parents=True)
        for path in sorted(kind.iterdir())[::3]:
            (target / path.name).symlink_to(path.resolve())
    return folder / complete.name


@pytest.mark.skipif("TEXTURE_AD_REAL_DATA" not in os.environ, reason="TEXTURE_AD_REAL_DATA names no folder")
def test_real_photographs(tmp_path, process):
    root = every_third(Path(os.environ["TEXTURE_AD_REAL_DATA"]), tmp_path / "data")
    done = process(
        "run",
        "data=folder",
        f"data.root={root}",
        f"run_dir={tmp_path / 'run'}",
        "data.size=128",
        "backbone.min_size=0",
        "detection.iterations=60",
        "trainer.max_epochs=1",
        "pictures=false",
        "trainer.enable_progress_bar=false",
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["data_source"] == f"folder {root.name}"
    assert metrics["image_auroc"] > 0.85


def test_a_promise_that_the_test_images_contradict_is_told(tmp_path, process):
    data = few_photographs(tmp_path / "carpet")
    for path in sorted((data / "train/good").iterdir())[:12]:
        inverted = Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB")))
        inverted.save(data / "test/good" / f"inverted_{path.stem}.png")
    layer = ("method=padim", "backbone=resnet18", "backbone.weights=none", "backbone.layers=[layer1]")
    more = (
        *layer,
        "data.size=64",
        "data.calibration_fraction=0.4",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    )
    done = process("run", "data=folder", f"data.root={data}", f"run_dir={tmp_path / 'run'}", *more)
    assert done.returncode == 0, done.stderr
    told = re.search(r"warning: (\d+) of 16 normal test images are above the threshold, where \d", done.stdout)
    assert int(told[1]) >= 12
    for page in ("report.html", "model_card.md"):
        assert "they are of another kind than the calibration images" in (tmp_path / "run" / page).read_text("utf-8")
