"""Every bad input has its message and exit code; nothing is lost and nothing goes on in silence."""

import compileall
import math
import os
import resource
import struct
import urllib.error
import zlib
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from forked import Forked, run_module
from helpers import arguments, composed, environment, read_rows, read_scores
from omegaconf import OmegaConf
from PIL import Image

import texture_ad
from texture_ad.api import fit
from texture_ad.cli.explain import explain
from texture_ad.data import mvtec
from texture_ad.data.geometry import Geometry
from texture_ad.errors import DivergenceError, UserError
from texture_ad.pipeline import Run
from texture_ad.training.callbacks import StopDivergence


def noise(seed, height=40, width=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "wall"
    for part in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        noise(i).save(root / f"train/good/{i}.png")
    for i in range(2):
        noise(10 + i).save(root / f"test/good/{i}.png")
        noise(20 + i).save(root / f"test/hole/{i}.png")
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 10:20] = 255
        Image.fromarray(mask).save(root / f"ground_truth/hole/{i}_mask.png")
    return root


TINY = (
    "data.size=32",
    "data.batch_size=2",
    "data.eval_batch_size=32",
    "backbone.layers=[layer1]",
    "flow.blocks=1",
    "flow.hidden=8",
    "dictionary.num_atoms=4",
    "dictionary.nonzeros=2",
    "detection.epochs=1",
    "trainer.max_epochs=1",
    "logger=none",
    "pictures=false",
)


@pytest.fixture
def run(folder, tmp_path, command):
    def call(*args):
        return command("run", *arguments(folder, tmp_path / "run", *TINY), *args)

    return call


def refused(outcome, *messages):
    code, _, errors = outcome
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, errors
    assert "Traceback" not in errors
    for message in messages:
        assert message in lines[0], errors


