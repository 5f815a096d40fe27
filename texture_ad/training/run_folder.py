"""The run folder: ready for its first run, or for resuming one that was killed."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from texture_ad.errors import ParameterError
from texture_ad.files import lock, missing_folders, reason, remove_empty

# What a run writes before it trains; the log's is CSVLogger's.
NOTES = {"config.yaml", "copies.csv", "hydra/hydra.yaml", "hydra/overrides.yaml", "logs/hparams.yaml"}


def remove_refused(made: Sequence[Path]) -> bool:
    """Remove the folders that a run made and was refused in, before it had more to keep than NOTES.

    Args:
        made: the run's folder, if it was not there, and those that it lies in, the innermost first.

    Returns:
        Whether the run's folder is gone.
    """
    if not made or not made[0].is_dir():
        return False
    files = {path.relative_to(made[0]).as_posix() for path in made[0].rglob("*") if not path.is_dir()}
    if files - NOTES:
        return False
    shutil.rmtree(made[0], ignore_errors=True)
    remove_empty(made[1:])
    return True


@contextmanager
def prepared_folder(folder: Path) -> Iterator[None]:
    """Make a run folder ready, and keep other processes out of it.

    Half-written files that a kill left are removed, and the log of the earlier part is kept under a number. A run that
    is refused before it trains leaves no folder that was not there.

    Raises:
        ParameterError: the folder can't be written.
        UserError: another process works there.
    """
    missing = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder, "wait for its end, or give another run_dir", folder / "run.lock")
        for leftover in folder.rglob("*.partial"):
            leftover.unlink()
        log = folder / "logs" / "metrics.csv"
        if log.is_file():
            number = 1 + len(list(log.parent.glob("metrics_*.csv")))
            os.replace(log, log.with_name(f"metrics_{number}.csv"))
    except OSError as error:
        problem = f"can't be written ({reason(error)}); give a writable folder"
        raise ParameterError("run_dir", folder, problem) from error
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                os.unlink(held.lock_file)
            held.release()
        remove_refused(missing)  # none but those of a refused run is


def check_fingerprint(folder: Path, fingerprint: str) -> None:
    """Check that a run that finished in this folder, if one did, was of images with this fingerprint.

    Raises:
        ParameterError: it was of others.
    """
    if read_metrics(folder).get("data_fingerprint", fingerprint) != fingerprint:
        problem = "its images changed since; give another run_dir, or remove this one to train anew"
        raise ParameterError("run_dir", folder, problem)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what a finished run's metrics.json holds, nothing of a run that has not finished."""
    path = folder / "metrics.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def holds_run(folder: Path) -> bool:
    """Return whether a run in this folder can be resumed, or has come to a detector."""
    if not (folder / "config.yaml").is_file():
        return False
    kept = (path for pattern in ("folds/*.pt", "**/stage*/last.ckpt") for path in folder.glob(pattern))
    return (folder / "detector.pt").is_file() or any(kept)
