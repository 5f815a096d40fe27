"""Layouts: every public one, flat folders and tables, told apart, split by groups, and run."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import few_photographs, make
from miniatures import ANOMALOUS, MINIATURES, NORMAL, btad, draw, mvtec, several, visa
from PIL import Image

from texture_ad.data.datamodule import LayoutName
from texture_ad.data.importing import rows_of
from texture_ad.data.layouts import (
    LAYOUTS,
    Layout,
    Sample,
    check_groups,
    copies,
    fingerprint,
    pair_masks,
    scan,
    split_calibration,
    with_groups,
    with_test_images,
)
from texture_ad.errors import ParameterError, UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One data set in every layout."""
    root = tmp_path_factory.mktemp("layouts")
    return {name: build(root / name) for name, build in MINIATURES.items()}


def listing(name, folder):
    found = scan(folder, table=str(folder / "images.csv") if name == "table" else None)
    return with_test_images(found, 0.25, 0)


@pytest.mark.parametrize("name", MINIATURES)
def test_every_layout_is_told_by_itself_and_its_images_are_what_they_show(folders, name):
    found = listing(name, folders[name])
    assert found.name == name
    assert not any(sample.label for sample in found.train + found.calibration)
    assert (len(found.train), len(found.test)) == (NORMAL - 2, 2 + ANOMALOUS)
    assert len(found.calibration) == (2 if name == "mvtec2" else 0)
    assert len({(sample.kind, sample.name) for sample in found.test}) == len(found.test)
    for sample in found.samples:
        black = np.array(Image.open(sample.path)) == 0
        assert black.any() == bool(sample.label) == (sample.mask is not None) == (sample.kind != "good")
        assert sample.mask is None or (np.array(Image.open(sample.mask)).astype(bool) == black).all()


LEFT_OUT = {
    "mvtec2": {"test images without labels": 3},
    "visa": {"files": 1},
    "kolektorsdd2": {"anomalous training images": 1, "images without a label": 1},
}


@pytest.mark.parametrize("name", MINIATURES)
def test_what_a_layout_leaves_out_is_counted_by_its_reason(folders, name):
    left_out = listing(name, folders[name]).left_out
    assert {what: len(paths) for what, paths in left_out.items()} == LEFT_OUT.get(name, {})


