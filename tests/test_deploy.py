"""The detector away from its training: in a process without the training's packages, on a stream of photographs,
and as a file that someone else wrote."""

import errno
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import read_rows, tiny_backbone, untrained_detector
from PIL import Image

from texture_ad.cli import entry
from texture_ad.data import images
from texture_ad.data.images import read_image, resize
from texture_ad.deploy import notify
from texture_ad.deploy.outputs import Wanted, watched_folder
from texture_ad.deploy.results import Result
from texture_ad.deploy.scorer import COLUMNS, Photograph, Row, Scorer, find_files, require_images
from texture_ad.deploy.scorer import predict as predict_files
from texture_ad.deploy.watch import Arrivals, Rows, State, States, Stop, watch
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.regions import Region
from texture_ad.files import csv_text
from texture_ad.methods import registry
from texture_ad.methods.base import VERSION
from texture_ad.methods.registry import load


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(60, 180, (80, 90, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def saved(photographs, tmp_path_factory):
    paths = sorted(photographs.iterdir())
    images = torch.stack([resize(read_image(p), (64, 64)) for p in paths])
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    untrained_detector(64, paths, images).save(path)
    return path


ALONE = """
import sys
for name in ("hydra", "omegaconf", "lightning", "pytorch_lightning", "wandb", "spams", "torchmetrics", "sklearn"):
    sys.modules[name] = None  # importing it fails
from texture_ad import load
import torch
detector = load(sys.argv[1])
scores, maps, *_ = detector(torch.load(sys.argv[2]))
torch.save((scores, maps), sys.argv[3])
"""


def test_it_loads_in_a_process_without_the_trainings_packages(saved, tmp_path):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    call = [sys.executable, "-c", ALONE, str(saved), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load(saved)(images)
    for found, right in zip(torch.load(tmp_path / "out.pt"), expected[:2], strict=True):
        assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


def test_the_readmes_three_lines(saved, photographs):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "load(" in block)
    assert len(lines.strip().splitlines()) <= 4
    scope = {}
    exec(lines.replace("detector.pt", str(saved)).replace("photograph.png", str(photographs / "0.png")), scope)
    assert scope["scores"].shape == (1,) and scope["anomaly_maps"].shape == (1, 64, 64)


def test_gpu_and_cpu_agree(saved):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    cpu = load(saved)(images)
    gpu = load(saved, "cuda")(images.cuda())
    assert torch.allclose(cpu.scores, gpu.scores.cpu(), atol=1e-3)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu"])
def test_a_device_that_is_not_there(saved, device):
    with pytest.raises(UserError, match=f"device={device}: not available .* use device=cpu"):
        load(saved, device)


# --- a stream of photographs --------------------------------------------------------------------------


@pytest.fixture
def predict(saved, tmp_path, command):
    def call(source, *args):
        outcome = command("predict", f"detector={saved}", f"input={source}", f"output={tmp_path / 'out'}", *args)
        path = tmp_path / "out/scores.csv"
        return *outcome, read_rows(path) if path.exists() else []

    return call


def test_the_share_above_the_threshold_is_told(predict, photographs):
    code, out, errors, rows = predict(photographs)
    assert code == 0, errors
    share = sum(int(r["anomalous"]) for r in rows)
    assert f"{share} of 5 images ({share / 5:.1%}) above the threshold" in out
    # Its threshold is the highest of four scores.
    assert "of normal images 20.0% (95% interval 0.6% to 60.2%) are expected" in out
    assert "warning" not in errors and all(r["warning"] == "" for r in rows)


def test_images_unlike_the_training_images_are_warned_of(predict, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = read_image(photographs / "0.png")
    Image.fromarray(pixels).save(folder / "alike.png")
    Image.fromarray(pixels[:50]).save(folder / "small.png")
    Image.fromarray(pixels).convert("L").save(folder / "grey.png")
    Image.fromarray(pixels // 4).save(folder / "dark.png")
    Image.fromarray(pixels // 5).save(folder / "darker.png")
    code, _, errors, rows = predict(folder)
    warnings = {r["path"]: r["warning"] for r in rows}
    assert code == 0 and warnings["alike.png"] == ""
    assert warnings["small.png"].startswith("90 x 50 pixels, trained on 90 to 90 x 80 to 80")
    assert warnings["grey.png"].startswith("mode L, trained on RGB")
    assert "brightness" in warnings["dark.png"] and "contrast" in warnings["dark.png"]
    for respect in ("size", "mode", "brightness", "contrast"):
        assert re.search(rf"warning: \d of 5 images differ in {respect}", errors)
    assert "2 of 5 images differ in brightness from the training images, first dark.png: brightness" in errors


def test_a_file_of_several_images_is_told(predict, tmp_path):
    first = Image.new("L", (64, 64), 120)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first, first])
    code, _, errors, rows = predict(tmp_path / "a.tif")
    told = "holds 3 images, of which the first alone is scored"
    assert code == 0 and f"1 of 1 images hold several, first a.tif: {told}" in errors and told in rows[0]["warning"]


def test_an_image_unlike_the_training_images_is_neither_where_that_is_asked_for(predict, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = read_image(photographs / "0.png")
    Image.fromarray(pixels).save(folder / "alike.png")
    Image.fromarray(pixels // 4).save(folder / "dark.png")
    for told, labels in (("false", {"normal", "anomalous"}), ("true", {"unsure"})):
        code, _, errors, rows = predict(folder, f"unsure={told}", "pictures=false")
        found = {r["path"]: r["label"] for r in rows}
        assert code == 0 and found["dark.png"] in labels and found["alike.png"] in ("normal", "anomalous")
        assert rows[1]["anomalous"] in "01" and ("labelled unsure" in errors) == (told == "true")


def test_an_unreadable_image_fails_after_all_others_are_scored(predict, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in photographs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "2.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")  # would block a reader for ever
    code, _, errors, rows = predict(folder, "batch_size=2")
    assert code == 2 and "1 of 5 images could not be scored" in errors
    assert [bool(r["score"]) for r in rows] == [True, True, False, True, True]


def test_overlays_need_no_further_pass_of_the_backbone(saved, photographs, tmp_path):
    detector = load(saved)
    passes = []
    detector.backbone.register_forward_hook(lambda *_: passes.append(1))
    paths = find_files(photographs, tmp_path).images
    predict_files(Scorer(detector, photographs, tmp_path), paths, tmp_path, batch_size=1)
    assert len(list((tmp_path / "overlays").iterdir())) == len(paths) == len(passes)


def test_a_panel_shows_a_region_of_one_pixel_of_a_large_photograph(saved, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("texture_ad.reporting.panels.localization_panel", lambda *_, region, **__: shown.append(region))
    scorer = Scorer(load(saved), tmp_path, None)
    photograph = Photograph(torch.zeros(3, 64, 64, dtype=torch.uint8), (700, 450))
    for row, column in ((0, 0), (333, 217), (699, 449)):
        mask = np.zeros((700, 450), bool)
        mask[row, column] = True
        region = Region((column, row, 1, 1), 1, 1.0, (column, row))
        result = Result("a.png", 1.0, 0.6, True, (700, 450), (region,), anomaly_map=np.zeros((64, 64)), mask=mask)
        scorer._write_panel(photograph, result, np.zeros((1, 2), int), (8, 8), tmp_path / "a.jpg")
        assert shown[-1].shape == (64, 64) and shown[-1][row * 64 // 700, column * 64 // 450]
        assert shown[-1].sum() <= 4  # and nothing else: the cells that the pixel touches


def test_its_own_pictures_are_not_scored(predict, photographs, tmp_path):
    (tmp_path / "a.png").write_bytes((photographs / "0.png").read_bytes())
    (tmp_path / "a.jpg").write_bytes((photographs / "1.png").read_bytes())
    for _ in range(2):
        code, out, errors, rows = predict(tmp_path)
        assert code == 0 and [r["path"] for r in rows] == ["a.jpg", "a.png"], errors
        assert "are no images" not in out
    (tmp_path / "a.heic2").write_text("?")
    assert f"note     1 files of {tmp_path} are no images: {tmp_path}/a.heic2\n" in predict(tmp_path)[1]
    assert sorted(p.name for p in (tmp_path / "out/overlays").iterdir()) == ["a.jpg", "a.png.jpg"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["batch_size=0"], "batch_size=0: expected an integer of at least 1"),
        (["interval=0"], "interval=0: expected a number above 0"),
        (["input=/nowhere"], "input=/nowhere: no such file or folder"),
        (["device=cuda:99"], "device=cuda:99: not available"),
        (["+colour=red"], "colour: no such key"),
        (["masks=flase"], "error: masks=flase: expected true or false"),
        (["masks=2"], "error: masks=2: expected true or false"),
        (["webhook=http://localhost/x"], "webhook=URL: tells of a watched folder; add watch=true"),
        (["watch=true", "mqtt=mqtt://localhost:abc/topic"], "mqtt=URL: no URL"),
        (["watch=true", "mqtt=nothing"], "mqtt=URL: expected a URL as mqtt://HOST/TOPIC"),
        (["colour=red"], "colour: no such key; expected one of allow, batch_size, "),
        (["detector=none.pt", "watch=true", "report=0"], "report=0: expected a number above 0"),
        (["watch=true", "webhook='http://[::1/x'"], "webhook=URL: no URL"),
        (["detector=none.pt", "watch=true", "webhook=ftp://user:secret@host/x"], "error: webhook=host: expected a URL"),
    ],
)
def test_bad_arguments(predict, photographs, args, message):
    code, _, errors, _ = predict(photographs, *args) if "input" not in args[0] else predict(args[0][6:])
    assert code == 2 and message in errors and "Traceback" not in errors


@pytest.mark.parametrize("name", ["predict", "serve", "update", "export"])
def test_what_is_not_given_is_named_and_described(name, command):
    code, _, errors = command(name)
    assert code == 2 and errors == "error: detector: not given (a run's detector.pt); give detector=VALUE\n"


def test_a_folder_inside_that_of_the_results_is_scored(photographs):
    found = find_files(photographs, photographs.parent)
    assert found.images and found == find_files(photographs, photographs / "out")


def test_files_of_ours_beside_the_images_are_no_strangers(tmp_path):
    for name in ("0.png", "scores.csv", "overlays/0.png.jpg", "batch/1.png", "batch/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_files(tmp_path, tmp_path)
    assert found.images == [tmp_path / "0.png", tmp_path / "batch/1.png"]
    assert found.others == [tmp_path / "batch/notes.txt"]


def test_pictures_of_an_earlier_predict_are_no_photographs(tmp_path):
    own = ["0.png", "batch/1.png", "masks/2.png", "batch/maps/3.png"]  # folders of the user's own
    made = ["old/overlays/0.png.jpg", "old/masks/0.png.png", "old/maps/0.png.tiff", "old/anomaly_images/a/b/0.tiff"]
    for name in (*own, *made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "old/scores.csv").write_bytes(csv_text([COLUMNS]))
    (tmp_path / "scores.csv").write_text("name,score\n")  # another's
    found = find_files(tmp_path, tmp_path / "new")
    assert found.images == sorted(tmp_path / name for name in own)
    assert found.results == sorted(tmp_path / name for name in made)
    arrivals = Arrivals(tmp_path, tmp_path / "new", 0)
    arrivals.look(lambda _: False)
    assert [*arrivals.look(lambda _: False)] == found.images
    with pytest.raises(ParameterError, match=r"overlays: holds no image; 1 pictures are results of predict"):
        require_images(tmp_path / "old/overlays", tmp_path / "new")


def test_hidden_images_are_left_out_and_a_folder_that_is_gone_has_none(tmp_path):
    for name in ("0.png", ".1.png", ".hidden/2.png", "batch/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_files(tmp_path, tmp_path / "out").images == [tmp_path / "0.png", tmp_path / "batch/3.png"]
    assert find_files(tmp_path / "gone", tmp_path).images == []  # a watched one can come back


def test_linked_folders_are_searched_as_in_a_run(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0.png").write_bytes(b"")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/batch").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert find_files(tmp_path / "in", tmp_path / "out").images == [tmp_path / "in/batch/0.png"]


def test_links_to_files_of_ours_are_left_out(tmp_path):
    (tmp_path / "out/overlays").mkdir(parents=True)
    (tmp_path / "out/overlays/0.png").write_bytes(b"")
    (tmp_path / "in").mkdir()
    for name, target in (("file.png", "../out/overlays/0.png"), ("folder", "../out/overlays"), ("circle", "circle")):
        (tmp_path / "in" / name).symlink_to(target)
    found = find_files(tmp_path / "in", tmp_path / "out")
    assert found.images == [] and found.others == [tmp_path / "in/circle"]
    assert find_files(tmp_path / "out/overlays", tmp_path / "out").images == []


def test_a_look_resolves_and_names_no_file_that_it_knows(tmp_path, monkeypatch):
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(b"")
    asked = []
    arrivals = Arrivals(tmp_path, tmp_path / "out", 0)
    arrivals.look(lambda path: not asked.append(path))
    assert len(asked) == 100
    resolved = []
    resolve = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, **options: resolved.append(path) or resolve(path, **options))
    assert not arrivals.look(lambda path: not asked.append(path))
    assert len(asked) == 100 and 0 < len(resolved) < 20


def test_a_submission_would_be_one_file_of_two_photographs(predict, photographs, tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes((photographs / "0.png").read_bytes())
    code, _, errors, _ = predict(tmp_path, "submission=true")
    assert code == 2 and "would be one file; rename one" in errors


def test_what_an_earlier_command_left_is_named(predict, photographs):
    code, _, errors, _ = predict(photographs, "regions=true", "masks=true")
    assert code == 0 and "earlier" not in errors
    code, _, errors, _ = predict(photographs, "threshold=0", "masks=true")
    assert code == 0 and "warning: regions.json, coco.json in " in errors and "are of an earlier command" in errors
    code, _, errors, _ = predict(photographs / "0.png", "masks=true")
    count = len(list(photographs.iterdir())) - 1
    assert f"coco.json, {count} files of overlays, {count} files of masks in " in errors


@pytest.mark.parametrize(
    "images",
    [torch.rand(1, 3, 64, 64), *(torch.zeros(*shape, dtype=torch.uint8) for shape in ((3, 64, 64), (1, 1, 64, 64)))],
)
def test_a_detector_takes_images_as_it_reads_them_alone(images):
    with pytest.raises(UserError, match=r"images: expected uint8 \(B, 3, H, W\)"):
        untrained_detector()(images)


def test_rows_of_a_watched_folder_are_not_written_over(predict, photographs, tmp_path):
    with Rows(tmp_path / "out/scores.csv", 1.0) as rows:
        rows.append([Row("a.png", "1", "0.5", "2.5"), Row("b.png", warning="empty")])
        code, _, errors, _ = predict(photographs)
        assert code == 2 and "another process is writing to it" in errors
    with Rows(tmp_path / "out/scores.csv", 1.0) as rows:
        assert rows.names == {"a.png"} and rows.thresholds == {"2.5"}


def test_the_record_of_a_watched_folder_is_of_that_folder_alone(predict, saved, photographs, tmp_path, between_looks):
    output = tmp_path / "out"
    other = tmp_path / "other"
    other.mkdir()

    def watched(folder):
        between_looks([lambda: None, lambda: None])  # by then all files are complete
        watch(Scorer(load(saved), folder, output, wanted=Wanted()), folder, output, batch_size=8, interval=0.01)
        return (output / "scores.csv").read_bytes()

    assert predict(photographs)[0] == 0
    with pytest.raises(ParameterError, match="has the rows of a command that watched no folder"):
        watched(photographs)
    (output / "scores.csv").unlink()
    record = watched(photographs)
    assert len(record.splitlines()) == 6 and watched(photographs) == record
    with pytest.raises(ParameterError, match=f"has the rows of the watched folder {photographs}"):
        watched(other)
    code, _, errors, _ = predict(photographs)
    assert code == 2 and f"is the record of the watched folder {photographs}" in errors
    code, _, errors, _ = predict(photographs, "detector=none.pt")  # before the detector is read
    assert code == 2 and f"is the record of the watched folder {photographs}" in errors
    sound = (output / "watched.json").read_bytes()
    (output / "watched.json").write_text("{")
    code, _, errors, _ = predict(photographs)
    assert code == 2 and f"error: {output}/watched.json: damaged" in errors
    with pytest.raises(UserError, match="watched.json: damaged"):
        watched(photographs)
    assert (output / "scores.csv").read_bytes() == record
    (output / "watched.json").write_bytes(sound)
    (output / "scores.csv").unlink()
    with Rows(output / "scores.csv", 1.0) as rows:
        rows.append([Row("a.png", warning="empty")])  # which is of that folder too
    with pytest.raises(ParameterError, match=f"has the rows of the watched folder {photographs}"):
        watched(other)


@pytest.fixture
def between_looks(monkeypatch):
    """Do a step between two looks at a watched folder, and stop after the last."""

    def do(steps):
        steps = list(steps)

        class Steps(Stop):
            def __init__(self):
                self.asked = False

            def wait(self, seconds):
                if steps:
                    steps.pop(0)()
                else:
                    self.asked = True

        monkeypatch.setattr("texture_ad.deploy.watch.Stop", Steps)

    return do


def test_a_file_is_scored_once_it_rests_and_a_broken_one_again_when_it_changes(
    saved, photographs, tmp_path, between_looks
):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    whole = (photographs / "0.png").read_bytes()
    first, broken = folder / "a.png", folder / "b.png"
    steps = [
        lambda: (first.write_bytes(whole[:900]), broken.write_bytes(b"no image")),
        lambda: first.write_bytes(whole),
        lambda: None,
        lambda: broken.write_bytes(b"still no image"),
        lambda: None,
        lambda: broken.write_bytes(whole),
        lambda: None,
    ]

    between_looks(steps)
    told = []
    scorer = Scorer(load(saved), folder, output, wanted=Wanted())
    watch(scorer, folder, output, 8, 0.01, tell=lambda result: told.append((result["name"], bool(result["error"]))))
    assert told == [("b.png", True), ("a.png", False), ("b.png", True), ("b.png", False)]
    found = read_rows(output / "scores.csv")
    assert [(row["path"], bool(row["score"])) for row in found] == [("b.png", False), ("a.png", True), ("b.png", True)]


def test_a_file_that_changes_after_it_was_scored_is_warned_of_once_and_scored_again(
    saved, photographs, tmp_path, between_looks, capsys
):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    contents = [(photographs / f"{i}.png").read_bytes() for i in range(3)]
    file = folder / "cam1.png"

    def watched(*steps):
        between_looks(steps)
        watch(Scorer(load(saved), folder, output, wanted=Wanted()), folder, output, 8, 1, report=1000)
        return [row["score"] for row in read_rows(output / "scores.csv")], capsys.readouterr().err

    def idle():
        pass

    def touched():
        os.utime(file, ns=(0, 10**18))

    file.write_bytes(contents[0])
    scores, errors = watched(idle, idle, idle)
    assert len(scores) == 1 and "changed" not in errors
    change = [lambda content=content: file.write_bytes(content) for content in contents]
    scores, errors = watched(touched, idle, change[1], idle, idle, file.unlink, idle, change[2], idle, idle)
    assert len(scores) == len(set(scores)) == 3  # none for a file that was only touched
    assert errors.count(f"warning: {file}: changed after it was scored; it is scored again and gets another row") == 1
    page = (output / "stream.html").read_text(encoding="utf-8")
    assert "1 files changed after they were scored, and have a row for each time: cam1.png." in page
    with Rows(output / "scores.csv", 1.0) as rows:
        assert rows.stream.counts["changed after they were scored"] == 1  # over a restart


def test_what_changes_while_nothing_watches_is_scored_after_a_restart(
    saved, photographs, tmp_path, between_looks, capsys
):
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    contents = [(photographs / f"{i}.png").read_bytes() for i in range(4)]
    file, other = folder / "cam1.png", folder / "sub/still.png"
    for path in (file, other):
        path.write_bytes(contents[0])

    def idle():
        pass

    def watched(*steps):
        between_looks(steps)
        scorer = Scorer(load(saved), folder, output, wanted=Wanted())
        watch(scorer, folder, output, 8, 1)
        return scorer.images, [row["path"] for row in read_rows(output / "scores.csv")][2:], capsys.readouterr().err

    def changed(number):
        file.write_bytes(contents[number])

    assert watched(idle, idle)[0] == 2
    assert watched(idle, idle)[:2] == (0, [])  # a restart scores nothing twice
    changed(1)
    scored, added, errors = watched(idle, idle)
    assert (scored, added) == (1, ["cam1.png"]) and f"warning: {file}: changed after it was scored" in errors
    assert watched(idle, idle, lambda: changed(2))[0] == 0  # too shortly before the end to come to rest
    assert watched(idle, idle)[:2] == (1, ["cam1.png"] * 2)
    file.unlink()
    assert watched(idle, lambda: changed(3), idle, idle)[:2] == (1, ["cam1.png"] * 3)
    os.utime(other)
    assert watched(idle, idle)[:2] == (1, ["cam1.png"] * 3)  # which was only touched
    assert watched(idle, idle)[0] == 0


def test_the_state_of_a_file_is_that_of_its_last_row(tmp_path):
    path = tmp_path / "watched.json"
    path.write_text('{"folder": "/a"}\n')
    scores = {"a.png": "1", "b\nb.png": "3"}
    first, second = State(10, 5, 6), State(11, 7, 8)
    states = States(path, scores)
    states.append([(Row("a.png", "1"), first), (Row("b\nb.png", "3"), first), (Row("c.png"), first)])
    states.append([(Row("a.png", "2"), second)])  # whose row a kill kept off the disk
    path.write_bytes(path.read_bytes() + b'["a.png", "1", 9')
    States(path, scores).append([(Row("b\nb.png", "3"), second)])
    states = States(path, scores)
    assert states.pop("a.png").same_content(first) and states.pop("b\nb.png").same_content(second)
    assert states.pop("c.png") is None and States(path, {}).pop("a.png") is None
    assert watched_folder(tmp_path) is None  # without rows
    (tmp_path / "scores.csv").write_bytes(b"")
    assert watched_folder(tmp_path) == "/a"


def test_a_file_without_permission_is_told_so_and_scored_once_it_has_it(
    saved, photographs, tmp_path, between_looks, monkeypatch, capsys
):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    files = [folder / "a.png", folder / "b.png"]
    for file in files:
        file.write_bytes((photographs / "0.png").read_bytes())
    files[1].chmod(0)
    read = images.Image.open

    def open_with_permission(path, **options):
        if not path.stat().st_mode & 0o400:  # the tests may run as root, who needs none
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(images.Image, "open", open_with_permission)
    between_looks([lambda: None, lambda: [file.chmod(0o600) for file in files], lambda: None])
    watch(Scorer(load(saved), folder, output, wanted=Wanted()), folder, output, 8, 0.01)
    assert [(row["path"], bool(row["score"])) for row in read_rows(output / "scores.csv")] == [
        ("a.png", True),
        ("b.png", False),
        ("b.png", True),
    ]
    errors = capsys.readouterr().err
    assert f"warning: {files[1]}: can't be read (Permission denied); check the path and its permissions" in errors
    assert "changed" not in errors and "copy it again" not in errors


def test_a_folder_that_can_t_be_read_is_passed_over_with_one_warning(tmp_path, monkeypatch, capsys):
    for name in ("a/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    scan = os.scandir
    locked = {tmp_path / "a"}

    def scandir(path):
        if path in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    arrivals = Arrivals(tmp_path, tmp_path / "out", 0)
    assert [[*arrivals.look(lambda _: False)] for _ in range(3)] == [[], [tmp_path / "b/1.png"], []]
    warning = f"warning: {tmp_path / 'a'}: can't be read (Permission denied)"
    assert capsys.readouterr().err.count(warning) == 1
    locked.clear()
    assert [[*arrivals.look(lambda _: False)] for _ in range(2)] == [[], [tmp_path / "a/0.png"]]
    locked.add(tmp_path / "a")
    arrivals.look(lambda _: False)
    assert capsys.readouterr().err.count(warning) == 1


def test_a_watched_folder_that_goes_and_comes_back_is_told_and_what_failed_meanwhile_is_tried_again(
    tmp_path, monkeypatch, capsys
):
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    for name in ("scored.png", "failed.png"):
        (folder / name).write_bytes(b"")
    arrivals = Arrivals(folder, tmp_path / "out", 0)

    def look():
        found = [path.name for _ in range(2) for path in arrivals.look(lambda path: path.name == "scored.png")]
        return found, capsys.readouterr().err

    assert look() == (["failed.png"], "") and look() == ([], "")
    folder.rename(away)
    assert look() == ([], f"warning: {folder} is gone; it is watched again when it comes back\n")
    away.rename(folder)
    assert look() == (["failed.png"], f"note: {folder} is there again\n")
    monkeypatch.setattr("texture_ad.deploy.watch._device", lambda _: -1)  # of the place that a share was mounted at
    assert "lies on another file system than before" in look()[1] and look()[1] == ""


def test_a_watched_folder_says_once_of_each_kind_of_file_that_it_is_no_image(tmp_path, capsys):
    output = tmp_path / "in"  # which our own files are in
    (output / "batch").mkdir(parents=True)
    for name in ("scores.csv", "watched.json", "batch/a.raw", "0.png"):
        (output / name).write_bytes(b"")
    arrivals = Arrivals(output, output, 0)
    arrivals.look(lambda _: False)
    raw = output / "batch/a.raw"
    assert capsys.readouterr().err == f"note: files *.raw are no images and are left out, first {raw}\n"
    for name in ("b.raw", "c"):
        (output / "batch" / name).write_bytes(b"")
    assert [*arrivals.look(lambda _: False)] == [output / "0.png"]
    assert capsys.readouterr().err == (
        f"note: files without a suffix are no images and are left out, first {output / 'batch/c'}\n"
    )


@pytest.mark.parametrize(("settle", "looks"), [(0, [1]), (0.5, [1]), (2.5, [3]), (3, [3])])
def test_a_file_rests_as_long_as_is_asked_for_before_it_is_scored(tmp_path, settle, looks):
    moments = iter(map(float, range(8)))
    arrivals = Arrivals(tmp_path / "in", tmp_path / "out", settle, lambda: next(moments))
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/a.png"
    for size in (100, 200):  # a copier that pauses
        file.write_bytes(bytes(size))
        found = [bool(arrivals.look(lambda _: False)) for _ in range(4)]
        assert [look for look, settled in enumerate(found) if settled] == looks


def test_a_receiver_that_is_silent_does_not_hold_up_the_end(monkeypatch, capsys):
    monkeypatch.setattr(notify, "TIMEOUT", 0.2)
    start = time.monotonic()
    with notify.Notifier(lambda content: time.sleep(0.1)) as tell:
        for number in range(100):
            tell({"number": number})
    assert time.monotonic() - start < 5 and tell.lost > 50
    assert "messages were lost" in capsys.readouterr().err


def test_a_folder_without_images(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in predict(tmp_path / "empty")[2]


# --- files that someone else wrote --------------------------------------------------------------------


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def altered(saved, path, change):
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, path)


def compressed(saved, path):
    """The same detector with a part that unpacks to a hundred times its size."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part) + bytes(10_000_000))


def giant(content):
    content["settings"]["dictionary"]["num_atoms"] = 10**12
    atoms = content["state"]["dictionary.atoms"]
    content["state"]["dictionary.atoms"] = torch.zeros(1, 1).expand(10**12, atoms.shape[1])


HOSTILE = {
    "code": lambda s, p: torch.save({"format": Harm()}, p),
    "code in the meta": lambda s, p: altered(s, p, lambda c: c["provenance"].update(x=Harm())),
    "a bare pickle": lambda s, p: p.write_bytes(pickle.dumps({"format": Harm()})),
    "a legacy file": lambda s, p: torch.save({"format": Harm()}, p, _use_new_zipfile_serialization=False),
    "compressed": compressed,
    "another version": lambda s, p: altered(s, p, lambda c: c.update(version=99)),
    "another format": lambda s, p: altered(s, p, lambda c: c.update(format="model")),
    "a list": lambda s, p: torch.save([1, 2], p),
    "no state": lambda s, p: altered(s, p, lambda c: c.pop("state")),
    "giant": lambda s, p: altered(s, p, giant),
    "many blocks": lambda s, p: altered(s, p, lambda c: c["settings"]["flow"].update(blocks=10**9)),
    "a wide flow": lambda s, p: altered(s, p, lambda c: c["settings"]["flow"].update(hidden=10**9)),
    "a large image": lambda s, p: altered(s, p, lambda c: c["settings"].update(size=10**9)),
    "another shape": lambda s, p: altered(s, p, lambda c: c["state"].update(mean=torch.zeros(3))),
    "no tensor": lambda s, p: altered(s, p, lambda c: c["state"].update(mean="zero")),
    "unknown setting": lambda s, p: altered(s, p, lambda c: c["settings"].update(colour="red")),
    "a file's name as weights": lambda s, p: altered(s, p, lambda c: c["backbone"].update(weights="/etc/passwd")),
    "another backbone": lambda s, p: altered(s, p, lambda c: c["backbone"].update(name="alexnet")),
    "examples": lambda s, p: altered(s, p, lambda c: c.update(examples=[1])),
    "large examples": lambda s, p: altered(
        s, p, lambda c: c.update(examples=torch.zeros(1, dtype=torch.uint8).expand(10**9, 3, 64, 64))
    ),
    "provenance": lambda s, p: altered(s, p, lambda c: c.update(provenance=[1])),
    "truncated": lambda s, p: p.write_bytes(s.read_bytes()[:-1000]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_detectors_are_refused(saved, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    HOSTILE[kind](saved, tmp_path / "detector.pt")
    with pytest.raises(UserError, match=r"^detector=.*(damaged|not a detector file|expected texture_ad.detector)"):
        load(tmp_path / "detector.pt")
    assert not (tmp_path / "harmed").exists()


def test_a_detector_whose_tensors_are_another_s_says_which(saved, tmp_path):
    altered(saved, tmp_path / "detector.pt", lambda c: c["state"].update(center=torch.zeros(3)))
    with pytest.raises(UserError, match=r'damaged \(Unexpected key.* "center"'):
        load(tmp_path / "detector.pt")


def test_a_detector_of_another_version_is_told_what_to_do(saved, tmp_path):
    path = tmp_path / "detector.pt"
    told = "detector={}: format texture_ad.detector version {}, expected texture_ad.detector version {}; {}"
    for version, advice in (
        (VERSION + 1, "it is newer than this program; upgrade texture_ad"),
        (VERSION - 1, "train it again with this version"),
        (str(VERSION + 1), "train it again with this version"),
    ):
        altered(saved, path, lambda content, version=version: content.update(version=version))
        with pytest.raises(ParameterError) as error:
            load(path)
        assert str(error.value) == told.format(path, version, VERSION, advice)


def test_code_in_backbone_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harm()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="not a state dict"):
        tiny_backbone("efficientnet_lite0", ["block2"], str(tmp_path / "weights.pt"))
    assert not (tmp_path / "harmed").exists()


def test_code_in_a_checkpoint_is_refused(tmp_path, monkeypatch):
    from texture_ad.training.checkpoints import AtomicCheckpoints

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harm()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        AtomicCheckpoints().load_checkpoint(str(tmp_path / "last.ckpt"))
    assert not (tmp_path / "harmed").exists()


def test_a_saved_detector_is_the_same(saved):
    a = load(saved)
    b = io.BytesIO()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.save(a.state_dict(), b)
    assert torch.equal(a(images).scores, load(saved)(images).scores)


# --- decisions and files ------------------------------------------------------------------------------


def test_another_threshold_and_all_files(predict, photographs, tmp_path):
    _, _, _, before = predict(photographs, "pictures=false")
    threshold = np.mean(sorted(float(r["score"]) for r in before)[2:4])
    low = "pixel_threshold=-1000"
    code, out, errors, rows = predict(photographs, f"threshold={threshold}", low, "pictures=false")
    assert code == 0, errors
    assert sum(int(r["anomalous"]) for r in rows) == 2 and "2 of 5 images (40.0%)" in out
    assert [float(r["level"]) > 0.5 for r in rows] == [r["anomalous"] == "1" for r in rows]
    # Regions are those of anomalous images.
    assert {(r["anomalous"], r["regions"], r["area"]) for r in rows} == {("1", "1", "1.000000"), ("0", "0", "0.000000")}
    files = ("pictures=false", "masks=true", "maps=true", "regions=true", "submission=true")
    code, _, errors, rows = predict(photographs, "threshold=-1000", low, *files)
    assert code == 0, errors
    assert {(r["regions"], r["area"]) for r in rows} == {("1", "1.000000")}
    folder = tmp_path / "out"
    told = json.loads((folder / "regions.json").read_text())
    assert (told[0]["name"], told[0]["size"], told[0]["regions"][0]["box"]) == ("0.png", [80, 90], [0, 0, 90, 80])
    assert (told[0]["threshold"], told[0]["anomalous"], told[0]["label"]) == (-1000, True, "anomalous")
    coco = json.loads((folder / "coco.json").read_text())
    assert [a["image_id"] for a in coco["annotations"]] == [i["id"] for i in coco["images"]] == [1, 2, 3, 4, 5]
    place = Path(*photographs.parts[-2:])
    for mask in (folder / "masks/0.png.png", folder / "anomaly_images_thresholded" / place / "0.png"):
        pixels = np.asarray(Image.open(mask))
        assert pixels.dtype == np.uint8 and pixels.shape == (80, 90) and set(np.unique(pixels)) == {255}
    for path in (folder / "maps/0.png.tiff", folder / "anomaly_images" / place / "0.tiff"):
        scores = tifffile.imread(path)
        assert scores.shape == (80, 90) and scores.dtype == np.float16
        assert float(scores.max()) == pytest.approx(told[0]["regions"][0]["peak"], rel=1e-3)
    code, out, _, _ = predict(photographs, "pixel_false_alarm_rate=0.4", "pictures=false")
    assert code == 0 and "of normal images 20.0%" in out and "and 40.0%" in out
    code, out, _, _ = predict(photographs, "false_alarm_rate=0.5", "pictures=false")
    assert code == 0 and "of normal images 40.0%" in out  # two of the four calibration scores are above it
    assert predict(photographs, "false_alarm_rate=0")[0] == 2
    for name in ("regions", "submission"):
        code, _, errors, _ = predict(photographs, f"{name}=true", "watch=true")
        assert code == 2 and f"{name}=True: a watched folder has no end" in errors


@pytest.mark.parametrize("command", ["check data=folder data.root=nowhere", "predict --help"])
def test_a_closed_output_is_no_fault_of_ours(command):
    name, *arguments = command.split()
    script = f"{sys.executable} -m texture_ad.{name} {' '.join(arguments)} >&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "NoneType" not in done.stderr


def test_another_broken_pipe_than_the_outputs_is_an_error(saved, photographs, tmp_path, command, monkeypatch):
    def broken(*args, **kwargs):
        raise BrokenPipeError("the receiver hung up")

    monkeypatch.setattr("texture_ad.deploy.scorer.predict", broken)
    monkeypatch.setattr(entry, "_reader_is_gone", lambda: False)
    with pytest.raises(BrokenPipeError, match="the receiver hung up"):  # and no silent end
        command("predict", f"detector={saved}", f"input={photographs}", f"output={tmp_path / 'out'}")
    monkeypatch.undo()
    read, write = os.pipe()
    with monkeypatch.context() as patch, open(write, "w") as sink:
        patch.setattr(sys, "stdout", sink)
        assert not entry._reader_is_gone()
        os.close(read)
        assert entry._reader_is_gone()


@pytest.mark.parametrize("end", [">&-", "| head -1"])
def test_a_reader_that_has_seen_enough_is_no_error(saved, photographs, tmp_path, end):
    arguments = f"detector={saved} input={photographs} output={tmp_path / 'out'} pictures=false engine=torch"
    command = f"set -o pipefail; {sys.executable} -m texture_ad.predict {arguments} {end}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Error executing" not in done.stderr
    if end == ">&-":
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scores.csv").exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_scored(saved, photographs, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    scorer = Scorer(load(saved), photographs, tmp_path / "file")
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(FileExistsError):
        predict_files(scorer, sorted(photographs.iterdir()), tmp_path / "file", 8)


def test_an_output_that_cannot_be_written_is_told_before_the_detector_is_read(photographs, tmp_path, command):
    (tmp_path / "file").write_bytes(b"")
    code, _, errors = command("predict", "detector=none.pt", f"input={photographs}", f"output={tmp_path / 'file'}")
    assert code == 2
    assert (
        errors == f"error: output={tmp_path / 'file'}: can't be written (a file is in the way); give another folder\n"
    )
    code, _, errors = command("predict", "detector=none.pt", f"input={photographs}", f"output={tmp_path / 'a/b'}")
    assert code == 2 and "detector=none.pt: no such file" in errors and not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["predict", "update", "export"])
def test_a_disk_that_fills_up_is_told_without_a_word_of_runs(name, photographs, command, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full", "place")

    monkeypatch.setattr(registry, "load", full)
    monkeypatch.setattr("texture_ad.files.check_writable", lambda _: None)
    given = {"predict": [f"input={photographs}"], "update": [f"images={photographs}"], "export": []}
    code, _, errors = command(name, "detector=none.pt", *given[name])
    told = "place: can't be written or read (No space left on device); make room on the disk"
    assert code == 2 and errors == f"error: {told}, then give the same command again\n"