def bomb(path):
    """A PNG of some hundred bytes that claims 30 000 x 30 000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(50_000), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def animation(path):
    noise(0).save(path, "GIF", save_all=True, append_images=[noise(1), noise(2)])


BAD_IMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "can't be read as an image"),
    "zero bytes": (lambda p: p.write_bytes(b""), "the file is empty"),
    "only a header": (lambda p: p.write_bytes(p.read_bytes()[:8]), "can't be read as an image"),
    "no image": (lambda p: p.write_text("<html>not found</html>"), "can't be read as an image"),
    "one pixel": (lambda p: noise(0, 1, 1).save(p), "1 x 1 pixels, expected at least 4"),
    "a bomb": (bomb, "scale the image down or cut it"),
    "constant": (lambda p: Image.new("RGB", (40, 40), (9, 9, 9)).save(p), "one colour all over"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_training_images_are_named(run, folder, kind):
    harm, message = BAD_IMAGES[kind]
    path = folder / "train/good/3.png"
    harm(path)
    refused(run(), message, str(path))


@pytest.mark.parametrize("kind", [kind for kind in BAD_IMAGES if kind != "constant"])
def test_bad_test_images_are_named(run, folder, kind):
    path = folder / "test/hole/1.png"
    BAD_IMAGES[kind][0](path)
    refused(run(), BAD_IMAGES[kind][1], str(path))


def test_bad_images_are_left_out_where_that_is_asked_for(run, folder, tmp_path):
    for path, kind in ((folder / "train/good/3.png", "truncated"), (folder / "test/hole/1.png", "zero bytes")):
        BAD_IMAGES[kind][0](path)
    code, out, errors = run("data.unusable=skip")
    assert code == 0, errors
    assert "warning: 2 unusable images" in out and "train/good/3.png, test/hole/1.png" in out
    assert "used for nothing: unusable images | 2" in (tmp_path / "run/data_card.md").read_text(encoding="utf-8")


def test_every_mode_and_name_is_worked_with(run, folder, tmp_path):
    good = folder / "train/good"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (40, 40), dtype=np.uint16)).save(good / "16 bit.png")
    noise(1).convert("CMYK").save(good / "cmyk.jpg")
    noise(2).convert("RGBA").save(good / "alpha.png")
    noise(3).quantize(16).save(good / "palette.gif")
    noise(4, 30, 50).save(good / "rotated.jpg", exif=exif)
    names = [
        "with space.png",
        "Lücke 漢字.png",
        "new\nline.png",
        "-rf.png",
        "$(touch x).png",
        "%s{0}.png",
        "q\"uo'te.png",
    ]
    for i, name in enumerate(names):
        noise(30 + i).save(folder / "test/good" / name)
    odd = os.fsencode(folder / "test/good") + b"/\xff\xfe.png"
    with open(odd, "wb") as sink:
        noise(99).save(sink, "PNG")
    code, _, errors = run("pictures=true")
    assert code == 0, errors
    found = {Path(path).name for path in read_scores(tmp_path / "run/scores.csv")}
    assert set(names) <= found and "\\udcff\\udcfe.png" in found


MASKS = {
    "misaligned": (lambda p: Image.new("L", (40, 39), 255).save(p), "the mask has 40 x 39 pixels, its image 40 x 40"),
    "not binary": (lambda p: noise(0).convert("L").save(p), "not a mask but a picture"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:40]), "can't be read as an image"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_bad_masks_are_named(run, folder, kind):
    harm, message = MASKS[kind]
    harm(folder / "ground_truth/hole/1_mask.png")
    refused(run(), message, "1_mask.png")


@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: Image.new("L", (40, 40)).save(p)])
def test_a_missing_or_empty_mask_is_told_and_strictly_refused(run, folder, harm):
    harm(folder / "ground_truth/hole/1_mask.png")
    path = folder / "test/hole/1.png"
    refused(run("data.strict=true"), "1 anomalous images have no mask", str(path))
    code, out, errors = run()
    assert code == 0, errors
    assert out.count("warning: 1 anomalous images have no mask, or one that marks no pixel") == 1 and str(path) in out


def test_a_file_of_several_images(run, folder):
    path = folder / "train/good/3.png"
    animation(path)
    refused(run("data.frames=error"), "3 frames, expected one", str(path))
    code, out, errors = run("data.frames=first")
    assert code == 0 and "6 training, 0 calibration" in out and "the first alone is read" in out, errors


def test_defects_in_the_training_folder(run, folder):
    (folder / "train/hole").mkdir()
    noise(0).save(folder / "train/hole/0.png")
    refused(run(), "train/hole: training uses defect-free images only")


def test_one_training_image_is_too_few_and_two_are_enough(run, folder):
    for path in sorted((folder / "train/good").iterdir())[2:]:
        path.unlink()
    code, _, errors = run()
    assert code == 0, errors
    (folder / "train/good/0.png").unlink()
    refused(run("run_dir=" + str(folder.parent / "other")), "1 normal images for training; at least 2 are needed")
    assert not (folder.parent / "other").exists()  # refused, a run leaves no folder
    (folder.parent / "runs").mkdir()
    refused(run("run_dir=" + str(folder.parent / "runs/a/b")), "1 normal images for training; at least 2 are needed")
    assert not [*(folder.parent / "runs").iterdir()]  # nor one that it would lie in, but for one that was there
    (folder.parent / "own").mkdir()
    refused(run("run_dir=" + str(folder.parent / "own")), "1 normal images for training; at least 2 are needed")
    assert (folder.parent / "own").is_dir()  # but for one that was there


def test_settings_that_are_refused_once_the_data_are_read_leave_no_folder(run, folder, tmp_path):
    (folder / "test/good/copy.png").write_bytes((folder / "train/good/0.png").read_bytes())  # listed in copies.csv
    for setting in ("flow.blocks=-1", "density.lr=-1"):
        refused(run("logger=csv", f"run_dir={tmp_path / 'runs/a'}", setting), setting)
        assert not (tmp_path / "runs").exists()
        with pytest.raises(UserError, match=setting):
            fit(overrides=arguments(folder, tmp_path / "runs/b", *TINY, setting))
        assert not (tmp_path / "runs").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/notes.txt").touch()
    refused(run(f"run_dir={tmp_path / 'own'}", "flow.blocks=-1"), "flow.blocks=-1")
    assert (tmp_path / "own/notes.txt").is_file()


def test_copies_that_calibrate_are_warned_of(run, folder):
    assert "calibration images are copies" not in run()[1]
    for path in sorted((folder / "train/good").iterdir()):
        (path.parent / f"again {path.name}").write_bytes(path.read_bytes())
    code, out, errors = run("run_dir=" + str(folder.parent / "other"))
    assert code == 0, errors
    assert "warning: 12 calibration images are copies of each other or of training images: " in out
    assert "more new images than promised" in out


def test_copies_are_warned_of_and_listed(run, folder, tmp_path):
    for i in range(6):
        (folder / f"test/good/copy{i}.png").write_bytes((folder / f"train/good/{i}.png").read_bytes())
    code, out, _ = run()
    assert code == 0 and "warning: 6 test images are copies of training images" in out
    listed = read_rows(tmp_path / "run/copies.csv")
    assert [Path(row["test"]).name for row in listed] == [f"copy{i}.png" for i in range(6)]


def test_an_unreadable_folder_is_named(run, folder, monkeypatch):
    real = os.scandir

    def denied(path):
        if getattr(path, "name", "") == "good":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may read everything
    refused(run(), "train/good: can't be read (Permission denied)")


def test_link_loops_end(run, folder):
    (folder / "train/good/loop").symlink_to(folder)
    (folder / "test/loop").symlink_to(folder / "test")
    (folder / "train/good/self.png").symlink_to(folder / "train/good/self.png")
    code, _, errors = run()
    assert code == 0, errors


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "/proc/self/fd"])
def test_a_run_folder_that_cant_be_written(run, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    told = ["(a file is in the way)"] if place.startswith("file") else []
    refused(run(f"run_dir={place if place.startswith('/') else tmp_path / place}"), "can't be written", *told)


def test_a_full_disk_loses_nothing(folder, tmp_path):
    # In a fresh checkout the process would write bytecode cut off at the limit, on which all later ones would fail.
    compileall.compile_dir(Path(texture_ad.__file__).parent, quiet=1)
    call = arguments(folder, tmp_path / "run", *TINY)
    process = Forked("texture_ad.run", *call, env=environment())
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # long before its first file
    out, errors = process.communicate(timeout=120)
    refused((process.returncode, out, errors), "File too large", "resumes from its last checkpoint")
    assert not list((tmp_path / "run").rglob("*.ckpt")) and not list((tmp_path / "run").rglob("*.partial"))
    done = run_module("texture_ad.run", *call, env=environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Network is unreachable"),
        IncompleteRead(b"half"),
        RuntimeError('invalid hash value (expected "1", got "2")'),
        ConnectionResetError("reset by baseline"),
    ],
)
def test_weights_that_cant_be_downloaded(run, monkeypatch, error):
    import torchvision

    def lost(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models, "get_model", lost)
    refused(
        run("backbone=resnet18", "backbone.layers=[layer1]", "backbone.weights=pretrained"),
        "could not be downloaded",
        "backbone.weights=FILE",
    )


def test_a_full_gpu_gets_advice(run, monkeypatch):
    import texture_ad.pipeline

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(texture_ad.pipeline, "run", full)
    refused(run(), "the GPU's memory is full", "lower data.batch_size")


def test_a_diverging_loss_stops_and_the_batch_is_saved(run, folder, tmp_path):
    learns = (
        "cutpaste=binary",
        "data.batch_size=4",
        "score.head_weight=0",
        "flow.first=0",
        "representation.lr=1e30",
        "trainer.gradient_clip_val=null",
    )
    refused(run(*learns), "the loss is", "representation.lr=1e+30")
    saved = torch.load(tmp_path / "run/folds/1/stage1/diverged_batch.pt", weights_only=True)
    assert saved["image"].shape[1:] == (3, 32, 32) and saved["image"].dtype == torch.uint8
    assert all(Path(p).parent == folder / "train/good" for p in saved["paths"])
    assert len(saved["paths"]) == len(saved["image"])


def test_a_diverging_flow_stops_and_its_features_are_saved(run, tmp_path):
    refused(run("density.lr=1e30", "trainer.gradient_clip_val=null"), "the loss is", "lower density.lr=1e+30")
    saved = torch.load(tmp_path / "run/folds/1/stage1/diverged_batch.pt", weights_only=True)
    assert saved["flow"].shape[0] == 64 and saved["step"] > 0


def test_a_loss_that_leaps_and_comes_back_is_no_divergence(tmp_path, capsys):
    strategy = SimpleNamespace(reduce=lambda loss: loss)
    trainer = SimpleNamespace(
        strategy=strategy,
        precision_plugin=SimpleNamespace(scaler=None),
        default_root_dir=tmp_path,
        is_global_zero=True,
        current_epoch=0,
        global_step=5,
    )
    guard = StopDivergence()
    guard.batch = {"normal": torch.ones(2, 3)}

    def after(*losses):
        for loss in losses:
            guard.on_before_backward(trainer, SimpleNamespace(lr=1.0), torch.tensor(loss))

    trainer.precision_plugin.scaler = SimpleNamespace(get_scale=lambda: 65536.0)
    after(*[16 * 65536.0] * 20)  # as float16 scales it
    trainer.precision_plugin.scaler = None
    for _ in range(3):
        after(*[1e8] * 9, 1.0)
    assert not list(tmp_path.iterdir())
    guard.on_train_end(trainer, None)
    assert capsys.readouterr().err == "warning: in 27 steps the loss was beyond 1e+06, and came back\n"
    with pytest.raises(DivergenceError, match="the loss is nan"):
        after(math.nan)
    after(1.0, *[-1e8] * 9)
    with pytest.raises(DivergenceError, match="lower lr=1"):
        after(-1e8)
    assert (tmp_path / "diverged_batch.pt").is_file()


def test_what_suits_no_backbone_that_learns_is_refused(run):
    refused(run("cutpaste=binary"), "score.head_weight=1.0: expected 0 where the backbone learns CutPaste itself")
    learns = ("cutpaste=binary", "data.batch_size=4", "score.head_weight=0", "backbone.layers=[layer1,layer2]")
    refused(run(*learns), "flow.first=1: expected 0 where the backbone learns")


def test_latent_features_of_some_layers_are_refused(run):
    latent = ("dictionary.features=latent", "dictionary.last=0", "backbone.layers=[layer1,layer2]")
    refused(run(*latent), "dictionary.features=latent", "flow.first=0")


# --- parameters ---------------------------------------------------------------------------------------


# The smallest network: one is made for each number.
SMALLEST = ("backbone=timm", "backbone.name=test_resnet", "backbone.layers=[layer1,layer2]")
FIXED = (*SMALLEST, "backbone.weights=none", "data=embedded", "run_dir=none")
WITH_NUMBERS = composed(*FIXED, "data.cache_mb=0")
NUMBERS = sorted(
    f"{group}.{key}"
    for group, keys in WITH_NUMBERS.items()
    if OmegaConf.is_dict(keys) and group not in ("logger", "trainer")
    for key, value in keys.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
) + ["trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.max_epochs"]
SWITCHES = sorted(
    f"{group}.{key}"
    for group, keys in WITH_NUMBERS.items()
    if OmegaConf.is_dict(keys) and group != "logger"
    for key, value in keys.items()
    if isinstance(value, bool)
)
FAULTS = [(key, value) for value in ("text", ".nan", "-2", "true") for key in NUMBERS]
FAULTS += [(key, "'no'") for key in SWITCHES]  # as Hydra reads it, a text


@pytest.mark.parametrize(("key", "value"), FAULTS)
def test_every_number_and_switch_is_checked_and_named_by_its_key(key, value, tmp_path):
    config = WITH_NUMBERS.copy()  # composing one for each would take longer than all the rest
    OmegaConf.update(config, key, yaml.safe_load(value))
    run = Run(config, tmp_path)
    with pytest.raises(Exception) as error:
        run.make("data", augmentation=run.make("augmentation"))
        detector = run.make("method", make=run.make, geometry=Geometry((64, 64)))
        features = run.make("features", detector=detector)
        pretext = run.make("cutpaste", dim=8)
        run.make("representation", detector=detector, pretext=pretext, features=features)
        run.make("density", detector=detector, features=features)
        run.make("detection", detector=detector, features=features)
        run.trainer("stage1")
    line = explain(error.value)
    assert line is not None and f"{key}=" in line and "expected " in line, (line, error.value)


@pytest.mark.parametrize(
    "args", [["flow.block=4"], ["backbone=vgg"], ["data.size"], ["+experiment=rug"], ["flow=[", "x=1"]]
)
def test_what_hydra_refuses_has_the_same_form(run, args):
    refused(run(*args))


@pytest.mark.parametrize(
    "args",
    [
        ["backbone._target_=os.system"],
        ["data._target_=subprocess.check_output"],
        ["trainer._target_=texture_ad.data.mvtec.shutil.rmtree"],
        ["+logger.x._target_=os.system", "+logger.x.command=touch harmed"],
        ["+flow.seed2={_target_: os.system, command: touch harmed}"],
    ],
)
def test_only_classes_of_the_configuration_are_made(run, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    refused(run("logger=csv", *args), "not a class that conf/ names")
    assert not (tmp_path / "harmed").exists()


def test_an_error_line_holds_no_control_characters(run, tmp_path):
    refused(run("data.root='/no\x1b]0;title\x07where'"), "/no?]0;title?where")


def test_a_fault_of_the_program_keeps_its_traceback():
    assert explain(ZeroDivisionError("division by zero")) is None
    assert explain(UserError("plain")) == "plain"


def test_a_device_in_an_archive_path_is_refused_before_unpacking(tmp_path):
    (tmp_path / "a.tar").symlink_to("/dev/null")
    with pytest.raises(UserError, match="no such file|can't be unpacked"):
        mvtec.import_archive(tmp_path / "a.tar", tmp_path / "root")