def test_the_split_beside_the_categories_of_visa_says_which_images_test(tmp_path, monkeypatch):
    candle = visa(tmp_path / "candle")
    rows = ["object,split,label,image,mask", "pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,"]
    rows += [f"candle,{'test' if i in (1, 4) else 'train'},normal,candle/Data/Images/Normal/{i}.JPG," for i in range(8)]
    rows += [
        f"candle,test,anomaly,candle/Data/Images/Anomaly/{i}.png,candle/Data/Masks/Anomaly/{i}.png" for i in range(3)
    ]
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows))
    found = scan(candle)
    assert found.name == "visa" and not found.undivided and len(found.train) == 6
    assert [sample.path.name for sample in found.test if not sample.label] == ["1.JPG", "4.JPG"]
    assert sum(sample.mask is not None for sample in found.test) == 3
    (tmp_path / "other").mkdir()
    own = rows_of(found, candle)
    assert own == rows_of(scan(tmp_path / "other/../candle"), tmp_path / "other/../candle")
    assert (own[0]["path"], own[-1]["mask"]) == ("Data/Images/Normal/0.JPG", "Data/Masks/Anomaly/2.png")
    monkeypatch.chdir(candle)
    assert scan(Path()).train[0].path == Path("Data/Images/Normal/0.JPG") and len(scan(Path()).train) == 6
    with pytest.raises(UserError, match="has no rows of lamp"):
        scan(candle.rename(tmp_path / "lamp"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: several(root / "cats", 3), r"has no train/good \(mvtec\).* train/ok \(btad\)"),
        (lambda root: visa(root / "candle"), "candle in it has one of them: give that folder"),
        (lambda root: several(mvtec(root) / "OK", 1), r"is laid out as mvtec \(train/good\) and as flat "),
        (lambda root: (root / "train/ok").mkdir(parents=True), r"0 normal images for training; at least 2"),
        (lambda root: several(mvtec(root) / "test/OK", 1), "test/OK: is named as normal images"),
        (lambda root: several(root / "OK", 1), "1 normal images for training; at least 2"),
    ],
)
def test_what_is_not_told_by_itself_is_named(tmp_path, build, message):
    build(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        scan(tmp_path / "x")


@pytest.mark.parametrize("word", ["OK", "normal", "Defect-free"])
def test_another_word_may_stand_for_good(tmp_path, word):
    mvtec(tmp_path)
    expected = scan(tmp_path)
    for side in ("train", "test"):
        (tmp_path / side / "good").rename(tmp_path / side / word)
    found = scan(tmp_path)
    assert found.name == "mvtec" and not found.left_out
    told = [sorted((sample.label, sample.kind, sample.name) for sample in one.samples) for one in (found, expected)]
    assert told[0] == told[1]


def test_a_layout_that_is_given_settles_which(tmp_path):
    several(mvtec(tmp_path) / "OK", 5)
    assert scan(tmp_path, "mvtec").name == "mvtec"
    assert len(scan(tmp_path, "flat").train) == 5
    with pytest.raises(UserError, match=r"has no Data/Images/Normal; layout=visa takes .*, Data/Masks/Anomaly$"):
        scan(tmp_path, "visa")


@pytest.mark.parametrize(
    ("built", "given", "sign", "count"), [("mvtec", "mvtec2", "train/good", 5), ("mvtec2", "mvtec", "test_public", 5)]
)
def test_a_layout_that_overlooks_the_test_images_of_another_is_refused(folders, built, given, sign, count):
    with pytest.raises(
        ParameterError, match=rf"finds no test images in .*, where {built} \(.*{sign}\) finds {count}; "
    ):
        scan(folders[built], given)


def test_calibration_images_of_mvtec2_are_read_without_its_test_images(tmp_path):
    several(tmp_path / "train/good", 6)
    several(tmp_path / "validation/good", 2)
    found = scan(tmp_path, "mvtec2")
    assert (len(found.train), len(found.calibration), len(found.test)) == (6, 2, 0)


@pytest.mark.parametrize(
    ("normal", "anomalous", "masks"),
    [
        ("good", "defective", "ground_truth"),
        ("Normal", "Anomaly", "Labels"),
        ("defect free", "NOK", "gt"),
        ("iO", "niO", "x"),
    ],
)
def test_folders_are_known_by_the_names_people_give_them(tmp_path, normal, anomalous, masks):
    several(tmp_path / normal, 4)
    several(tmp_path / anomalous / "cut", 2, f"../../{masks}/cut/{{}}_mask.png")
    several(tmp_path / anomalous / "hole", 2, f"../../{masks}/hole/{{}}_mask.png")
    found = scan(tmp_path)
    assert (len(found.train), [sample.kind for sample in found.test]) == (4, ["cut", "cut", "hole", "hole"])
    pairs = [(s.mask.parent.name, s.mask.stem) for s in found.test if s.mask]
    expected = [] if masks == "x" else [(s.kind, f"{s.path.stem}_mask") for s in found.test]
    assert pairs == expected and len(found.left_out.get("files", [])) == (4 if masks == "x" else 0)


def test_places_are_folders_files_globs_and_lists_of_them(tmp_path):
    # As the public magnetic-tile set: masks of the same name beside the images, in another format.
    for kind in ("MT_Free", "MT_Crack", "MT_Fray"):
        several(tmp_path / kind / "Imgs", 4, "" if kind == "MT_Free" else "{}.png", ".jpg")
    found = scan(
        tmp_path, normal="MT_Free", anomalous=["MT_Crack/Imgs/*.jpg", "MT_Fray/**/[01].jpg"], masks="MT_*/*/*.png"
    )
    assert [sample.kind for sample in found.test] == ["MT_Crack"] * 4 + ["MT_Fray"] * 2
    assert all(sample.mask == sample.path.with_suffix(".png") for sample in found.test)
    assert [sample.name for sample in found.test] == [f"Imgs/{i}.jpg" for i in (0, 1, 2, 3, 0, 1)]
    assert [len(paths) for paths in found.left_out.values()] == [4]  # two images of MT_Fray with their masks
    alone = scan(tmp_path, normal=["MT_Free/Imgs/1.jpg", "MT_Free/Imgs/2.jpg", "MT_Free/Imgs/*.jpg"])
    assert len(alone.train) == 4
    again = scan(tmp_path, normal=["MT_Fray/../MT_Free", str(tmp_path / "MT_Free"), "MT_Crack/../*Free/*/*.jpg"])
    assert again == scan(tmp_path, normal="MT_Free") and alone.test == [] and not alone.undivided


def test_masks_beside_their_images_are_no_images(tmp_path):
    several(tmp_path / "OK", 3)
    draw(tmp_path / "OK/0_mask.png")
    several(tmp_path / "NG", 2, "{}_mask.png")
    for found in (scan(tmp_path), scan(tmp_path, anomalous="NG", masks="NG/*_mask.png")):
        assert [sample.path.name for sample in found.train] == ["0.png", "1.png", "2.png"]
        assert [sample.mask.name for sample in found.test] == ["0_mask.png", "1_mask.png"]


def test_places_and_rows_may_lie_outside_the_folder(tmp_path, monkeypatch):
    several(tmp_path / "here/OK", 2)
    several(tmp_path / "there/OK", 2)
    several(tmp_path / "there/NG", 1, "{}_mask.png")
    monkeypatch.chdir(tmp_path)
    found = scan(Path("here"), normal=["OK", "../there/NG/../OK"], anomalous=str(tmp_path / "there/NG"))
    assert [sample.name for sample in found.train] == [
        f"{place}/OK/{i}.png" for place in ("here", "there") for i in (0, 1)
    ]
    rows = ["OK/0.png,0", "OK/1.png,0", f"{tmp_path}/there/NG/0.png,1"]
    found = scan(Path("here"), table=str(write(tmp_path / "lists", *rows, head="path,label")))
    assert [sample.name for sample in found.samples] == ["here/OK/0.png", "here/OK/1.png", "there/NG/0.png"]


def test_the_names_of_layouts_are_those_that_a_run_takes():
    assert get_args(LayoutName) == ("auto", *LAYOUTS, "table")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal": "OKK"}, "normal=OKK: no such folder or file; it is looked for in"),
        ({"normal": "OK/*.txt"}, "normal=OK/*.txt: no such folder"),
        (
            {"normal": "OK", "anomalous": ["NG", "*/1.png"]},
            "1 files are given as normal images and as anomalous images: ",
        ),
        (
            {"normal": "OK", "anomalous": ["NG", "NG/../OK/1.png"]},
            "1 files are given as normal images and as anomalous",
        ),
        (
            {"normal": "OK", "anomalous": ["NG", "NG/../O*/1.png"]},
            "1 files are given as normal images and as anomalous",
        ),
        ({"normal": "OK", "anomalous": "NG", "masks": "*"}, "8 files are given as normal images and as masks: "),
        ({"anomalous": "NG", "layout": "mvtec"}, "anomalous=NG: is for the layout flat, not for mvtec"),
        ({"table": "x.csv", "normal": "OK"}, "normal=OK: is for the layout flat, not for table"),
        ({"table": "x.csv", "layout": "flat"}, "table=x.csv: is for the layout table, not for flat"),
        ({"layout": "table"}, "table=None: no file was given"),
    ],
)
def test_places_that_cannot_be_used_are_named(folders, options, message):
    with pytest.raises(UserError) as error:
        scan(folders["flat"], **options)
    assert message in str(error.value)


