"""Weights & Biases: online where a key is set and the server answers, offline otherwise; never a prompt.

A run is called as its folder, so that a sweep can be compared without hand work: its group is the sweep, its name the
swept values, its job type the same without the seed. Grouped by job type, every setting has its mean over the seeds.
"""

import csv
import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from texture_ad.errors import UserError
from texture_ad.files import write_text
from texture_ad.reporting.loggers.wandb_server import offline_reason
from texture_ad.reporting.results import overlay_path

UPLOAD = 600.0  # seconds for what is left to upload at the end; all of it stays on disk


def run_names(folder: Path) -> tuple[str, str, str]:
    """A run's group, name and job type, from its folder.

    Example:
        >>> run_names(Path("runs/sweeps/flow_depth/flow.blocks=4,seed=1"))
        ('flow_depth', 'flow.blocks=4,seed=1', 'flow.blocks=4')
    """
    folder = folder.resolve()
    setting = re.sub(r"(^|,)seed=[^,]*", "", folder.name).strip(",") if "=" in folder.name else ""
    return folder.parent.name, folder.name, setting or "run"


def wandb_logger(
    save_dir: str,
    project: str = "texture_ad",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    tags: Sequence[str | None] = (),
) -> WandbLogger:
    """A WandbLogger whose run has begun; offline it writes below `save_dir` and prints the command that uploads it.

    Args:
        save_dir: the run folder.
        project, entity: of the server, entity being the team.
        group, job_type, name: None for `run_names`.
        tags: None among them are left out.

    Raises:
        UserError: the server refused the key.
    """
    if rank_zero_only.rank:
        return WandbLogger(save_dir=save_dir)  # which leaves the logging to the first process
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(("group", "name", "job_type"), run_names(folder), strict=True))
    names |= {k: v for k, v in (("group", group), ("name", name), ("job_type", job_type)) if v}
    options = {"silent": True, "init_timeout": 30.0, "finish_timeout": UPLOAD}
    # Not left to Lightning, which passes settings that W&B warns of.
    begin = partial(
        wandb.init,
        dir=str(folder),
        project=project,
        entity=entity,
        id=_run_id(folder),
        resume="allow",
        settings=wandb.Settings(**{k: v for k, v in options.items() if k in wandb.Settings.model_fields}),
        tags=[t for t in tags if t],
        **names,
    )
    mode = os.environ.get("WANDB_MODE", "online")
    reason = offline_reason() if mode == "online" else f"WANDB_MODE={mode}"
    run = None
    if reason is None:
        try:
            run = begin(mode="online")
            print(f"wandb    {run.url}", flush=True)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"logger=wandb: {error}; give a valid key by wandb login, or WANDB_MODE=offline") from error
        except wandb.errors.CommError as error:
            reason = str(error)
    if run is None:
        place = shlex.quote(str(folder / "wandb"))
        if mode != "disabled":
            print(f"wandb    offline, {reason}; upload later: wandb sync {place}/offline-run-*", flush=True)
        run = begin(mode="offline" if mode == "online" else mode)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(save_dir=str(folder), experiment=run)


def _run_id(folder: Path) -> str:
    """The same for every attempt at a run, so that one which was killed resumes the same W&B run."""
    path = folder / "wandb" / "id"
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


def log_results(logger: WandbLogger, folder: Path, metrics: Mapping) -> None:
    """Logs what a finished run folder holds: the ROC, the scores, a table of the test images, figures, the detector.

    Args:
        logger: from `wandb_logger`.
        folder: of the run.
        metrics: what metrics.json holds.
    """
    # What waits for its upload would else lie in the home folder, which a cluster's node may not share.
    data_dir = os.environ.get(wandb.env.DATA_DIR)
    os.environ[wandb.env.DATA_DIR] = data_dir or str(folder.resolve() / "wandb")
    try:
        _log_results(logger.experiment, folder, metrics)
    finally:
        if data_dir is None:
            del os.environ[wandb.env.DATA_DIR]


def _log_results(run: wandb.Run, folder: Path, metrics: Mapping) -> None:
    scores_file = folder / "scores.csv"
    if scores_file.is_file():
        with open(scores_file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        run.log({"test/images": _image_table(rows, folder), **_distributions(rows)})
    figures = {f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted(folder.glob("*.png"))}
    if figures:
        run.log(figures)
    about = {k: v for k, v in metrics.items() if v is not None}
    name = re.sub(r"[^\w.-]", "_", f"detector-{metrics['category']}", flags=re.ASCII)
    artifact = wandb.Artifact(name, "detector", description=metrics["data_source"], metadata=about)
    for name in ("detector.pt", "config.yaml", "metrics.json", "report.html"):
        if (folder / name).is_file():
            artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


def _image_table(rows: Sequence[Mapping[str, str]], folder: Path) -> wandb.Table:
    panel = "image, true defect, anomaly map, located region"
    table = wandb.Table(columns=["path", "kind", "label", "score", "anomalous", "outcome", panel])
    for row in rows:
        label = int(row["label"])
        anomalous = int(row["anomalous"])
        outcome = "correct" if label == anomalous else "false alarm" if anomalous else "missed"
        overlay = folder / overlay_path(row["kind"], Path(row["path"]))
        picture = wandb.Image(str(overlay)) if overlay.is_file() else None
        table.add_data(row["path"], row["kind"], label, float(row["score"]), anomalous, outcome, picture)
    return table


def _distributions(rows: Sequence[Mapping[str, str]]) -> dict:
    from sklearn.metrics import roc_curve

    scores = {label: [float(r["score"]) for r in rows if r["label"] == label] for label in ("0", "1")}
    found = {
        f"test/scores_{name}": wandb.Histogram(scores[label])
        for label, name in (("0", "normal"), ("1", "anomalous"))
        if scores[label]
    }
    if len(found) == 2:
        false_positives, true_positives, _ = roc_curve(
            [0] * len(scores["0"]) + [1] * len(scores["1"]), scores["0"] + scores["1"]
        )
        names = ["false positive rate", "true positive rate"]
        points = [list(p) for p in zip(false_positives.tolist(), true_positives.tolist(), strict=True)]
        found["test/roc"] = wandb.plot.line(wandb.Table(columns=names, data=points), *names, title="ROC")
    return found
