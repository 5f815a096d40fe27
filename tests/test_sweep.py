"""Sweeps by the real command line: folders, failures, repetition, kills, launchers; several processes as one run."""

import json
import os
import re
import shutil
import time
from statistics import fmean, stdev
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from forked import Forked, run_module
from helpers import arguments, environment, printed_random, read_rows, repeatable
from joblib.externals.loky import get_reusable_executor
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from scipy.stats import rankdata

from texture_ad.cli.entry import CONF
from texture_ad.cli.naming import data_name, job_name, slug, sweep_dir, swept
from texture_ad.cli.sweep import (
    _mixed,
    best_setting,
    compare,
    distinct,
    finished,
    means_over_textures,
    read_jobs,
    write_comparison,
)
from texture_ad.data.batches import SharedBatches
from texture_ad.errors import UserError
from texture_ad.evaluation.spread import mean_ranks
from texture_ad.training.pruning import MedianPruning
from texture_ad.training.resources import take_share

KILLS = 8 if os.environ.get("TEXTURE_AD_LONG") else 1
QUICK = (
    "pictures=false",
    "logger=none",
    "trainer.max_epochs=1",
    "detection.epochs=1",
    "cutpaste=none",
    "cross_fit=false",
)


def call(data, folder, *more, cache, **env):
    env = environment(TEXTURE_AD_CACHE=str(cache), **env)
    return run_module("texture_ad.run", *arguments(data, folder, *QUICK, *more), env=env)


def digits(folder):
    """The sweep's tables without what is measured anew each time, and every job's scores."""
    tables = [[repeatable(row) for row in read_rows(folder / name)] for name in ("jobs.csv", "comparison.csv")]
    return tables, {p.parent.name: p.read_text() for p in folder.glob("*/scores.csv")}


SWEEP = ("+ablation=sparsity", "dictionary.nonzeros=1,500,3", "seed=0,1", "-m")


@pytest.fixture(scope="module")
def sweep(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    cache = tmp_path_factory.mktemp("cache")
    start = time.monotonic()
    return folder, cache, call(data, folder, *SWEEP, cache=cache), time.monotonic() - start


def test_a_failed_job_is_told_and_leaves_the_others_whole(sweep):
    folder, _, done, _ = sweep
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for seed in (0, 1):
        told = f"failed   {folder}/dictionary.nonzeros=500,seed={seed}: dictionary.nonzeros=500: expected"
        assert told in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 6 jobs failed; the same command")
    whole = {p.parent.name for p in folder.glob("*/metrics.json")}
    assert whole == {f"dictionary.nonzeros={n},seed={s}" for n in (1, 3) for s in (0, 1)}
    assert all((folder / name / "detector.pt").is_file() for name in whole)


def test_the_comparison_is_that_of_the_jobs_and_names_its_data(sweep):
    folder, _, done, _ = sweep
    jobs = read_rows(folder / "jobs.csv")
    table = read_rows(folder / "comparison.csv")
    assert len(jobs) == 6 and [row["dictionary.nonzeros"] for row in table] == ["1", "3"]
    for row in table:
        found = [
            json.loads((folder / f"dictionary.nonzeros={row['dictionary.nonzeros']},seed={s}/metrics.json").read_text())
            for s in (0, 1)
        ]
        for name in ("image_auroc", "fit_seconds", "peak_memory_mb", "test_seconds_per_image"):
            values = [metrics[name] for metrics in found]
            assert float(row[f"{name}_mean"]) == fmean(values) > 0 and float(row[f"{name}_std"]) == stdev(values)
    for text in ((folder / "comparison.md").read_text(), (folder / "comparison.svg").read_text(), done.stdout):
        assert "folder carpet" in text
    assert {row["data"] for row in table} == {"folder carpet"}
    assert "Failed: dictionary.nonzeros=500,seed=0" in (folder / "comparison.md").read_text()
    assert (folder / "comparison.png").is_file() and not list(folder.rglob("*.partial"))
    report = (folder / "report.html").read_text()
    assert "Failed: dictionary.nonzeros=500,seed=0" in report and "data:image/webp" in report
    for link in re.findall('href="([^"]+)"', report):
        assert (folder / unquote(link)).is_file()


def test_one_stage_1_a_seed_and_the_digits_of_a_run_of_its_own(sweep, data, tmp_path):
    folder, cache, *_ = sweep
    assert len(list(cache.glob("shared/stage1-*.pt"))) == 2
    assert len(list(folder.glob("*/stage1/best.ckpt"))) == 2
    done = call(data, tmp_path / "alone", "dictionary.nonzeros=3", "seed=1", cache=cache)
    assert done.returncode == 0, done.stderr
    shared = folder / "dictionary.nonzeros=3,seed=1"
    assert (tmp_path / "alone/scores.csv").read_text() == (shared / "scores.csv").read_text()
    alone, shared = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path / "alone", shared))
    assert repeatable(alone) == repeatable(shared)