@pytest.mark.parametrize("places", [{}, {"normal": "OK"}])
def test_formats_that_cannot_be_read_are_named(tmp_path, places):
    (tmp_path / "OK").mkdir()
    (tmp_path / "OK/a.heic").write_bytes(b"?")
    with pytest.raises(UserError, match=r"formats that can't be read: \.heic"):
        scan(tmp_path, **places)


def test_masks_go_to_the_image_whose_folders_are_most_like_theirs():
    def paired(images, masks):
        return {str(i): str(m) for i, m in pair_masks(map(Path, images), map(Path, masks)).items()}

    assert paired(["n/a/1.png", "n/b/1.png"], ["m/b/1_GT.bmp", "m/a/1.png"]) == {
        "n/a/1.png": "m/a/1.png",
        "n/b/1.png": "m/b/1_GT.bmp",
    }
    assert paired(["n/a/1.png"], ["m/x/1.png", "m/y/1.png"]) == {}  # either could be meant
    assert paired(["n/a/1.png", "n/b/1.png"], ["m/b/1.png"]) == {"n/b/1.png": "m/b/1.png"}  # serves one alone
    assert paired(["n/a/1.png", "n/b/1.png"], ["m/1.png"]) == {}
    assert paired(["n/a/1_seg.png"], ["m/1_seg.png"]) == {"n/a/1_seg.png": "m/1_seg.png"}


