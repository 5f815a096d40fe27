"""Killed at any moment and started again, a run ends as an undisturbed one does."""

import csv
import errno
import json
import os
import signal
import sys
import time

import pytest
import torch
from forked import Forked, run_module
from helpers import arguments, environment, few_photographs, printed_random, read_rows, repeatable
from torchvision.models import get_model

from texture_ad.deploy.scorer import Row
from texture_ad.deploy.watch import HEADER, Rows
from texture_ad.errors import UserError
from texture_ad.pipeline import evaluate
from texture_ad.training.run_folder import prepared_folder

KILLS = 24 if os.environ.get("TEXTURE_AD_LONG") else 4
MARKS = ("stage 1", "stage 2", "stage1/last.ckpt", "stage2/last.ckpt", "detector.pt", "scores.csv", "overlays")
LEARNING = ("cutpaste=binary", "data.batch_size=4", "score.head_weight=0", "flow.first=0")  # the backbone too


def finish(data, run_dir, *more, **env):
    done = run_module("texture_ad.run", *arguments(data, run_dir, *more), env=environment(**env))
    assert done.returncode == 0, done.stderr
    return done


def results(run_dir):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    return repeatable(metrics), (run_dir / "scores.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    finish(data, run_dir)
    return run_dir, time.monotonic() - start


def started(data, run_dir, *more, **env):
    """A running process, killed with all that it starts by its group."""
    return Forked("texture_ad.run", *arguments(data, run_dir, *more), env=environment(**env))


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def readable(run_dir):
    """What there is under a final name is whole."""
    for path in run_dir.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    for path in (run_dir / "metrics.json",):
        if path.exists():
            json.loads(path.read_text())
    if (run_dir / "scores.csv").exists():
        header, *rows = csv.reader((run_dir / "scores.csv").open())
        assert header[0] == "path" and all(len(row) == len(header) for row in rows)
    if (run_dir / "detector.pt").exists():
        torch.load(run_dir / "detector.pt", weights_only=True)


def test_killed_runs_end_as_undisturbed_ones(data, undisturbed, tmp_path):
    reference, seconds = undisturbed
    rng = printed_random()
    kills = 0
    moments = ["stage1/last.ckpt", "folds/2/stage1/last.ckpt", "stage2/last.ckpt", "detector.pt", "scores.csv"]
    while kills < KILLS:
        run_dir = tmp_path / f"run{kills}"
        # Two kills a run: one at a moment that matters, one at any moment.
        for moment in (moments[kills // 2 % len(moments)], None):
            process = started(data, run_dir)
            if moment:
                wait_for(run_dir / moment, process)
                time.sleep(rng.random() * 0.5)
            else:
                time.sleep(rng.random() * seconds)
            process.kill()
            process.communicate()
            readable(run_dir)
            kills += 1
        finish(data, run_dir)
        assert results(run_dir) == results(reference)
        assert not list(run_dir.rglob("*.partial"))
        names = {str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if "logs" not in p.parts}
        assert names == {str(p.relative_to(reference)) for p in reference.rglob("*") if "logs" not in p.parts}


def seconds_of_fit(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())["fit_seconds"]


def test_a_finished_run_that_is_repeated_keeps_the_seconds_of_its_fit(data, undisturbed):
    run_dir, _ = undisturbed
    before = seconds_of_fit(run_dir)
    finish(data, run_dir)
    assert seconds_of_fit(run_dir) == before > 0


def killed_in_stage_2(data, run_dir, *more):
    process = started(data, run_dir, *more)
    wait_for(run_dir / "stage2/last.ckpt", process)
    process.kill()
    process.communicate()


def test_a_stage_that_stopped_early_stays_stopped(data, tmp_path):
    # At such a rate the likelihood soon gets worse.
    more = (
        "trainer.max_epochs=9",
        "backbone.layers=[layer1,layer2]",
        "density.lr=0.03",
        "density.patience=1",
        "pictures=false",
    )
    finish(data, tmp_path / "undisturbed", *more)
    assert torch.load(tmp_path / "undisturbed/stage1/last.ckpt", weights_only=True)["epoch"] < 8
    killed_in_stage_2(data, tmp_path / "killed", *more)
    finish(data, tmp_path / "killed", *more)
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


def test_changed_images_end_a_resumed_run(tmp_path, command):
    data = few_photographs(tmp_path / "carpet")
    killed_in_stage_2(data, tmp_path / "run", "cache=never")
    image = next((data / "train/good").iterdir())
    image.write_bytes(next((data / "test/good").iterdir()).read_bytes())
    code, _, errors = command("run", *arguments(data, tmp_path / "run", "cache=never"))
    assert code == 2 and f"{data}: its images changed since this run's last checkpoint" in errors


@pytest.mark.parametrize("options", [("cache=never",), ("cache=always",), LEARNING])
def test_changed_weights_of_the_backbone_end_a_run_that_is_repeated(data, tmp_path, command, options):
    weights = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(get_model("resnet18").state_dict(), weights)
    run = arguments(data, tmp_path / "run", f"backbone.weights={weights}", "pictures=false", *options)
    assert command("run", *run)[0] == 0
    before = results(tmp_path / "run")
    torch.save(get_model("resnet18").state_dict(), weights)
    code, _, errors = command("run", *run)
    assert code == 2 and "backbone.weights: they changed since this run's last checkpoint" in errors
    assert results(tmp_path / "run") == before


def test_weights_that_are_removed_during_a_run_cost_it_a_picture_alone(data, tmp_path, command, monkeypatch):
    weights = tmp_path / "weights.pt"
    torch.save(get_model("resnet18").state_dict(), weights)

    def scored_without_weights(*what):
        weights.unlink()
        return evaluate(*what)

    monkeypatch.setattr("texture_ad.pipeline.evaluate", scored_without_weights)
    code, out, errors = command("run", *arguments(data, tmp_path / "run", f"backbone.weights={weights}"))
    assert code == 0, errors
    assert f"warning: no t-SNE, {tmp_path / 'run/tsne.png'}: backbone.weights={weights}: no such file" in out
    assert not (tmp_path / "run/tsne.png").exists() and (tmp_path / "run/report.html").exists()


def test_the_log_of_the_earlier_part_is_kept(data, tmp_path):
    killed_in_stage_2(data, tmp_path / "run", "pictures=false")
    before = (tmp_path / "run/logs/metrics.csv").read_text()
    finish(data, tmp_path / "run", "pictures=false")
    assert (tmp_path / "run/logs/metrics_1.csv").read_text() == before
    assert seconds_of_fit(tmp_path / "run") is None  # of which the last part alone could be told


@pytest.mark.parametrize(
    ("by", "advised"), [("itself", False), ("itself after a checkpoint", True), ("Lightning", True)]
)
def test_ctrl_c_ends_in_one_line(data, tmp_path, command, monkeypatch, by, advised):
    def start(*_):
        if by == "itself after a checkpoint":
            (tmp_path / "run/stage1").mkdir(parents=True)
            for name in ("config.yaml", "stage1/last.ckpt"):
                (tmp_path / "run" / name).touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if by == "Lightning":  # after it has shut down
                sys.exit(1)
            raise

    monkeypatch.setattr("texture_ad.cli.experiment.start", start)
    code, _, errors = command("run", *arguments(data, tmp_path / "run"))
    assert code == 130 and errors.startswith("error: stopped by Ctrl-C") and len(errors.splitlines()) == 1
    assert ("the same run_dir resumes from the last checkpoint" in errors) == advised


def test_sigterm_stops_with_advice_and_the_run_resumes(data, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    process = started(data, run_dir, "pictures=false")
    wait_for(run_dir / "stage1/last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    # In the middle of training Lightning stops at the next batch; elsewhere the process ends at once.
    assert process.returncode in (143, -signal.SIGTERM), errors
    assert "Traceback" not in errors and ("error: stopped by " in errors or process.returncode < 0)
    finish(data, run_dir, "pictures=false")
    assert results(run_dir) == results(undisturbed[0])


def test_a_preempted_slurm_job_saves_and_requeues(data, tmp_path):
    run_dir = tmp_path / "run"
    tools = tmp_path / "bin"
    tools.mkdir()
    # Moved into place, so that it is never seen half written.
    requeued = tmp_path / "requeued"
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/call && mv {tmp_path}/call {requeued}\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "texture",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    process = started(data, run_dir, "trainer.max_epochs=20", "pictures=false", **slurm)
    wait_for(run_dir / "stage1/last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    wait_for(requeued, process)
    process.kill()
    _, errors = process.communicate()
    assert requeued.exists(), errors
    assert requeued.read_text().split() == ["requeue", "7"]
    finish(data, run_dir, "trainer.max_epochs=20", "pictures=false", **slurm)
    assert not list(run_dir.rglob("hpc_ckpt_*"))
    assert "image_auroc" in results(run_dir)[0]


def test_other_settings_in_the_same_folder_are_refused(data, undisturbed, command):
    before = results(undisturbed[0])
    record = (undisturbed[0] / "hydra/overrides.yaml").read_text()
    code, _, errors = command("run", *arguments(data, undisturbed[0], "flow.blocks=3"))
    assert code == 2 and "flow.blocks=2, not 3" in errors
    assert results(undisturbed[0]) == before
    assert (undisturbed[0] / "hydra/overrides.yaml").read_text() == record and "flow.blocks=2" in record


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken"])
def test_a_damaged_checkpoint_is_named(data, tmp_path, content, command):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/last.ckpt").write_bytes(content)
    code, _, errors = command("run", *arguments(data, tmp_path))
    assert code == 2 and f"{tmp_path}/stage1/last.ckpt: not a checkpoint of this program" in errors
    assert "Traceback" not in errors


# --- the watched folder -------------------------------------------------------------------------------


def watching(detector, folder, output):
    call = [f"detector={detector}", f"input={folder}", f"output={output}", "watch=true", "interval=0.2"]
    return Forked("texture_ad.predict", *call, "pictures=false", "batch_size=2", env=environment())


def rows(output):
    path = output / "scores.csv"
    return read_rows(path) if path.exists() else []


def wait_rows(output, count, process):
    deadline = time.monotonic() + 120
    while len(rows(output)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_watched_folder_is_scored_once_each_over_kills(undisturbed, data, tmp_path):
    folder = tmp_path / "in"
    output = tmp_path / "out"
    folder.mkdir()
    photographs = [p.read_bytes() for p in sorted((data / "test").rglob("*.png"))]
    names = ["a b.png", "ü.png", 'q"uote.png', "new\nline.png", "4.png", "5.png", "6.png", "7.png"]
    rng = printed_random(1)
    for part in (names[:3], names[3:6], names[6:]):
        process = watching(undisturbed[0] / "detector.pt", folder, output)
        for name in part:
            # Written in two halves, as a slow camera would: it must not be scored in between.
            content = photographs[names.index(name)]
            with open(folder / name, "wb") as sink:
                sink.write(content[: len(content) // 2])
                sink.flush()
                time.sleep(0.1)
                sink.write(content[len(content) // 2 :])
        wait_rows(output, names.index(part[0]) + rng.randint(1, len(part)), process)
        process.kill()
        process.communicate()
    (folder / "broken.png").write_bytes(b"nonsense")
    process = watching(undisturbed[0] / "detector.pt", folder, output)
    wait_rows(output, len(names) + 1, process)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = rows(output)
    assert sorted(r["path"] for r in found) == sorted([*names, "broken.png"])
    assert all(float(r["score"]) for r in found if r["path"] != "broken.png")
    assert "above the threshold" in out
    assert "can't be read" in next(r["warning"] for r in found if r["path"] == "broken.png")
    assert "broken.png: can't be read" in errors
    # After a restart it is tried again: at once without a second row, and with its score once it is whole.
    process = watching(undisturbed[0] / "detector.pt", folder, output)
    assert any("last broken.png" in line for line in process.lines())
    assert len(rows(output)) == len(found)
    (folder / "broken.png").write_bytes(photographs[0])
    wait_rows(output, len(found) + 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    last = rows(output)[-1]
    assert last["path"] == "broken.png" and float(last["score"]) and len(rows(output)) == len(found) + 1


def test_a_run_folder_is_one_process_s(data, tmp_path, command):
    quick = arguments(data, tmp_path / "run", "method=padim", "pictures=false", "logger=none")
    with prepared_folder(tmp_path / "run"):
        code, _, errors = command("run", *quick)
        assert code == 2 and f"{tmp_path / 'run'}: another process is writing to it; wait for its end" in errors
    code, _, errors = command("run", *quick)
    assert code == 0, errors
    assert not (tmp_path / "run/run.lock").exists()


@pytest.mark.parametrize("torn", [b"c.png,1.0,2", b'"na\nme', b"c.png,1,2,0,\xc3"])
def test_a_torn_row_is_cut_off(tmp_path, torn):
    first = Rows(tmp_path / "scores.csv", 1.0)
    first.append([Row("a.png", "1", "0.5"), Row("b\nb.png", "1", "0.5")])
    first.close()
    whole = (tmp_path / "scores.csv").read_bytes()
    (tmp_path / "scores.csv").write_bytes(whole + torn)
    again = Rows(tmp_path / "scores.csv", 1.0)
    assert again.names == {"a.png", "b\nb.png"}
    assert (tmp_path / "scores.csv").read_bytes() == whole


def test_a_disk_that_fills_up_leaves_no_half_row(tmp_path, monkeypatch):
    write = os.write
    room = [len(HEADER) + 20, 0]  # bytes that the disk takes before it is full

    def written(file, content):
        count = min(len(content), max(room[0], 0))
        if not count:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= count
        return write(file, content[:count])

    monkeypatch.setattr(os, "write", written)
    with Rows(tmp_path / "scores.csv", 1.0) as rows:
        with pytest.raises(OSError, match="No space left"):
            rows.append([Row("a.png", "1", "0.5"), Row("b.png", "1", "0.5")])
        assert not rows.names
        room[0] = 10**6
        rows.append([Row("c.png", "1", "0.5")])
    assert (tmp_path / "scores.csv").read_bytes() == HEADER + b"c.png,1,0.5,,,,,,\n"


def test_a_damaged_row_is_scored_again(tmp_path):
    (tmp_path / "scores.csv").write_bytes(HEADER + b"\na.png,1,0.5\nb.png,1,0.5,2.5,0,normal,0,0,\n")
    with Rows(tmp_path / "scores.csv", 1.0) as rows:
        assert rows.names == {"b.png"}


def test_two_processes_never_write_the_same_rows(tmp_path):
    with Rows(tmp_path / "scores.csv", 1.0), pytest.raises(UserError, match="another process is writing to it"):
        Rows(tmp_path / "scores.csv", 1.0)
    Rows(tmp_path / "scores.csv", 1.0).close()


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"a,b\n1,2", b"a note", b"\xff\xfe\n"])
def test_a_file_of_another_kind_is_not_touched(tmp_path, content):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(UserError, match="not the scores of a watched folder"):
        Rows(tmp_path / "scores.csv", 1.0)
    assert (tmp_path / "scores.csv").read_bytes() == content
