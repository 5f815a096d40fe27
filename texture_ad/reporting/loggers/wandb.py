"""Log to Weights & Biases: online where a key is set and the server answers, offline otherwise; never a prompt.

A run is called as its folder, so that a sweep can be compared without hand work: its group is the sweep, its name the
swept values, its job type the same without the seed. Grouped by job type, every setting has its mean over the seeds.
"""

import csv
import os
import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.curves import roc_curve
from texture_ad.evaluation.metrics import outcome
from texture_ad.files import write_text
from texture_ad.reporting.loggers import DETECTOR_FILES
from texture_ad.reporting.loggers.wandb_server import offline_reason
from texture_ad.reporting.panels import overlay_path
from texture_ad.training.distributed import is_rank_zero

UPLOAD = 600.0  # seconds for what is left to upload at the end; all of it stays on disk
_COLUMNS = (
    "path",
    "kind",
    "label",
    "score",
    "anomalous",
    "outcome",
    "image, true defect, anomaly map, located region",
)


def run_names(folder: Path) -> tuple[str, str, str]:
    """Return a run's group, name and job type, from its folder.

    Examples:
        >>> run_names(Path("runs/sweeps/flow_depth/flow.blocks=4,seed=1"))
        ('flow_depth', 'flow.blocks=4,seed=1', 'flow.blocks=4')
    """
    folder = folder.resolve()
    setting = re.sub(r"(^|,)seed=[^,]*", "", folder.name).strip(",") if "=" in folder.name else ""
    return folder.parent.name, folder.name, setting or "run"


def wandb_logger(
    save_dir: str,
    project: str,
    entity: str | None,
    group: str | None,
    job_type: str | None,
    name: str | None,
    tags: Sequence[str | None],
    registry: str | None,
    aliases: Sequence[str],
) -> WandbLogger:
    """Return a WandbLogger whose run has begun; offline it writes below `save_dir` and prints how to upload it.

    A run that an agent of a W&B sweep has started has the id, project and team that the agent gives.

    Args:
        save_dir: the run folder.
        project: of the server.
        entity: the team, None for the key's own.
        group: of the run, None for that of `run_names`.
        job_type: of the run, None for that of `run_names`.
        name: of the run, None for that of `run_names`.
        tags: of the run; None among them are left out.
        registry: of the server, to which the detector is linked; None for none.
        aliases: of the detector, beside "latest".

    Raises:
        ParameterError: tags or aliases that are no list, or an alias that has a / or :.
        UserError: the server refused the key.
    """
    for key, names_of in (("tags", tags), ("aliases", aliases)):
        if isinstance(names_of, str):  # whose letters would be taken one by one
            raise ParameterError(f"logger.wandb.{key}", names_of, f"expected a list; give [{names_of}]")
    aliases = [str(alias) for alias in aliases]
    if any(character in alias for alias in aliases for character in "/:"):
        raise ParameterError("logger.wandb.aliases", aliases, "expected names without / and :")
    if not is_rank_zero():
        return WandbLogger(save_dir=save_dir)  # which leaves the logging to rank zero
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str | None] = dict(zip(("group", "name", "job_type"), run_names(folder), strict=True))
    given = {k: v for k, v in (("group", group), ("name", name), ("job_type", job_type)) if v}
    names |= {"project": project, "entity": entity, "id": _run_id(folder)}
    options: dict[str, Any] = {
        **(_agents_names() or names),
        **given,
        "dir": str(folder),
        "resume": "allow",
        "settings": _settings(),
        "tags": [str(tag) for tag in tags if tag],
    }
    # Not left to Lightning, which passes settings that W&B warns of.
    run = _begin(folder, partial(wandb.init, **options))
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return RegisteringLogger(registry, aliases, save_dir=str(folder), experiment=run)


class RegisteringLogger(WandbLogger):
    """A WandbLogger that knows what the detector is called.

    Args:
        registry: to which the detector is linked; None for none.
        aliases: of the detector, beside "latest".
        options: of Lightning's.
    """

    def __init__(self, registry: str | None, aliases: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.registry = registry
        self.aliases = ["latest", *aliases]


def _settings() -> wandb.Settings:
    options: dict[str, Any] = {"silent": True, "init_timeout": 30.0, "finish_timeout": UPLOAD}
    return wandb.Settings(**{k: v for k, v in options.items() if k in wandb.Settings.model_fields})


def _begin(folder: Path, init: Callable[..., wandb.Run]) -> wandb.Run:
    """Begin a run online, or offline where that can't be, with a line that says which."""
    mode = os.environ.get("WANDB_MODE", "online")
    reason = offline_reason() if mode == "online" else f"WANDB_MODE={mode}"
    if reason is None:
        try:
            run = init(mode="online")
            print(f"wandb    {run.url}", flush=True)
            return run
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"logger=wandb: {error}; give a valid key by wandb login, or WANDB_MODE=offline") from error
        except wandb.errors.CommError as error:
            reason = str(error)
    if mode != "disabled":
        pattern = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
        print(f"wandb    offline, {reason}; upload later: wandb sync {pattern}", flush=True)
    return init(mode="offline" if mode == "online" else mode)