def rolls(*counts, label=0):
    """Return samples of rolls, so many of each."""
    kind = "hole" if label else "good"
    return [
        Sample(Path(f"{kind}/roll{roll}_{i}.png"), label, kind)
        for roll, count in enumerate(counts)
        for i in range(count)
    ]


def sides(layout):
    """Return the groups on each side."""
    train, calibration = split_calibration(layout.train, 0.3, 1)
    return [{sample.group for sample in side} for side in (train, calibration, layout.test)]


@pytest.mark.parametrize("bad", [(), (0, 3, 0, 2), (1, 1, 1, 1, 1, 1, 1), (0, 0, 0, 0, 0, 0, 0, 4)])
def test_no_group_is_divided_and_no_image_lost(bad):
    good, anomalous = rolls(4, 9, 1, 6, 5, 2, 7), rolls(*bad, label=1)
    drawn = set()
    for seed in range(20):
        found = with_groups(Layout("flat", good, anomalous, undivided=True), r"roll\d+", Path())
        found = with_test_images(found, 0.2, seed)
        check_groups(found)
        train, calibration, test = sides(found)
        assert train and calibration and not (train & calibration or train & test or calibration & test)
        left_out = [path for paths in found.left_out.values() for path in paths]
        assert len(found.samples) + len(left_out) == len(good) + len(anomalous)
        assert all(path.name.split("_")[0] in train | calibration for path in left_out)
        assert sum(not sample.label for sample in found.test) >= round(0.2 * len(good))
        if any(bad):
            assert any(sample.label for sample in found.test)
        drawn.add(frozenset(test))
    assert len(drawn) > 1  # the seed chooses


def test_without_groups_the_split_is_a_plain_permutation():
    samples = rolls(11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5)).tolist()
    train, calibration = split_calibration(samples, 0.2, 5)
    assert calibration == [samples[i] for i in sorted(order[:2])] and train == [samples[i] for i in sorted(order[2:])]


def test_groups_that_cannot_be_kept_together_are_named():
    one_roll = Layout("flat", rolls(9), rolls(1, label=1), undivided=True)
    with pytest.raises(UserError, match="1 groups of normal images; at least 3"):
        with_test_images(with_groups(one_roll, "roll.", Path()), 0.2, 0)
    with pytest.raises(UserError, match="2 normal images; at least 3"):
        with_test_images(Layout("flat", rolls(2), rolls(1, label=1), undivided=True), 0.2, 0)
    with pytest.raises(
        ParameterError, match=r"group=lot\\d: is not found in the names of 10 images: good/roll0_0.png, "
    ):
        with_groups(one_roll, r"lot\d", Path())
    with pytest.raises(ParameterError, match=r"group=\(: no regular expression"):
        with_groups(one_roll, "(", Path())
    divided = with_groups(Layout("mvtec", rolls(2, 2), rolls(0, 1, label=1)), "(roll.)_", Path())
    with pytest.raises(
        UserError, match="the group 'roll1' has training and test images, such as .*roll1_0.png and hole"
    ):
        check_groups(divided)


