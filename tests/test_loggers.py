"""Loggers through the real command line; what W&B's client wrote offline is read back."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers import arguments, composed, read_scores
from omegaconf import OmegaConf
from PIL import Image
from wandb_file import records

from texture_ad.errors import UserError
from texture_ad.pipeline import make
from texture_ad.reporting.loggers import open_loggers, wandb, wandb_server
from texture_ad.reporting.loggers.wandb import run_names

DEFAULTS = dict.fromkeys(("entity", "group", "job_type", "name", "registry"))
DEFAULTS |= {"project": "texture_ad", "tags": [], "aliases": []}
HOSTILE = "<script>alert('1')\n.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "wall"
    for part in ("train/good", "test/good/line 1", "test/hole", "ground_truth/hole"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)

    def noise(*path):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(root.joinpath(*path))

    for i in range(6):
        noise("train/good", f"{i}.png")
    noise("test/good", HOSTILE)
    noise("test/good", "line 1", "1.png")
    noise("test/hole", "0.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(root / "ground_truth/hole/0_mask.png")
    return root


TINY = (
    "data.size=32",
    "backbone.layers=[layer1]",
    "flow.blocks=1",
    "flow.hidden=8",
    "dictionary.num_atoms=4",
    "dictionary.nonzeros=2",
    "detection.epochs=3",
    "trainer.max_epochs=2",
    "cross_fit=false",
    "trainer.enable_progress_bar=true",
)


@pytest.fixture
def run(folder, monkeypatch, tmp_path, command):
    for key in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in a .netrc
    return lambda run_dir, *args: command("run", *arguments(folder, run_dir, *TINY), *args)


def read(run_dir):
    """The records of the only W&B run in a folder, by their kind."""
    wandb.wandb.teardown()  # as at a process's end: waits for the last of the file
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def in_mlflow(run_dir):
    """The run of a folder, as MLflow's client reads it from the file."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    return client.get_run((run_dir / "mlflow/id").read_text())


def logged_files(run_dir):
    return [p for p in (run_dir.parent / "mlflow").rglob("*") if p.is_file()]


