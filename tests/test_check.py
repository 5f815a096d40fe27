"""The commands that look before anything is trained: check, and import of a folder as a table."""

import errno
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import composed, read_rows
from omegaconf import OmegaConf
from PIL import Image

from texture_ad.cli import checking
from texture_ad.data import importing, inspection
from texture_ad.data.images import Reading
from texture_ad.data.inspection import File, copy_lines, described, inspect_files, near_duplicates
from texture_ad.data.layouts import copies, scan


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(seed: int, shape=(64, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Return a folder in MVTec AD's layout: 6 normal images for training, and for testing 2 normal and 2 anomalous."""
    for i in range(6):
        save(tmp_path / f"train/good/{i}.png", noise(i))
    for i in range(2):
        save(tmp_path / f"test/good/{i}.png", noise(10 + i))
        save(tmp_path / f"test/hole/{i}.png", noise(20 + i))
        save(tmp_path / f"ground_truth/hole/{i}_mask.png", np.eye(64, dtype=np.uint8) * 255)
    return tmp_path


def test_copies_and_near_duplicates_are_told_apart(tmp_path):
    smooth = np.array(Image.fromarray(noise(0, (8, 8))).resize((96, 96), Image.Resampling.BICUBIC))
    first = save(tmp_path / "a.png", smooth)
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    Image.fromarray(smooth).resize((80, 80)).point(lambda v: v * 0.9).save(tmp_path / "c.jpg", quality=80)
    save(tmp_path / "d.png", np.array(Image.fromarray(noise(1, (8, 8))).resize((96, 96), Image.Resampling.BICUBIC)))
    files = inspect_files([(path, 0) for path in sorted(tmp_path.iterdir())], Reading())
    assert [[path.name for path in group] for group in copies(file.path for file in files)] == [["a.png", "b.png"]]
    assert [[path.name for path in group] for group in near_duplicates(files)] == [["a.png", "b.png", "c.jpg"]]
    assert described(files) == "96 x 96 px (3), 80 x 80 px (1); L"


def test_without_hashes_there_are_no_near_duplicates(folder, command, monkeypatch):
    for module in ("data.inspection", "cli.checking"):
        monkeypatch.setattr(f"texture_ad.{module}.can_hash", lambda: False)
    code, out, errors = command("check", "data=folder", f"data.root={folder}")
    assert code == 0 and "near-duplicates in " not in out, errors
    assert "near-duplicates were not looked for" in out


def test_many_near_copies_of_one_image_are_one_group(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.random((3, 256)) < 0.5

    def near(bits, count, name):
        for i in range(count):  # a chain: each differs from the next in few bits, the first from the last in many
            bits = bits ^ (np.arange(256) // 20 == i % 12)
            yield File(Path(f"{name}{i}"), 0, (8, 8), "L", bits)

    sides = {
        "training": [*near(hashes[0], 38, "a"), *near(hashes[1], 1, "b")],
        "calibration": list(near(hashes[2], 2, "c")),
        "test": [*near(hashes[0] ^ (np.arange(256) < 5), 2, "d")],
    }
    monkeypatch.setattr(inspection, "copies", lambda _: [])  # there are no files
    lines = list(copy_lines(sides, Path()))
    assert lines == [
        "near-duplicates in training, test: 40 images in 1 groups: (a0, d1 and 38 more); the metrics will be too good",
        "near-duplicates in calibration: 2 images in 1 groups: (c0, c1)",
    ]
    monkeypatch.setattr(inspection, "ROWS", 7)
    assert list(copy_lines(sides, Path())) == lines


def test_check_writes_nothing_where_it_is_called(folder, command, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tifffile.imwrite(
        folder / "test/good/2.tif", np.zeros((64, 64, 9), np.uint8), photometric="rgb"
    )  # of which Pillow logs an error
    assert command("check", "data=folder", f"data.root={folder}")[0] == 2
    assert not list((tmp_path / "here").iterdir())


def test_check_tells_what_a_run_would_use(folder, command):
    (folder / "train/good/notes.xyz").write_text("?")
    (folder / "test/good/9.png").write_bytes((folder / "train/good/0.png").read_bytes())
    code, out, errors = command("check", "data=folder", f"data.root={folder}", "method=padim")
    assert code == 0 and not errors
    assert "training 5 images: 64 x 64 px; L\ncalibration 1 images: 64 x 64 px; L\ntest     5 images" in out
    assert "kinds    good (3), hole (2)\nmasks    of 2 of 2 anomalous images\n" in out
    assert "warning: 1 files" in out and "train/good/notes.xyz" in out
    assert (
        "warning: copies in training, test: 2 images in 1 groups: (train/good/0.png, "
        "test/good/9.png); the metrics will be too good\n" in out
    )
    assert out.endswith("ready    a run would start\n")
    assert not (folder / "runs").exists()


def test_another_depth_is_told(folder, command):
    for name in ("train/good/3.png", "test/good/0.png"):
        (folder / name).unlink()
        tifffile.imwrite(folder / name.replace("png", "tif"), np.stack([noise(3).astype(np.uint16) * 257] * 3, -1))
    (folder / "test/hole/0.png").write_bytes(b"")
    _, out, _ = command("check", "data=folder", f"data.root={folder}")
    assert "L (4), RGB of more than 8 bits (1)" in out
    warned = next(line for line in out.splitlines() if "give all one depth" in line)
    assert warned.startswith("warning: 2 of 10 files have more than 8 bits a channel and the others have not")
    assert "0.tif" in warned and "3.tif" in warned


def test_check_names_every_fault_and_is_refused_as_a_run_is(folder, command):
    (folder / "train/good/1.png").write_bytes((folder / "train/good/1.png").read_bytes()[:600])
    (folder / "test/hole/0.png").write_bytes(b"")
    save(folder / "train/good/2.png", np.full((64, 64), 7, np.uint8))
    save(folder / "ground_truth/hole/1_mask.png", np.eye(32, dtype=np.uint8) * 255)
    code, out, errors = command("check", "data=folder", f"data.root={folder}")
    told = errors.splitlines()
    assert code == 2 and len(told) == 4 and all(line.startswith(f"error: {folder}/") for line in told)
    for file, words in (
        ("train/good/1.png", "can't be read"),
        ("test/hole/0.png", "the file is empty"),
        ("train/good/2.png", "one colour all over"),
        ("ground_truth/hole/1_mask.png", "the mask has 32 x 32 pixels, its image 64 x 64"),
    ):
        assert any(file in line and words in line for line in told), file
    assert out.endswith("note     data.unusable=skip leaves images out that can't be used\nrefused  a run would be\n")


def test_unusable_images_are_left_out_where_that_is_asked_for(folder, command):
    bad = ("train/good/1.png", "train/good/2.png", "train/good/several.tif", "test/hole/0.png")
    save(folder / "train/good/2.png", np.full((64, 64), 7, np.uint8))
    save(folder / "test/good/0.png", np.full((64, 64), 7, np.uint8))  # may be what has to be found
    for name in (bad[0], bad[3]):
        (folder / name).write_bytes((folder / name).read_bytes()[:600])
    tifffile.imwrite(folder / bad[2], np.stack([noise(0), np.full((64, 64), 7, np.uint8)]), photometric="minisblack")
    arguments = ["check", "data=folder", f"data.root={folder}", "data.frames=all", "method=padim"]
    assert command(*arguments)[0] == 2
    code, out, errors = command(*arguments, "data.unusable=skip")
    assert code == 0 and not errors
    assert f"warning: 4 unusable images of {folder} are used for nothing: {', '.join(bad[:3])}, ..." in out
    assert "training 3 images: 64 x 64 px; L\ncalibration 1 images: 64 x 64 px; L\ntest     3 images" in out
    for i in (3, 4, 5):
        (folder / f"train/good/{i}.png").write_bytes(b"")
    code, _, errors = command(*arguments, "data.unusable=skip")
    assert code == 2 and "1 normal images for training; at least 2 are needed" in errors


def test_one_colour_is_judged_as_a_run_does(folder, command):
    for i in range(6):  # deep images so dark that 256 levels of all values would show one colour
        save(folder / f"train/good/{i}.png", noise(i).astype(np.uint16) // 8)
    arguments = ["check", "data=folder", f"data.root={folder}"]
    assert command(*arguments)[0] == 0
    (folder / "test/hole/0.png").write_bytes(b"")  # nor where a file has stopped the set-up
    (folder / "train/good/1.png").write_bytes(b"")
    assert len(command(*arguments)[2].splitlines()) == 2
    save(folder / "train/good/1.png", np.pad(np.full((44, 44), 9, np.uint8), 10, constant_values=200))
    (folder / "test/hole/0.png").write_bytes((folder / "test/hole/1.png").read_bytes())
    code, _, errors = command(*arguments, "data.roi=12")
    assert code == 2 and "train/good/1.png: one colour within data.roi" in errors
    code, out, errors = command(*arguments, "data.roi=12", "data.unusable=skip")
    assert code == 0 and not errors
    assert "warning: 1 unusable images" in out and "train/good/1.png" in out


def test_check_tells_what_is_seen_and_what_may_be_expected(folder, command):
    for path in folder.rglob("*.png"):
        save(path, np.tile(np.asarray(Image.open(path)), (1, 4)))
    arguments = ["check", "data=folder", f"data.root={folder}"]
    out = command(*arguments, "data.size=32", "cross_fit=false")[1]
    assert "seen     256 x 64 px as 128 x 32 px, 2.0 times smaller; data.tile=64 cuts strips into tiles" in out
    assert "expected of normal images 50.0% (" in out and "by 1 calibration images; cross_fit=true calibrates on" in out
    assert "data.tile" not in command(*arguments, "data.size=32", "method=padim")[1]
    out = command(*arguments, "data.tile=64")[1]
    assert "\nseen " not in out
    assert (
        "expected of normal images 14.3% (" in out and "by 6 calibration images, cross-fitted by 6 more fits\n" in out
    )
    out = command(*arguments, "data.size=64", "false_alarm_rate=0.5", "pixel_false_alarm_rate=0.5")[1]
    assert "\nseen " not in out and "by 1 calibration images\n" in out
    for path in folder.rglob("*.png"):
        save(path, np.tile(np.asarray(Image.open(path)), (3, 1)))
    out = command(*arguments, "data.size=32")[1]
    assert "256 x 192 px as 32 x 32 px, 6.0 times smaller; data.tile=512 looks at parts" in out


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("data.roi=40", "error: data.roi=40: expected an integer from 0 to 31"),
        ("data.size=[1,2,3]", "error: data.size=[1, 2, 3]"),
        ("data.groups=x", "data.groups"),
    ],
)
def test_check_refuses_settings_of_the_data(folder, command, argument, words):
    code, _, errors = command("check", "data=folder", f"data.root={folder}", argument)
    assert code == 2 and words in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=padim", "data.tile=48"], "error: data.tile=[48, 48]: padim learns every position"),
        (["whitening.mode=position", "data.tile=48"], "error: whitening.mode=position: positions of tiles"),
        (["backbone.weights=nowhere.pt"], "error: backbone.weights=nowhere.pt"),
        (["method.coreset=2", "method=patchcore"], "error: method.coreset=2"),
        (["pictures=no"], "error: pictures=no: expected true or false"),
        (["cache=foo"], "error: cache=foo: expected one of sweep, always, never"),
        (["cache=always", "cache_gb=-1"], "error: cache_gb=-1: expected a number above 0"),
        (["pruning=median"], "error: pruning: cuts trials of a search"),
        (["+ablation=fusion"], "error: ablation=fusion: says what a sweep tries, and this is a single run; add -m"),
        (["logger=[csv,mlflow]", "+logger.mlflow.url=x"], "error: logger.mlflow.url=x: no such parameter"),
    ],
)
def test_check_refuses_a_detector_that_a_run_could_not_build(folder, command, arguments, words):
    code, out, errors = command("check", "data=folder", f"data.root={folder}", *arguments)
    assert code == 2 and words in errors and out.endswith("refused  a run would be\n")
    assert len(errors.splitlines()) == 1 and "training 5 images" in out


def test_check_refuses_a_folder_that_holds_another_run(folder, command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "detector.pt").touch()
    (run / "config.yaml").write_text(OmegaConf.to_yaml(composed("data=folder", f"data.root={folder}"), resolve=True))
    arguments = ["check", "data=folder", f"data.root={folder}", f"run_dir={run}"]
    assert command(*arguments)[0] == 0
    code, out, errors = command(*arguments, "false_alarm_rate=0.1")
    assert (
        code == 2 and f"run_dir={run}: holds a run with false_alarm_rate=0.05, not 0.1" in errors and "refused " in out
    )
    (run / "metrics.json").write_text('{"data_fingerprint": "of other images"}')
    code, _, errors = command(*arguments)
    assert code == 2 and f"run_dir={run}: its images changed since" in errors


def test_check_refuses_a_run_folder_that_cant_be_made(folder, command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/run"):
        arguments = ["check", "data=folder", f"data.root={folder}", f"run_dir={tmp_path / place}"]
        code, out, errors = command(*arguments)
        assert code == 2 and errors.startswith(f"error: run_dir={tmp_path / place}: can't be written (")
        assert len(errors.splitlines()) == 1 and out.endswith("refused  a run would be\n")
    assert command(*arguments, f"run_dir={tmp_path / 'new/run'}")[0] == 0 and not (tmp_path / "new").exists()


def test_a_full_disk_is_told_without_a_word_of_runs(folder, command, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full", "place")

    monkeypatch.setattr(checking, "build", full)
    code, _, errors = command("check", "data=folder", f"data.root={folder}")
    told = "place: can't be written or read (No space left on device); make room on the disk"
    assert code == 2 and errors == f"error: {told}, then give the same command again\n"


def test_a_table_of_a_known_folder_lists_what_the_folder_does(folder, capsys):
    assert importing.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not listed" not in out
    assert "10 images, 8 good, 2 hole; 2 with a mask" in out and f"data.table={folder}/images.csv" in out
    expected, found = scan(folder), scan(folder, table=str(folder / "images.csv"))
    for side in ("train", "calibration", "test"):
        own = {(s.path, s.label, s.kind, s.mask) for s in getattr(expected, side)}
        assert own == {(s.path, s.label, s.kind, s.mask) for s in getattr(found, side)}
    assert importing.main([str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    (folder / "file").touch()
    assert importing.main([str(folder), str(folder / "file/images.csv")]) == 2
    assert f"error: {folder}/file/images.csv: can't be written (" in capsys.readouterr().err


def test_a_kind_of_defect_named_as_a_label_stays_one(folder, capsys):
    (folder / "test/hole").rename(folder / "test/0")
    (folder / "ground_truth/hole").rename(folder / "ground_truth/0")
    save(folder / "test/1/5.png", noise(30))
    save(folder / "test/cut/5.png", noise(31))
    assert importing.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "8 good, 2 defect_0, 1 defect_1, 1 cut; 2 with a mask" in out
    assert "defect_0 stands for the kind 0, since" in out and "defect_1 stands for the kind 1, since" in out
    found = scan(folder, table=str(folder / "images.csv")).test
    assert {(s.path.parent.name, s.kind, s.label) for s in found} == {
        ("0", "defect_0", 1),
        ("1", "defect_1", 1),
        ("cut", "cut", 1),
        ("good", "good", 0),
    }


def test_a_table_of_any_folder_is_to_be_edited(tmp_path, capsys):
    for name in ("roll 1/OK/a.png", "roll 1/NG/b.png", "roll 2/OK/c.png", "roll 2/d.png"):
        save(tmp_path / "photos" / name, noise(0))
    save(tmp_path / "photos/roll 1/masks/b_mask.png", noise(0))
    save(tmp_path / "photos/roll 1/masks/f_mask.png", noise(0))  # of no image
    save(tmp_path / "photos/roll 2/NG/e.png", noise(0))
    save(tmp_path / "photos/roll 2/NG/e_GT.png", noise(0))
    assert importing.main([str(tmp_path / "photos"), str(tmp_path / "own.csv")]) == 0
    rows = {row["path"]: (row["label"], row["mask"], row["split"]) for row in read_rows(tmp_path / "own.csv")}
    assert rows == {
        "roll 1/NG/b.png": ("anomalous", "roll 1/masks/b_mask.png", ""),
        "roll 1/OK/a.png": ("good", "", ""),
        "roll 2/OK/c.png": ("good", "", ""),
        "roll 2/NG/e.png": ("anomalous", "roll 2/NG/e_GT.png", ""),
        "roll 2/d.png": ("", "", ""),
    }
    out = capsys.readouterr().out
    assert "fill in the column label first" in out
    assert f"1 images of {tmp_path}/photos are not listed: roll 1/masks/f_mask.png" in out
    assert importing.main([str(tmp_path / "own.csv"), str(tmp_path)]) == 2  # no archive
    (tmp_path / "empty").mkdir()
    assert importing.main([str(tmp_path / "empty")]) == 2