def write(folder, *rows, head="path,label,mask,split,group"):
    folder.mkdir(exist_ok=True)
    path = folder / "images.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def shots(tmp_path):
    several(tmp_path / "shots", 8)
    several(tmp_path / "bad", 2, "m{}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("path,lable", "shots/0.png,0", "line 1: unknown column 'lable'; did you mean label. expected path, label"),
        ("path,label,label", "shots/0.png,0,0", "line 1: two columns 'label'"),
        ("path,mask", "shots/0.png,", "line 1: has no column 'label'"),
        ("path,label", "", "has no rows"),
        ("path,label", "shots/0.png", "line 2: 1 values, expected 2"),
        ("path,label", "shots/9.png,0", "line 2: no such file "),
        ("path,label", ",0", "line 2: has no path"),
        ("path,label", "shots/0.png,", "line 2: has no label"),
        ("path,label", "images.csv,0", "is of no format that can be read"),
        (
            "path,label",
            "shots/0.png,0\nshots/1.png,0\nbad/../shots/0.png,0",
            "line 4: .*0.png stands in line 2 already",
        ),
        ("path,label", "shots/0.png,../x", "label=../x: expected 0, 1"),
        ("path,label,mask", "bad/0.png,1,bad/m7.png", "line 2: no such mask "),
        ("path,label,split", "shots/0.png,0,train\nshots/1.png,0,", "line 3: split=nothing: expected train"),
        ("path,label,split", "shots/0.png,0,left\nx.png,0,", r"line 2: split=left: .* \(2 rows can't be used\)"),
        ("path,label", 'shots/0.png,"0', "line 2: no row of a table"),
    ],
)
def test_rows_that_cannot_be_used_are_named_by_their_line(shots, head, row, message):
    with pytest.raises(UserError, match=message) as error:
        scan(shots, table=str(write(shots, row, head=head)))
    assert str(error.value).startswith(f"{shots / 'images.csv'}: ")