def test_the_same_command_does_only_what_is_missing(sweep, data):
    folder, cache, *_ = sweep
    before = digits(folder)
    missing = folder / "dictionary.nonzeros=1,seed=1"
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/metrics.json") if p.parent != missing}
    (missing / "metrics.json").unlink()
    done = call(data, folder, *SWEEP, cache=cache)
    assert done.returncode == 2
    assert done.stdout.count("skipped  ") == 3 and f"skipped  {missing}" not in done.stdout
    assert "4 of 6 jobs finished, 3 of them before" in done.stdout
    assert kept == {p: p.stat().st_mtime_ns for p in kept} and digits(folder) == before


def test_a_job_of_other_settings_is_not_taken_for_finished(sweep):
    folder = sweep[0] / "dictionary.nonzeros=1,seed=0"
    config = OmegaConf.load(folder / "config.yaml")
    config.pictures = True
    assert finished(folder, config) and not finished(sweep[0] / "dictionary.nonzeros=500,seed=0", config)
    config.flow.blocks = 3
    with pytest.raises(UserError, match="flow.blocks=2, not 3"):
        finished(folder, config)


def test_a_killed_sweep_resumes_and_ends_with_the_same_table(sweep, data, tmp_path):
    whole, _, _, seconds = sweep
    rng = printed_random()
    for kill in range(KILLS):
        folder = tmp_path / f"killed{kill}"
        cache = tmp_path / f"cache{kill}"
        env = environment(TEXTURE_AD_CACHE=str(cache))
        process = Forked("texture_ad.run", *arguments(data, folder, *QUICK, *SWEEP), env=env)
        time.sleep(seconds * (0.3 + 0.6 * rng.random()))
        process.kill()
        process.wait()
        done = call(data, folder, *SWEEP, cache=cache)
        assert done.returncode == 2 and "4 of 6 jobs finished" in done.stdout, done.stderr
        assert digits(folder) == digits(whole)