def test_wandb_offline_holds_everything_and_several_log_at_once(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "1")  # seconds, fewer than the run takes
    run_dir = tmp_path / "walls" / "flow.blocks=1,seed=0"
    code, out, errors = run(
        run_dir.as_posix(), "logger=[csv,wandb,tensorboard,mlflow]", "logger.wandb.aliases=[candidate]"
    )
    assert code == 0, errors
    assert f"wandb sync {run_dir}/wandb/offline-run-*" in out and "no API key" in out  # fit for a shell
    assert "warning" not in (out + errors).lower()
    # Where there is no terminal each stage has a plain line at its end.
    for stage, epoch in (("stage 1 ", "epoch 2/2"), ("stage 2 ", "epoch 3/3"), ("test ", "")):
        (line,) = [text for text in out.splitlines() if text.startswith(stage) and "taken" in text]
        assert epoch in line and "\x1b" not in line

    found = read(run_dir)
    about = found["run"][0]
    assert (about.project, about.run_group, about.job_type, about.display_name) == (
        "texture_ad",
        "walls",
        "flow.blocks=1",
        "flow.blocks=1,seed=0",
    )
    assert "resnet18" in about.tags
    config = {u.key: json.loads(u.value_json) for part in found["config"] for u in part.update if u.key}
    assert config["data_source"] == "folder wall" and config["flow"]["blocks"] == 1

    values = {}
    for line in found["history"]:
        for item in line.item:
            values.setdefault(".".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
    assert len(values["val/nll"]) == 2 and len(values["train/loss"]) >= 4  # stage 1
    assert len(values["dictionary/residual"]) >= 2 and min(values["dictionary/residual"]) >= 0  # stage 2
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert values["test/image_auroc"] == [metrics["image_auroc"]]
    assert {"figures/tsne.path", "figures/atoms.path", "test/scores_normal.bins"} <= values.keys()

    tables = re.compile(r"-(test[a-z_]+)-")
    artifacts = {tables.search(a.name)[1] if a.type == "run_table" else a.type: a for a in found["artifact"]}
    files = {name: {e.path: e.local_path for e in a.manifest.contents} for name, a in artifacts.items()}
    assert artifacts["detector"].name == "detector-wall" and "detector.pt" in files["detector"]
    assert set(artifacts["detector"].aliases) == {"latest", "candidate"}
    assert found["stats"]  # the system's
    # All that a later upload needs lies in the run folder.
    assert all(str(run_dir) in place for found_files in files.values() for place in found_files.values())
    table = json.loads(Path(files["testimages"]["test/images.table.json"]).read_text())
    rows = {row[0]: row for row in table["data"]}
    scores = read_scores(run_dir / "scores.csv")
    assert rows.keys() == scores.keys() and f"test/good/{HOSTILE}" in rows
    assert all(abs(rows[k][3] - scores[k]) < 1e-6 for k in rows)
    assert all(row[-1]["_type"] == "image-file" and row[-1]["path"] in files["testimages"] for row in table["data"])
    roc = json.loads(Path(files["testroc_table"]["test/roc_table.table.json"]).read_text())
    assert roc["data"][0] == [0, 0] and roc["data"][-1] == [1, 1]
    assert found["exit"][0].exit_code == 0

    mlflow = in_mlflow(run_dir)
    assert mlflow.info.status == "FINISHED" and mlflow.info.run_name == run_dir.name
    assert mlflow.data.params["flow/blocks"] == "1" and mlflow.data.params["data_source"] == "folder wall"
    logged = {key.removeprefix("test/"): value for key, value in mlflow.data.metrics.items()}
    assert {"val/nll", "dictionary/residual"} <= logged.keys()
    assert {k: v for k, v in metrics.items() if isinstance(v, float)}.items() <= logged.items()
    kept = {str(p.relative_to(run_dir.parent / "mlflow")).split("/artifacts/")[1] for p in logged_files(run_dir)}
    assert kept >= {"detector/detector.pt", "detector/report.html", "figures/tsne.png", "figures/atoms.png"}

    assert "dictionary/residual" in (run_dir / "logs/metrics.csv").read_text().splitlines()[0]
    assert list((run_dir / "tensorboard").glob("events*"))
    report = (run_dir / "report.html").read_text()
    assert "&lt;script&gt;alert" in report and "<script>alert" not in report


def test_a_failed_run_ends_as_failed_and_keeps_its_id(run, tmp_path):
    code, _, errors = run(tmp_path / "run", "logger=[wandb,mlflow]", "density.lr=1e30")
    assert code == 2 and "the loss is" in errors
    found = read(tmp_path / "run")
    assert found["exit"][0].exit_code == 1
    assert found["run"][0].run_id == (tmp_path / "run/wandb/id").read_text()
    assert in_mlflow(tmp_path / "run").info.status == "FAILED"


def test_an_agent_of_a_wandb_sweep_drives_the_command_line(monkeypatch, tmp_path):
    """By W&B's own agent, but for its server: the command that it starts, and the run that this begins."""
    from wandb import wandb_agent

    from texture_ad.cli.compose import compose

    started = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **options: started.append(options) or SimpleNamespace())
    for key, value in {"DIR": tmp_path, "SWEEP_ID": "s1", "PROJECT": "theirs", "ENTITY": "team"}.items():
        monkeypatch.setenv(f"WANDB_{key}", str(value))
    for key in ("RUN_ID", "SWEEP_PARAM_PATH"):  # the agent sets them; here they are taken back
        monkeypatch.setenv(f"WANDB_{key}", "")
    sweep = yaml.safe_load((Path(__file__).parents[1] / "examples/wandb_sweep.yaml").read_text())
    agent = wandb_agent.Agent(None, None)
    agent._sweep_command = sweep["command"]
    values = {
        key: {"value": about.get("min", about.get("values", [None])[0])} for key, about in sweep["parameters"].items()
    }
    agent._command_run({"run_id": "r1", "program": sweep["program"], "args": values})
    assert started[0]["command"][:3] == ["/usr/bin/env", "texture-ad", "run"]
    config = compose(started[0]["command"][3:])
    assert config.run_dir == "runs/agents/r1" and OmegaConf.select(config, next(iter(values))) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.wandb_logger(tmp_path / "run", **DEFAULTS).experiment.finish()
    about = read(tmp_path / "run")["run"][0]
    assert (about.run_id, about.sweep_id, about.project, about.entity) == ("r1", "s1", "theirs", "team")


def test_a_detector_is_linked_to_a_registry_where_there_is_one(capsys):
    calls = []
    run = SimpleNamespace(
        offline=False,
        log_artifact=lambda artifact, aliases: calls.append(aliases),
        link_artifact=lambda artifact, target, aliases: calls.append((target, aliases)),
    )
    aliases = ["latest", "candidate"]
    artifact = wandb.wandb.Artifact("detector-wall", "detector")
    wandb._log_detector(run, artifact, "model", aliases)
    assert calls == [aliases, ("wandb-registry-model/detector-wall", aliases)]
    run.offline = True
    wandb._log_detector(run, artifact, "model", aliases)
    assert len(calls) == 3 and "warning: the detector is not linked to wandb-registry-model/detector-wall" in (
        capsys.readouterr().out
    )