def test_files_that_are_no_tables_are_named(shots):
    for content in (b"", b"\xff\xfe\x00", None):
        path = shots / "images.csv"
        path.write_bytes(content) if content is not None else path.unlink()
        with pytest.raises(UserError, match=r"images.csv: "):
            scan(shots, table=str(path))


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_table_as_a_spreadsheet_writes_it(shots, separator):
    rows = [f"shots/{i}.png,OK,,roll{i % 4}" for i in range(8)] + [
        "bad/0.png,cut,bad/m0.png,roll9",
        "bad/1.png,1,,roll9",
    ]
    path = write(
        shots, *(row.replace(",", separator) for row in rows), head=separator.join(["Path", "Label ", "mask", "group"])
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = scan(shots, table=str(path))
    assert found.undivided and len(found.train) == 8
    assert [(s.kind, s.mask and s.mask.name, s.group) for s in found.test] == [
        ("cut", "m0.png", "roll9"),
        ("anomalous", None, "roll9"),
    ]
    assert {what: [path.name for path in paths] for what, paths in found.left_out.items()} == {"files": ["m1.png"]}
    train, calibration, test = sides(with_test_images(found, 0.2, 3))
    assert len(train | calibration | test) == 5 and not (train & calibration or train & test or calibration & test)
    with pytest.raises(ParameterError, match="the table has a column group already"):
        with_groups(found, "shots", shots)


def test_a_table_that_divides_its_images(shots):
    sides = ["train"] * 4 + ["Validation"] * 2 + ["test"] * 2
    rows = [f"shots/{i}.png,0,,{side}" for i, side in enumerate(sides)] + ["bad/0.png,1,,train", "bad/1.png,1,,test"]
    found = scan(shots, table=str(write(shots, *rows, head="path,label,mask,split")))
    assert [len(side) for side in (found.train, found.calibration, found.test)] == [4, 2, 3]
    assert [path.name for path in found.left_out["anomalous training images"]] == ["0.png"]
    rows[0] = "shots/0.png,0,bad/m0.png,train"
    masked = scan(shots, table=str(write(shots, *rows, head="path,label,mask,split")))
    assert [path.name for path in masked.left_out["masks of normal images"]] == ["m0.png"]
    rows[0] = "shots/0.png,0,,train"
    before = fingerprint(found, shots)
    for changed in ("shots/3.png,0,,test", "shots/3.png,0,,calibration"):
        rows[3] = changed
        moved = scan(shots, table=str(write(shots, *rows, head="path,label,mask,split")))
        assert len(moved.samples) == 9 and fingerprint(moved, shots) != before


def module(folder, *overrides):
    data = make("data", ["data=folder", *overrides], root=str(folder), size=32)
    data.setup()
    return data


def test_one_training_image_is_enough_beside_calibration_images(folders, tmp_path):
    folder = shutil.copytree(folders["mvtec2"], tmp_path / "can")
    for path in sorted((folder / "train/good").iterdir())[1:]:
        path.unlink()
    assert len(module(folder).train_samples) == 1
    next((folder / "train/good").iterdir()).rename(folder / "train/good/a.raw")
    with pytest.raises(
        UserError, match=r"0 normal images for training; at least 1 are needed; .* can't be read: \.raw"
    ):
        scan(folder)


def test_calibration_images_of_the_layout_are_used_and_copies_of_them_told(folders, tmp_path):
    folder = shutil.copytree(folders["mvtec2"], tmp_path / "can")
    shutil.copy(folder / "validation/good/1.png", folder / "test_public/good/copy.png")
    data = module(folder)
    assert {sample.path.parent.parent.name for sample in data.calibration_samples} == {"validation"}
    assert len(data.train_samples) == 6
    found = copies(sample.path for sample in data.layout.samples)
    assert [[path.name for path in group] for group in found] == [["1.png", "copy.png"]]
    assert data.warnings == [
        f"3 test images without labels of {folder} are used for nothing: "
        + ", ".join(["test_private/0.png", "test_private/1.png", "test_private_mixed/0.png"])
    ]


def test_groups_and_shares_reach_the_split(tmp_path):
    for roll in range(5):
        several(tmp_path / f"OK/roll{roll}", 4)
    several(tmp_path / "NG/roll3", 2, "../../MASK/{}.png")
    data = module(tmp_path, "data.group='(roll.)/'", "data.test_fraction=0.3", "data.calibration_fraction=0.4")
    parts = [data.train_samples, data.calibration_samples, data.test_samples]
    groups = [{sample.group for sample in part} for part in parts]
    assert [len(part) for part in parts] == [4, 8, 10] and "roll3" in groups[2]
    assert sum(len(group) for group in groups) == 5 == len(set().union(*groups))


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        ("auto", {"root": None, "table": "x.csv"}, "table=x.csv: is for the source folder, not for auto"),
        ("folder", {"root": None}, "root=None: no folder was given"),
        ("folder", {"layout": "mvtek"}, "layout=mvtek: expected one of auto, mvtec"),
        ("mvtec", {"category": "flat", "layout": "table"}, "layout=table: is for the source folder"),
        ("mvtec", {"category": "flat", "normal": "OK"}, "normal=OK: is for the source folder"),
    ],
)
def test_parameters_that_do_not_fit_are_named(folders, choice, options, message):
    with pytest.raises(ParameterError) as error:
        make("data", [f"data={choice}"], **({"root": str(folders["flat"].parent)} | options))
    assert message in str(error.value)


def test_a_data_set_of_categories_has_its_own_name(folders, tmp_path):
    root = str(folders["visa"].parent)
    names = [make("data", root=root, category=name).source_name for name in ("mvtec2", "visa", "flat")]
    assert names == ["MVTec AD 2 mvtec2", "VisA visa", "folder flat"]
    for name, known in (("02", "BTAD 02"), ("rug", "folder rug")):
        btad(tmp_path / name)
        assert make("data", root=str(tmp_path), category=name).source_name == known
    found = make("data", ["data=folder"], table=str(folders["table"] / "images.csv"))
    assert (found.folder, found.source_name) == (folders["table"], "folder table")