def _agents_names() -> dict[str, str | None] | None:
    """Return id, project and team of the run that an agent of a W&B sweep asks for, None where none does."""
    if "WANDB_SWEEP_ID" not in os.environ or "WANDB_RUN_ID" not in os.environ:
        return None
    return {name: os.environ.get(f"WANDB_{name.upper()}") for name in ("project", "entity")} | {
        "id": os.environ["WANDB_RUN_ID"]
    }


def _run_id(folder: Path) -> str:
    """Return the same id for every attempt at a run, so that one which was killed resumes the same W&B run."""
    path = folder / "wandb" / "id"
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


def log_results(logger: WandbLogger, folder: Path, metrics: Mapping) -> None:
    """Log what a finished run folder holds: the ROC, the scores, a table of the test images, figures, the detector.

    Args:
        logger: from `wandb_logger`.
        folder: the run folder.
        metrics: what metrics.json holds.
    """
    # What waits for its upload would else lie in the home folder, which a cluster's node may not share.
    data_dir = os.environ.get(wandb.env.DATA_DIR)
    os.environ[wandb.env.DATA_DIR] = data_dir or str(folder.resolve() / "wandb")
    try:
        _log_results(logger.experiment, folder, metrics)
        registry, aliases = None, ["latest"]
        if isinstance(logger, RegisteringLogger):  # else it is one of the user's own
            registry, aliases = logger.registry, logger.aliases
        _log_detector(logger.experiment, _artifact(folder, metrics), registry, aliases)
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


def _log_detector(run: wandb.Run, artifact: wandb.Artifact, registry: str | None, aliases: Sequence[str]) -> None:
    """Log the detector, and link it to the registry; where that can't be, say so and keep the run."""
    run.log_artifact(artifact, aliases=list(aliases))
    if registry is None:
        return
    target = f"wandb-registry-{registry}/{artifact.name.partition(':')[0]}"
    try:
        if run.offline:
            raise ValueError("this run is offline; link it on its page after the upload")
        run.link_artifact(artifact, target, aliases=list(aliases))
    except (wandb.errors.Error, ValueError) as error:
        print(f"warning: the detector is not linked to {target}: {error}", flush=True)


def _artifact(folder: Path, metrics: Mapping) -> wandb.Artifact:
    about = {k: v for k, v in metrics.items() if v is not None}
    name = re.sub(r"[^\w.-]", "_", f"detector-{metrics['category']}", flags=re.ASCII)
    artifact = wandb.Artifact(name, "detector", description=metrics["data_source"], metadata=about)
    for path in (folder / name for name in DETECTOR_FILES):
        if path.is_file():
            artifact.add_file(str(path))
    return artifact


def _image_table(rows: Sequence[Mapping[str, str]], folder: Path) -> wandb.Table:
    table = wandb.Table(columns=list(_COLUMNS))
    for row in rows:
        label = int(row["label"])
        anomalous = int(row["anomalous"])
        overlay = folder / overlay_path(Path(row["kind"], row["name"]))
        picture = wandb.Image(str(overlay)) if overlay.is_file() else None
        found = outcome(bool(anomalous), label)
        table.add_data(row["path"], row["kind"], label, float(row["score"]), anomalous, found, picture)
    return table


def _distributions(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    scores = [float(row["score"]) for row in rows]
    labels = [int(row["label"]) for row in rows]
    found: dict[str, Any] = {}
    for label, name in ((0, "normal"), (1, "anomalous")):
        chosen = [score for score, one in zip(scores, labels, strict=True) if one == label]
        if chosen:
            found[f"test/scores_{name}"] = wandb.Histogram(chosen)
    if len(found) == 2:
        found["test/roc"] = _roc(scores, labels)
    return found


def _roc(scores: Sequence[float], labels: Sequence[int]) -> wandb.plot.CustomChart:
    curve = roc_curve(scores, labels)
    points = [list(point) for point in zip(curve.x.tolist(), curve.y.tolist(), strict=True)]
    table = wandb.Table(columns=["false positive rate", "true positive rate"], data=points)
    return wandb.plot.line(table, "false positive rate", "true positive rate", title="ROC")
