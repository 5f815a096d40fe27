"""Lightning's trainer, as every stage and the test of a run use it."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import Logger

from texture_ad.errors import ParameterError, UserError
from texture_ad.parameters import Count, NonNegative, checked
from texture_ad.training.callbacks import Repeatable
from texture_ad.training.checkpoints import AtomicCheckpoints
from texture_ad.training.progress import StageProgress


@checked
def make_trainer(
    folder: Path,
    seed: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[L.Callback],
    max_epochs: Count | None,
    precision: Literal["32-true", "16-mixed", "bf16-mixed"],
    gradient_clip_val: NonNegative | None,
    accumulate_grad_batches: Count,
    enable_progress_bar: bool,
    **options: Any,
) -> L.Trainer:
    """Return a trainer whose runs can be resumed and repeated to the last digit.

    Args:
        folder: for checkpoints; its name is shown with the progress.
        seed: of the run.
        loggers: of the run.
        callbacks: of the stage.
        max_epochs: passes over the training images.
        precision: of the arithmetic.
        gradient_clip_val: norm to which gradients are clipped, None for no clipping.
        accumulate_grad_batches: batches in an optimiser's step.
        enable_progress_bar: show progress.
        options: further arguments of lightning.Trainer.

    Raises:
        ParameterError: a parameter out of its range, or an option that lightning.Trainer doesn't have.
        UserError: an option's value that lightning.Trainer refuses.
    """
    progress = [StageProgress(folder.name.replace("stage", "stage "))] if enable_progress_bar else []
    own: dict[str, Any] = {
        "default_root_dir": str(folder),
        "logger": list(loggers) or False,
        "callbacks": [*callbacks, *progress, Repeatable(seed)],
        "plugins": [AtomicCheckpoints()],
        "max_epochs": max_epochs,
        "precision": precision,
        "gradient_clip_val": gradient_clip_val,
        "accumulate_grad_batches": accumulate_grad_batches,
        "enable_progress_bar": enable_progress_bar,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    free = inspect.signature(L.Trainer).parameters.keys() - own.keys()
    for name in options.keys() - free:
        problem = f"nothing that can be set here; expected one of {', '.join(sorted(free))}"
        raise ParameterError(name, options[name], problem)
    try:
        return L.Trainer(**own, **options)
    except (TypeError, ValueError) as error:  # of a value: the names are right
        raise UserError(f"trainer: {error}") from error