def test_a_category_of_the_source_folder_is_the_folder_in_a_root_without_a_layout_and_else_a_name(tmp_path):
    mvtec(tmp_path / "rug")
    mvtec(tmp_path / "mat")
    chosen = {"root": str(tmp_path), "category": "rug"}
    found = make("data", ["data=folder"], **chosen)
    found.setup()
    assert (found.folder, found.source_name, found.warnings) == (tmp_path / "rug", "folder rug", [])
    named = make("data", ["data=folder"], root=str(tmp_path), category="rug", normal="mat/train")
    assert (named.folder, named.source_name) == (tmp_path, "folder rug")
    with pytest.raises(ParameterError, match="has no train/good"):
        make("data", ["data=folder"], root=str(tmp_path), category="Rug")
    several(tmp_path / "OK", 5)
    found = make("data", ["data=folder"], **chosen)
    found.setup()
    assert found.folder == tmp_path and len(found.layout.train) == 5
    assert (
        f"all of {tmp_path} is read, and data.category=rug is a name for it; to read its folder of that name alone, "
        f"give data.root={tmp_path / 'rug'}"
    ) in found.warnings


def run(command, folder, *arguments):
    """Run the cheapest method in this process."""
    small = ["data.size=32", "method=padim", "backbone=resnet18", "backbone.weights=none", "backbone.layers=[layer1]"]
    quick = ["logger=none", "pictures=false", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    return command("run", f"run_dir={folder}", *small, *quick, *arguments)


@pytest.mark.parametrize("name", [name for name in MINIATURES if name != "mvtec"])  # which most other tests run in
def test_a_run_in_every_layout(folders, tmp_path, command, name):
    where = f"data.table={folders[name]}/images.csv" if name == "table" else f"data.root={folders[name]}"
    code, out, err = run(command, tmp_path / "run", "data=folder", where)
    assert code == 0, err
    assert f"data     folder {name}, layout {name}: " in out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["anomalous_images"] == ANOMALOUS and metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.8
    scores = (tmp_path / "run/scores.csv").read_text().splitlines()
    assert len(scores) == 1 + metrics["normal_images"] + ANOMALOUS
    card = (tmp_path / "run/data_card.md").read_text()
    assert ("The training images calibrate as well" in card) == (name != "mvtec2")
    assert ("keeps for validation" in card) == (name == "mvtec2")
    assert ("were drawn for testing" in card) == (name in ("visa", "flat"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["data.root={}"], "data.category=carpet: {} is itself the folder of one texture; add data=folder"),
        (["data=folder", "data.root={}/.."], "data.layout=auto: {}/.. has no train/good (mvtec), "),
        (
            ["data.table={}/images.csv"],
            "data.table={}/images.csv: is for the source folder, not for auto; add data=folder",
        ),
        (["data=folder", "data.root={}", "data.group=^r{{1,2}}(\\d+)"], "data.group=^r{{1,2}}(\\d+): is not found in"),
    ],
)
def test_a_command_that_does_not_fit_gets_one_line(folders, tmp_path, command, arguments, line):
    here = folders["flat"]
    code, _, err = run(command, tmp_path / "run", *(argument.format(here) for argument in arguments))
    (told,) = err.splitlines()
    assert code == 2 and line.format(here) in told, told


def test_masks_beside_the_images_of_a_kind_are_no_images(tmp_path):
    root = few_photographs(tmp_path / "rug")
    for mask in sorted((root / "ground_truth" / "hole").iterdir()):
        mask.rename(root / "test" / "hole" / f"{mask.stem.removesuffix('_mask')}_mask.png")
    (root / "ground_truth" / "hole").rmdir()
    (root / "ground_truth").rmdir()
    anomalous = [sample for sample in scan(root).test if sample.label]
    assert len(anomalous) == 4 and all(s.mask is not None and s.mask.parent == s.path.parent for s in anomalous)
