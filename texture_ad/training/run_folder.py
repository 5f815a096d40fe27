"""The run folder: ready for its first run, or for resuming one that was killed."""

import os
from pathlib import Path

from texture_ad.errors import ParameterError


def prepare_folder(folder: Path) -> None:
    """Make a run folder ready.

    Half-written files that a kill left are removed, and the log of the earlier part is kept under a number.

    Raises:
        ParameterError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob("*.partial"):
            leftover.unlink()
        log = folder / "logs" / "metrics.csv"
        if log.is_file():
            number = 1 + len(list(log.parent.glob("metrics_*.csv")))
            os.replace(log, log.with_name(f"metrics_{number}.csv"))
    except OSError as error:
        problem = f"can't be written ({error.strerror}); give a writable folder"
        raise ParameterError("run_dir", folder, problem) from error


def holds_run(folder: Path) -> bool:
    """Return whether a run in this folder can be resumed, or has come to a detector."""
    if not (folder / "config.yaml").is_file():
        return False
    return (folder / "detector.pt").is_file() or any(folder.glob("stage*/last.ckpt"))