def test_an_alias_is_a_name(tmp_path):
    with pytest.raises(UserError, match=r"aliases=\['a/b'\]: expected names without"):
        wandb.wandb_logger(tmp_path, **DEFAULTS | {"aliases": ["a/b"]})
    for key in ("aliases", "tags"):
        with pytest.raises(UserError, match=rf"{key}=candidate: expected a list; give \[candidate\]"):
            wandb.wandb_logger(tmp_path, **DEFAULTS | {key: "candidate"})


def test_a_number_is_a_name_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    names = {
        "wandb": ("project", "entity", "group", "job_type", "name", "registry"),
        "mlflow": ("experiment_name", "run_name", "save_dir"),
        "csv": ("name", "save_dir"),
        "tensorboard": ("name", "save_dir"),
    }
    overrides = [f"logger.{logger}.{key}=2024" for logger, keys in names.items() for key in keys]
    overrides += ["logger.wandb.tags=[2024]", "logger.wandb.aliases=[2024]", "run_dir=wandb"]
    options = OmegaConf.to_container(composed(f"logger=[{','.join(names)}]", *overrides).logger, resolve=True)
    made = {name: make(f"logger.{name}", options[name]) for name in names}
    run = made["wandb"].experiment
    run.finish()
    assert (run.project, run.group, run.name, run.tags) == ("2024", "2024", "2024", ("2024",))
    mlflow = made["mlflow"]
    assert mlflow.experiment.get_run(mlflow.run_id).info.run_name == "2024"
    for name in ("csv", "tensorboard"):
        made[name].log_metrics({"a": 1.0})
        made[name].finalize("success")
    assert {path.name.split(".")[0] for path in Path("2024/2024").iterdir()} >= {"metrics", "events"}


def test_mlflow_without_a_server_is_a_users_error(tmp_path, monkeypatch):
    from texture_ad.reporting.loggers.mlflow import mlflow_logger

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="logger=mlflow: .*check logger.mlflow.tracking_uri"):
        mlflow_logger(tmp_path, "texture_ad", None, "http://127.0.0.1:9")


def test_a_key_without_a_server_is_offline_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_server, "_answers", lambda url: False)
    logger = wandb.wandb_logger(tmp_path, **DEFAULTS)
    logger.experiment.finish()
    assert "does not answer" in capsys.readouterr().out and list(tmp_path.glob("wandb/offline-run-*"))


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(wandb_server, "PATIENCE", -0.9)
    over = threading.Event()

    def hang(*_, **__):
        over.wait(60)
        raise OSError

    monkeypatch.setattr(wandb_server.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not wandb_server._answers("https://example.invalid") and time.monotonic() - start < 30
    over.set()


def test_a_server_that_fails_to_begin_a_run_is_left_for_later(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "offline_reason", lambda: None)
    begin = wandb.wandb.init

    def init(mode, **options):
        if mode == "online":
            raise wandb.wandb.errors.CommError("bad gateway")
        return begin(mode=mode, **options)

    monkeypatch.setattr(wandb.wandb, "init", init)
    wandb.wandb_logger(tmp_path / "a b", **DEFAULTS).experiment.finish()
    assert f"offline, bad gateway; upload later: wandb sync '{tmp_path}/a b/wandb'/offline" in capsys.readouterr().out


def test_a_refused_key_is_a_users_error(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    monkeypatch.setattr(wandb_server, "_answers", lambda url: True)
    with pytest.raises(UserError, match="logger=wandb: .*WANDB_MODE=offline"):
        wandb.wandb_logger(tmp_path, **DEFAULTS)


def test_a_run_is_called_as_its_folder(tmp_path):
    assert run_names(tmp_path / "carpet/2026-01-02_03-04-05") == ("carpet", "2026-01-02_03-04-05", "run")
    assert run_names(tmp_path / "s/seed=3") == ("s", "seed=3", "run")
    assert run_names(tmp_path / "s/a=1,seed=3,b=2")[2] == run_names(tmp_path / "s/a=1,seed=4,b=2")[2] == "a=1,b=2"


def test_progress_on_a_terminal_and_nothing_is_warned_of(folder, tmp_path):
    """In a process of its own: warnings that were shown once are not shown again."""
    command = [sys.executable, "-m", "texture_ad.run", *arguments(folder, tmp_path, *TINY), "pictures=false"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to tell the end of a terminal
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.stderr.read() == b"" and process.wait() == 0
    shown = shown.decode()
    assert "\x1b[2K" in shown
    assert {text for text in ("epoch 2/2", "epoch 3/3", "residual") if text not in shown} == set()


def test_a_run_of_wandb_that_the_caller_opened_stays_open(tmp_path):
    import wandb as wandb_client

    run = wandb_client.init(mode="offline", dir=str(tmp_path))
    try:
        with open_loggers([]):
            pass
        assert wandb_client.run is run
    finally:
        run.finish()