def launch(data, folder, launcher, *more):
    """A sweep by this launcher, its jobs by `nonzeros`; the number of threads is left to it."""
    env = environment(TEXTURE_AD_CACHE=str(folder / "cache"))
    del env["OMP_NUM_THREADS"]
    call = arguments(data, folder / "sweep", *QUICK, f"hydra/launcher={launcher}", *more, "-m")
    done = run_module("texture_ad.run", *call, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done, {row["dictionary.nonzeros"]: row for row in read_rows(folder / "sweep/jobs.csv")}


@pytest.fixture(scope="module")
def optuna():
    return pytest.importorskip("optuna", reason='pip install ".[search]"')


def test_a_search_of_six_trials_in_two_processes(data, tmp_path, command, monkeypatch, optuna):
    """By the real plugins; its jobs share the cores, and stage 1 even where they start at the same time."""
    monkeypatch.setenv("TEXTURE_AD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    tiny = ("data.size=32", "backbone.layers=[layer1]", "flow.blocks=1")
    options = ("+search=weights", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
    folder = tmp_path / "search"
    call = arguments(data, folder, *QUICK, *tiny, *options, "hydra.sweeper.n_trials=6", "-m")
    code, out, errors = command("run", *call)
    get_reusable_executor().shutdown()
    assert code == 0, errors
    jobs = read_rows(folder / "jobs.csv")
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [job["threads"] for job in jobs] == [str(share)] * 6
    assert len(list(tmp_path.glob("cache/shared/stage1-*.pt"))) == 1
    assert len(list(folder.glob("*/stage1/best.ckpt"))) == 1

    study = optuna.load_study("weights", f"sqlite:///{folder}/study.db")
    found = {job["folder"]: json.loads((folder / job["folder"] / "metrics.json").read_text()) for job in jobs}
    tried = {",".join(f"{k}={t.params[k]}" for k in options_of("weights")): t.value for t in study.trials}
    assert tried == {name: metrics["synthetic_auroc"] for name, metrics in found.items()}
    assert study.best_value == max(tried.values()) and study.direction.name == "MAXIMIZE"
    for told in ((folder / "comparison.md").read_text(), (folder / "report.html").read_text()):
        assert "Best: score." in told and "no test metric chose it" in told

    # The same command again has nothing to do.
    code, out, errors = command("run", *call)
    assert code == 0 and "search   6 of 6 trials" in out and len(study.trials) == 6, errors


def options_of(search):
    return OmegaConf.load(f"{CONF}/search/{search}.yaml").hydra.sweeper.params


def test_a_search_that_was_killed_tries_first_what_it_was_at(tmp_path, optuna):
    from texture_ad.cli.search import resume

    storage = f"sqlite:///{tmp_path}/study.db"
    sweeper = OmegaConf.create(
        {"study_name": "s", "storage": storage, "direction": "maximize", "n_trials": 5, "sampler": {"seed": 0}}
    )
    resume(sweeper)
    assert sweeper.n_trials == 5 and sweeper.sampler.seed == 0  # nothing was before
    study = optuna.create_study(storage, optuna.samplers.TPESampler(seed=0), study_name="s", direction="maximize")
    drawn = []
    for value in (0.5, 0.7, None, "killed"):
        trial = study.ask()
        drawn.append(trial.suggest_float("x", 0, 1))
        if value != "killed":
            study.tell(trial, value, optuna.trial.TrialState.COMPLETE if value else optuna.trial.TrialState.FAIL)
    resume(sweeper)
    assert sweeper.n_trials == 3
    again = optuna.load_study("s", storage, optuna.samplers.TPESampler(seed=sweeper.sampler.seed))
    first, second = (again.ask().suggest_float("x", 0, 1) for _ in range(2))
    assert first == drawn[3] and second not in drawn


def test_a_trial_that_lags_behind_is_pruned_and_still_measured(data, tmp_path, command, monkeypatch, optuna):
    monkeypatch.setenv("TEXTURE_AD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "search"
    folder.mkdir()
    study = optuna.create_study(f"sqlite:///{folder}/study.db", study_name="flow", direction="maximize")
    rates = (0.01, 1e-9, 0.02)
    for rate in rates:
        study.enqueue_trial({"density.lr": rate})
    more = ("trainer.max_epochs=6", "density.patience=9", "density.epoch_steps=10", "pictures=false", "flow.blocks=2")
    more += ("backbone.scale=unit",)  # by which the two higher rates learn alike
    search = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1")
    search += (f"hydra.sweeper.storage=sqlite:///{folder}/study.db", "hydra.sweeper.study_name=flow")
    search += (f"density.lr=choice({','.join(map(str, rates))})", "hydra.sweeper.n_trials=3", "cache=always")
    pruning = ("pruning=median", "pruning.startup_trials=1", "pruning.warmup_epochs=2")
    code, out, errors = command("run", *arguments(data, folder, *QUICK, *more, *search, *pruning, "-m"))
    assert code == 0, errors
    trials = {trial.params["density.lr"]: trial for trial in study.trials}
    found = {rate: json.loads((folder / f"density.lr={rate}/metrics.json").read_text()) for rate in rates}
    assert [found[rate].get("pruned_epoch") for rate in rates] == [None, 3, None]
    assert [len(trials[rate].intermediate_values) for rate in rates] == [6, 3, 6]
    assert "pruned   after 3 epochs: val/nll lags behind the other trials'" in out
    for rate in rates:  # a pruned trial counts by its own objective
        assert trials[rate].value == found[rate]["synthetic_auroc"] and trials[rate].state.name == "COMPLETE"
        assert max(trials[rate].intermediate_values.values()) == pytest.approx(-found[rate]["val_nll_stage1"])
    assert "1 of 3 trials was pruned" in (folder / "comparison.md").read_text()
    assert not list(tmp_path.glob("cache/shared/stage1-*"))  # another run would take a pruned one for a full one

    # Stopped in stage 2, it stays pruned.
    job = folder / "density.lr=1e-09"
    checkpoint = torch.load(job / "stage1/last.ckpt", weights_only=True)
    resumed = MedianPruning(SimpleNamespace(study=study), "val/nll", "min", startup_trials=1, warmup_epochs=2)
    resumed.load_state_dict(checkpoint["callbacks"]["MedianPruning"])
    trainer = SimpleNamespace(should_stop=False)
    resumed.on_train_start(trainer, None)
    assert checkpoint["epoch"] == 2 and resumed.pruned_epoch == 3 and trainer.should_stop


def test_pruning_outside_a_search_is_refused(data, tmp_path, command):
    for more in ((), ("seed=0,1", "-m")):
        code, _, errors = command("run", *arguments(data, tmp_path, *QUICK, "pruning=median", *more))
        assert code == 2 and "pruning: cuts trials of a search of method=fusion short" in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["hydra/sweeper=optuna", "seed=range(0,9)"], "hydra.sweeper.direction=minimize: expected maximize"),
        (["+search=weights", "seed=range(0,9)"], "seed: nothing that a search can choose"),
        (["+search=weights", "data.category=choice(a,b)"], "data.category: nothing that"),
        (["+search=weights", "data.root=/nowhere", "hydra.sweeper.n_trials=1"], "no trial of the search has finished"),
        (["+search=weights", "pruning=median", "hydra.sweeper.storage=null"], "trials share nothing to compare"),
        (["hydra/launcher=submitit_ray"], 'in a checkout, pip install ".[sweep]"'),
    ],
)
def test_a_search_that_cant_work_says_why(data, tmp_path, command, more, message, optuna):
    code, _, errors = command("run", *arguments(data, tmp_path, *QUICK, *more, "-m"))
    assert code == 2 and message in errors and "Traceback" not in errors


def test_submitit_takes_the_cores_it_is_given_and_tells_failures(data, tmp_path):
    done, jobs = launch(data, tmp_path, "submitit_local", "dictionary.nonzeros=1,500")
    assert done.returncode == 2
    assert f"failed   {tmp_path}/sweep/dictionary.nonzeros=500: dictionary.nonzeros=500: expected" in done.stderr
    assert [jobs[n]["threads"] for n in ("1", "500")] == ["1", ""]


@pytest.mark.parametrize(
    ("worker", "visible", "expected"),
    [
        ("LokyProcess-1", "4,7", "4"),
        ("LokyProcess-2", "4,7", "7"),
        ("LokyProcess-3", "4,7", "4"),
        ("LokyProcess-2", "7", "7"),
        ("MainProcess", "4,7", "4,7"),
    ],
)
def test_joblibs_processes_take_the_gpus_in_turn(monkeypatch, worker, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("multiprocessing.current_process", lambda: SimpleNamespace(name=worker))
    take_share("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_job_whose_logger_fails_at_the_end_is_not_finished(data, tmp_path, command, monkeypatch):
    log_metrics = CSVLogger.log_metrics

    def failing(self, metrics, step=None):
        if any(key.startswith("test/") for key in metrics):
            raise ConnectionError("the server is gone")
        log_metrics(self, metrics, step)

    sweep = ["-m", *arguments(data, tmp_path / "sweep", *QUICK, "logger=csv", "seed=0,1", "method=padim")]
    with monkeypatch.context() as patched:
        patched.setattr(CSVLogger, "log_metrics", failing)
        code, _, errors = command("run", *sweep)
        assert code == 2 and errors.count("the server is gone") >= 2
    code, out, errors = command("run", *sweep)
    assert code == 0 and "skipped" not in out, errors
    assert not list((tmp_path / "sweep").glob("*/error.txt"))
    code, out, _ = command("run", *sweep)
    assert code == 0 and out.count("finished before") == 2


def test_a_job_that_finished_on_other_images_is_not_taken_for_today_s(data, tmp_path, command):
    own = shutil.copytree(data, tmp_path / "own")
    sweep = ["-m", *arguments(own, tmp_path / "sweep", *QUICK, "seed=0,1", "method=padim")]
    assert command("run", *sweep)[0] == 0
    code, out, _ = command("run", *sweep)
    assert code == 0 and out.count("finished before") == 2
    image = next((own / "test").rglob("*.png"))
    image.rename(tmp_path / "away.png")
    for _ in range(2):
        code, out, errors = command("run", *sweep)
        assert code == 2 and "finished before" not in out and errors.count("its images changed since") >= 2
    code, _, errors = command("run", *arguments(own, tmp_path / "sweep/seed=0", *QUICK, "seed=0", "method=padim"))
    assert code == 2 and "its images changed since" in errors
    (tmp_path / "away.png").rename(image)
    code, out, _ = command("run", *sweep)
    assert code == 0 and out.count("finished before") == 2


# --- several processes as one run -----------------------------------------------------------------------


def test_two_processes_end_as_one_does(data, tmp_path):
    for folder, more in (("one", ()), ("two", ("trainer.devices=2", "trainer.strategy=ddp"))):
        done = call(
            data,
            tmp_path / folder,
            *more,
            "trainer.max_epochs=2",
            "data.batch_size=4",
            "data.calibration_fraction=0.3",
            "data.eval_batch_size=4",  # 10 and 11 images: a last batch of one would join another of two processes
            "cross_fit=true",
            cache=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        for line, count in (("run      ", 1), ("stage 1", 5), ("stage 2", 5), ("fold ", 4), ("detector ", 1)):
            assert sum(text.startswith(line) for text in done.stdout.splitlines()) == count, done.stdout
    one, two = (read_rows(tmp_path / name / "scores.csv") for name in ("one", "two"))
    assert [row["path"] for row in one] == [row["path"] for row in two]
    assert [float(row["score"]) for row in two] == pytest.approx([float(row["score"]) for row in one], abs=0.002)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    same = [k for k, v in repeatable(one).items() if isinstance(v, float)]
    assert {k: two[k] for k in same} == pytest.approx({k: one[k] for k in same}, abs=0.002)
    names = [{str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")} for name in ("one", "two")]
    assert names[0] - names[1] == {
        f"folds/{number}.pt" for number in (1, 2, 3, 4)
    }  # of which each process had but a share
    assert names[1] <= names[0]
    # One whitening and one dictionary, of all processes' patches.
    one, two = (torch.load(tmp_path / name / "stage2/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["spams"]["iter"] == two["spams"]["iter"]
    for key in ("mean", "center", "matrix"):
        mine, other = (found["state_dict"][f"detector.whitening.{key}"] for found in (one, two))
        assert torch.allclose(mine, other, atol=1e-3 * float(mine.abs().max())), key
    assert (
        one["state_dict"]["detector.dictionary.atoms"] - two["state_dict"]["detector.dictionary.atoms"]
    ).abs().max() < 0.01


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [4, 7, 8, 9, 21])
@pytest.mark.parametrize("batch", [4, 5, 8])
def test_shared_batches_lose_and_repeat_nothing(monkeypatch, processes, count, batch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares = SharedBatches(range(count), batch)
        parts.append(list(shares))
        assert len(shares) == len(parts[-1]) and all(parts[-1])
    # Joined in the processes' order they are the batches of one process.
    joined = [sum(shares, []) for shares in zip(*parts, strict=True)]
    assert sum(joined, []) == list(range(count))
    assert all(len(b) == batch for b in joined[:-1]) and max(map(len, joined)) < batch + processes


def test_more_processes_than_images_in_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.raises(UserError, match="devices=4: more than"):
        len(SharedBatches(range(20), 2))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: expected auto or ddp"),
        (["-m"], "trainer.devices=2: a sweep's job takes one device"),
    ],
)
def test_other_ways_to_several_processes_are_refused(data, tmp_path, more, message, command):
    code, _, errors = command("run", *arguments(data, tmp_path / "run", *QUICK, "trainer.devices=2", *more))
    assert code == 2 and message in errors and "Traceback" not in errors


# --- names and tables -----------------------------------------------------------------------------------


def test_a_sweeps_folder_depends_on_what_is_swept_alone():
    command = ["+experiment=wood", "seed=0,1", "flow.blocks=2,4"]
    name = sweep_dir(command, "runs/now")
    assert name == sweep_dir(
        [*reversed(command), "logger=wandb", "logger.wandb.entity=T", "pictures=false", "cache=never"], "runs/later"
    )
    assert name != sweep_dir(["+experiment=wood", "seed=0,1,2", "flow.blocks=2,4"], "runs/now")
    assert sweep_dir([*command, "run_dir=mine"], "mine") == "mine"


def test_a_jobs_folder_is_named_by_the_swept_values():
    sweep = ["+experiment=wood", "data.size=64", "seed=0,1", "flow.blocks=range(1,3)", "data.category='a b'"]
    job = ["+experiment=wood", "data.size=64", "seed=1", "flow.blocks=2", "data.category='a b'"]
    assert swept(sweep, job) == ["seed=1", "flow.blocks=2"] and job_name(sweep, job) == "seed=1,flow.blocks=2"
    assert job_name(["seed=1"], ["seed=1"]) == "run"
    assert swept(["+ablation=sparsity"], ["dictionary.nonzeros=2", "+ablation=sparsity"]) == ["dictionary.nonzeros=2"]
    twice = [job_name(["a=1", "a=1,2"], ["a=1", f"a={value}"]) for value in (1, 2)]
    assert len(set(twice)) == 2  # given both ways, a key is swept


def test_names_are_those_of_one_file():
    assert slug("a/../b c\n$x") == "a_.._b_c_x" and slug("..") == "_"
    long = [slug("x" * 300 + end) for end in "ab"]
    assert long[0] != long[1] and all(len(name) <= 100 for name in long)
    assert data_name("auto", "/mvtec", "wood") == "mvtec-wood" and data_name("auto", None, "wood") == "embedded-wood"


def job(folder, error=None, data="folder a", **values):
    score = values.pop("score", None)
    metrics = {} if error else {"data_source": data, "data_fingerprint": data, "image_auroc": score, "fit_seconds": 2.0}
    metrics |= {} if error else {"seed": values.get("seed", 0)}
    swept = {k: str(v) for k, v in values.items()}
    found = {"folder": folder / "x", "swept": swept, "metrics": metrics, "finished": 0, "error": error}
    return found | {"setting": frozenset(f"{key}={value}" for key, value in swept.items() if key != "seed")}


def test_a_job_that_was_refused_has_no_metrics_of_the_run_before_it(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"seed={seed}"
        (folder / "hydra").mkdir(parents=True)
        (folder / "hydra/overrides.yaml").write_text(f"[seed={seed}]")
        (folder / "metrics.json").write_text('{"image_auroc": 1.0}')
    (tmp_path / "seed=1/error.txt").write_text("holds a run with other settings\n")
    assert [one["metrics"] for one in read_jobs(tmp_path, ["seed=0,1"])] == [{"image_auroc": 1.0}, {}]


def test_images_are_compared_among_jobs_that_should_have_the_same(tmp_path):
    jobs = [job(tmp_path, seed=seed, score=1.0) for seed in (0, 0, 1)]
    assert not _mixed(jobs)
    jobs[2]["metrics"]["data_fingerprint"] = "other"
    assert _mixed(jobs) == {"images of folder a": ["folder a", "other"]}
    for one in jobs:
        one["metrics"]["test_images_drawn"] = True  # by the seed
    assert not _mixed(jobs)
    jobs[1]["metrics"]["data_fingerprint"] = "changed"
    assert _mixed(jobs) == {"images of folder a": ["folder a", "changed"]}
    jobs[1]["swept"]["data.anomalous"] = "[NG]"
    assert not _mixed(jobs)


def test_a_setting_that_was_run_twice_with_a_seed_counts_once(tmp_path):
    one, two, again, other = (
        job(tmp_path, blocks=2, seed=seed, score=s) for seed, s in ((0, 0.1), (1, 0.2), (0, 0.3), (0, 0.4))
    )
    again["finished"] = 1
    other |= {"swept": {"blocks": "4"}, "setting": frozenset({"blocks=4"})}  # by default of the same seed
    _, settings = compare(distinct([one, again, two, other]))
    assert {row["blocks"]: row["image_auroc"] for row in settings} == {"2": [0.3, 0.2], "4": [0.4]}
    write_comparison(tmp_path, [one, again, two, other])
    assert "1 jobs repeat the setting and seed" in (tmp_path / "comparison.md").read_text()


def test_settings_have_a_mean_and_a_mean_rank_over_textures(tmp_path):
    scores = {"wood": {2: 0.9, 4: 0.8, 8: 0.8}, "tile": {2: 0.5, 4: 0.9, 8: 0.7}}
    jobs = [
        job(tmp_path, data=texture, blocks=b, seed=s, score=score + s / 100, **{"data.category": texture})
        for texture, by_blocks in scores.items()
        for b, score in by_blocks.items()
        for s in (0, 1)
    ]
    keys, settings = compare([*jobs, job(tmp_path, data="grid", blocks=2, score=0.1, **{"data.category": "grid"})])
    means = {row["blocks"]: row for row in means_over_textures(keys, settings)}
    assert {b: row["mean rank"] for b, row in means.items()} == {"2": 2, "4": 1.75, "8": 2.25}  # grid is not complete
    assert means["2"]["image_auroc"] == pytest.approx([0.705]) and means["2"]["data.category"] == "mean of 2"
    text = write_comparison(tmp_path, jobs)
    assert "mean of 2" in text and "mean rank" in text and "1.75" in text
    assert [row["mean rank"] for row in read_rows(tmp_path / "comparison.csv")][-3:] == ["2.0", "1.75", "2.25"]
    assert not means_over_textures(*compare(jobs[:6]))
    for one in jobs:
        del one["metrics"]["image_auroc"]  # without test images there is no rank
    rankless = means_over_textures(*compare(jobs))
    assert len(rankless) == 3 and {row["mean rank"] for row in rankless} == {None}
    write_comparison(tmp_path, jobs)
    assert "nan" not in (tmp_path / "comparison.md").read_text() + (tmp_path / "comparison.csv").read_text()


@pytest.mark.parametrize("texture", ["data.category", "experiment"])
def test_a_texture_is_no_best_setting(tmp_path, texture):
    scores = {"wood": {2: 0.9, 4: 0.8}, "tile": {2: 0.6, 4: 0.5}}
    jobs = [
        job(tmp_path, data=name, blocks=b, score=score, **{texture: name})
        for name, by_blocks in scores.items()
        for b, score in by_blocks.items()
    ]
    for one in jobs:
        one["metrics"]["synthetic_auroc"] = one["metrics"]["image_auroc"]
    keys, settings = compare(jobs)
    (line,) = best_setting(keys, settings + means_over_textures(keys, settings))
    assert line.startswith("Best: blocks=2, by its ") and "0.750" in line
    # Without another setting, or on other images by another key, there is nothing to choose.
    keys, settings = compare(jobs[::2])
    assert not best_setting(keys, settings + means_over_textures(keys, settings))
    assert not best_setting(["blocks"], compare(jobs)[1])


def test_settings_are_compared_over_seeds_in_the_order_of_their_values(tmp_path):
    jobs = [
        job(tmp_path, blocks=b, task=t, seed=s, score=b / 100 + s / 1000)
        for b in (10, 2, 1)
        for t in ("x", "y")
        for s in (0, 1)
    ]
    keys, settings = compare([*jobs, job(tmp_path, blocks=2, task="x", seed=2, error="no")])
    assert keys == ["blocks", "task"]
    assert [(row["blocks"], row["task"]) for row in settings] == [(b, t) for b in ("1", "2", "10") for t in "xy"]
    assert settings[0]["image_auroc"] == [0.01, 0.011] and "aupro" not in settings[0]
    text = write_comparison(tmp_path, jobs)
    assert "0.010 ± 0.001" in text and "2.0 ± 0.0" in text
    assert "task=y" in (tmp_path / "comparison.svg").read_text()


def test_mean_ranks_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 4, (5, 6)).astype(float)
    assert mean_ranks(values.tolist()) == pytest.approx(rankdata(-values, axis=1).mean(0))


def test_seeds_alone_are_one_setting_and_sources_are_kept_apart(tmp_path):
    keys, settings = compare([job(tmp_path, seed=s, score=0.5) for s in (0, 1)])
    assert keys == [] and len(settings) == 1 and settings[0]["image_auroc"] == [0.5, 0.5]
    jobs = [job(tmp_path, seed=0, score=0.5, data=name) for name in ("folder a", "folder $b|")]
    assert len(compare(jobs)[1]) == 2
    assert "folder a; folder $b|" in (write_comparison(tmp_path, jobs) and (tmp_path / "comparison.svg").read_text())


def test_a_sweep_of_failures_has_a_table_that_says_so(tmp_path):
    assert write_comparison(tmp_path, [job(tmp_path, seed=0, error="no, really")]) == "No job has finished."
    assert "Failed: x: no, really" in (tmp_path / "comparison.md").read_text()
    assert "Failed: x: no, really" in (tmp_path / "report.html").read_text()
    assert read_jobs(tmp_path, []) == [] and not (tmp_path / "comparison.png").exists()
