"""Open the loggers of a run together, give them the results, and close them as finished or as failed."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

DETECTOR_FILES = ("detector.pt", "config.yaml", "metrics.json", "report.html")  # what is logged as the detector


@contextmanager
def open_loggers(factories: Iterable[Callable[[], Logger]]) -> Iterator[list[Logger]]:
    """Give loggers whose runs end as failed when an exception leaves the block, or while they are made.

    Args:
        factories: each makes one logger, and may open its run.
    """
    loggers: list[Logger] = []
    outer = _wandb_run()
    try:
        for make in factories:
            loggers.append(make())
        yield loggers
    except BaseException:
        _close(loggers, "failed", outer)
        raise
    _close(loggers, "success", outer)


def _wandb_run() -> object:
    """Return the run that is open in W&B, None without one."""
    return sys.modules["wandb"].run if "wandb" in sys.modules else None


def _close(loggers: Sequence[Logger], status: str, outer: object) -> None:
    """Close loggers with a status; the run of W&B that was open before them is the caller's and stays open."""
    for logger in loggers:
        logger.finalize(status)
    # Lightning leaves W&B's run open, and Python's end would close it as finished.
    if _wandb_run() not in (None, outer):
        sys.modules["wandb"].finish(exit_code=int(status != "success"))


def log_settings(loggers: Sequence[Logger], settings: dict[str, Any]) -> None:
    """Log the settings of a run to every logger; MLflow keeps those of its first part where it is resumed."""
    for logger in loggers:
        try:
            logger.log_hyperparams(settings)
        except Exception as error:
            if not (isinstance(logger, MLFlowLogger) and "Changing param values" in str(error)):
                raise
            print("warning: MLflow shows the settings of the run's first part; some have changed since", flush=True)


def log_results(loggers: Sequence[Logger], folder: Path, metrics: Mapping) -> None:
    """Log the metrics to every logger, and the figures, test images and detector to those that can show them.

    Args:
        loggers: from `open_loggers`.
        folder: the run folder.
        metrics: what metrics.json holds.
    """
    for logger in loggers:
        logger.log_metrics({f"test/{k}": v for k, v in metrics.items() if isinstance(v, float)})
        if isinstance(logger, TensorBoardLogger):
            _add_figures(logger, folder)
        elif isinstance(logger, WandbLogger):
            from texture_ad.reporting.loggers import wandb

            wandb.log_results(logger, folder, metrics)
        elif isinstance(logger, MLFlowLogger):
            from texture_ad.reporting.loggers import mlflow

            mlflow.log_results(logger, folder)


def _add_figures(logger: TensorBoardLogger, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            logger.experiment.add_image(path.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")
