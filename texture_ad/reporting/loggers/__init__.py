"""The loggers of a run: opened together, given the results, and closed as finished or as failed."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig


@contextmanager
def open_loggers(config: DictConfig | None) -> Iterator[list[Logger]]:
    """The loggers of the group `logger`, whose runs end as failed when an exception leaves the block."""
    loggers: list[Logger] = []
    try:
        for options in (config or {}).values():
            loggers.append(instantiate(options))
        yield loggers
    except BaseException:
        _close(loggers, "failed")
        raise
    _close(loggers, "success")


def _close(loggers: Sequence[Logger], status: str) -> None:
    for logger in loggers:
        logger.finalize(status)
    # Lightning leaves W&B's run open, and Python's end would close it as finished.
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish(exit_code=int(status != "success"))


def log_results(loggers: Sequence[Logger], folder: Path, metrics: Mapping) -> None:
    """The test's metrics to every logger, and to those that can show them the figures, test images and detector.

    Args:
        loggers: from `open_loggers`.
        folder: of the run.
        metrics: what metrics.json holds.
    """
    for logger in loggers:
        logger.log_metrics({f"test/{k}": v for k, v in metrics.items() if isinstance(v, float)})
        if isinstance(logger, TensorBoardLogger):
            import numpy as np
            from PIL import Image

            for path in sorted(folder.glob("*.png")):
                with Image.open(path) as picture:
                    logger.experiment.add_image(path.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            from texture_ad.reporting.loggers import wandb

            wandb.log_results(logger, folder, metrics)
