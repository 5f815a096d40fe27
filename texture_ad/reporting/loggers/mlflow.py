"""Log to MLflow: to a server where one is given, otherwise to a file beside the run folder."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger

from texture_ad.environment import not_installed
from texture_ad.errors import UserError
from texture_ad.files import write_text
from texture_ad.reporting.loggers import DETECTOR_FILES
from texture_ad.training.distributed import is_rank_zero


def mlflow_logger(save_dir: str, experiment_name: str, run_name: str | None, tracking_uri: str | None) -> MLFlowLogger:
    """Return an MLFlowLogger whose run has begun; a run that resumes is the same run of MLflow's.

    Args:
        save_dir: the run folder.
        experiment_name: of the server.
        run_name: of the run, None for the run folder's name.
        tracking_uri: the server's address, None for MLFLOW_TRACKING_URI, or without that for mlflow.db beside the run
            folder.

    Raises:
        UserError: MLflow is not installed, or can't be reached.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing goes where the user did not send it
    with _users_error():
        folder = Path(save_dir).resolve()
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        kept = folder / "mlflow" / "id"
        logger = MLFlowLogger(
            experiment_name,
            run_name or folder.name,
            uri or f"sqlite:///{folder.parent / 'mlflow.db'}",
            artifact_location=None if uri else (folder.parent / "mlflow").as_uri(),
            run_id=kept.read_text() if kept.is_file() else None,
        )
        if is_rank_zero():
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / "mlflow.lock"):  # jobs side by side would each make the file's tables
                write_text(kept, str(logger.run_id))
            print(f"mlflow   {uri or f'mlflow ui --backend-store-uri {logger._tracking_uri}'}", flush=True)
    return logger


@contextmanager
def _users_error() -> Iterator[None]:
    """Make one line of what MLflow raises."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"logger=mlflow: {not_installed(error.name or 'mlflow-skinny', 'mlflow')}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "mlflow":
            raise
        raise UserError(f"logger=mlflow: {error}; check logger.mlflow.tracking_uri") from error


def log_results(logger: MLFlowLogger, folder: Path) -> None:
    """Log the detector, with what belongs to it, and the figures of a finished run folder.

    Args:
        logger: from `mlflow_logger`.
        folder: the run folder.
    """
    for place, paths in (("detector", (folder / name for name in DETECTOR_FILES)), ("figures", folder.glob("*.png"))):
        for path in paths:
            if path.is_file():
                logger.experiment.log_artifact(logger.run_id, str(path), place)
