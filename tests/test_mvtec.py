import errno
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from texture_ad.data import mvtec
from texture_ad.data.layouts import copies, scan
from texture_ad.data.mvtec import COUNTS, import_archive, main
from texture_ad.errors import UserError


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), value, np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "carpet"
    for i in range(3):
        picture(root / f"train/good/{i}.png", 10 + i)
        picture(root / f"test/good/{i}.png", 50 + i)
        picture(root / f"test/hole/{i}.png", 90 + i)
        picture(root / f"ground_truth/hole/{i}_mask.png", 0)
    return root


def test_scan(folder):
    (folder / "train/good/notes.txt").write_text("not an image")
    layout = scan(folder)
    assert len(layout.train) == 3
    assert [s.label for s in layout.test] == [0, 0, 0, 1, 1, 1]
    assert layout.test[-1].mask.name == "2_mask.png" and layout.test[0].mask is None


def test_masks_and_tests_are_optional(folder):
    shutil.rmtree(folder / "ground_truth")
    assert not any(sample.mask for sample in scan(folder).test)
    shutil.rmtree(folder / "test")
    assert scan(folder).test == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: shutil.rmtree(f / "train"), "has no train/good"),
        (lambda f: [p.unlink() for p in (f / "train/good").iterdir()], "0 normal images for training; at least 2"),
        (
            lambda f: [(f / "train/good/0.png").unlink(), (f / "train/good/1.png").unlink()],
            "1 normal images for training; at least 2",
        ),
        (lambda f: picture(f / "train/hole/0.png", 5), "defect-free images only"),
    ],
)
def test_a_wrong_layout_is_named(folder, harm, message):
    harm(folder)
    with pytest.raises(UserError, match=message):
        scan(folder)


def test_symlink_loops_do_not_hang(folder):
    (folder / "train/good/loop").symlink_to(folder)
    (folder / "train/good/self.png").symlink_to(folder / "train/good/self.png")
    assert len(scan(folder).train) == 3


def test_copies(folder):
    shutil.copy(folder / "train/good/1.png", folder / "test/good/copy.png")
    found = copies(sample.path for sample in scan(folder).samples)
    assert [[path.name for path in group] for group in found] == [["1.png", "copy.png"]]


@pytest.fixture
def small_counts(monkeypatch):
    monkeypatch.setitem(COUNTS, "carpet", (3, 6))


def packed(folder, path, prefix=""):
    with tarfile.open(path, "w:xz") as tar:
        tar.add(folder, prefix + folder.name)
    return path


def test_published_counts():
    # 3629 training and 1725 test images, as Bergmann et al. state; 5354 in all.
    assert tuple(map(sum, zip(*COUNTS.values(), strict=True))) == (3629, 1725)


@pytest.mark.parametrize("prefix", ["", "mvtec_anomaly_detection/"])
def test_import(folder, tmp_path, small_counts, prefix, capsys):
    archive = packed(folder, tmp_path / "a.tar.xz", prefix)
    assert main([str(archive), str(tmp_path / "root")]) == 0
    assert "imported carpet" in capsys.readouterr().out
    assert len(scan(tmp_path / "root" / "carpet").test) == 6
    with pytest.raises(UserError, match="exists already"):
        import_archive(archive, tmp_path / "root")


def test_wrong_counts_import_nothing(folder, tmp_path, capsys):
    assert main([str(packed(folder, tmp_path / "a.tar.xz")), str(tmp_path / "root")]) == 2
    assert "published are 280 and 117" in capsys.readouterr().err
    assert list((tmp_path / "root").iterdir()) == []


def test_a_target_that_cannot_be_written_is_named(folder, tmp_path, small_counts, capsys, monkeypatch):
    archive = packed(folder, tmp_path / "a.tar.xz")
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/root"):
        assert main([str(archive), str(root)]) == 2
        assert f"error: {root}: can't be written (" in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mvtec.shutil, "copyfileobj", full)
    assert main([str(archive), str(tmp_path / "root")]) == 2
    assert capsys.readouterr().err.endswith(f"into {tmp_path}/root (No space left on device)\n")


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("/carpet/train/good/0.png"), "leaves the folder"),
        (member("carpet/../../evil.png"), "leaves the folder"),
        (member("carpet/train/good/0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or a device"),
        (member("carpet/train/good/0.png", type=tarfile.LNKTYPE, linkname="x"), "link or a device"),
        (member("carpet/train/good/0.png", type=tarfile.CHRTYPE), "link or a device"),
    ],
)
def test_hostile_archives(tmp_path, info, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(info, io.BytesIO())
    with pytest.raises(UserError, match=message):
        import_archive(tmp_path / "a.tar", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == [] and not (tmp_path / "evil.png").exists()


def test_bombs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mvtec, "MAX_UNPACKED", 100)
    with pytest.raises(UserError, match="unpacks to over"):
        import_archive(packed(folder, tmp_path / "a.tar.xz"), tmp_path / "root")


@pytest.mark.parametrize("content", [b"nonsense", b""])
def test_no_archive(tmp_path, content):
    (tmp_path / "a.tar.xz").write_bytes(content)
    with pytest.raises(UserError, match="can't be unpacked"):
        import_archive(tmp_path / "a.tar.xz", tmp_path / "root")


def test_truncated_archive(folder, tmp_path, small_counts):
    path = packed(folder, tmp_path / "a.tar.xz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="can't be unpacked"):
        import_archive(path, tmp_path / "root")
    assert not (tmp_path / "root" / "carpet").exists()
