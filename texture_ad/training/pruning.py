"""Pruning: a search's trial whose training lags behind the other trials' is cut short."""

from typing import Any, Literal

import lightning as L

from texture_ad.parameters import NonNegativeInt, checked


@checked
class MedianPruning(L.Callback):
    """Stop the training of a trial whose best value so far is worse than the median of the others' at the same epoch.

    The trial then goes on with what it has learnt, as after early stopping, and its objective is measured: Hydra's
    plugin for Optuna counts a trial without one as failed.

    Args:
        trial: an optuna.trial.Trial of a study that maximises.
        monitor: logged value that is compared; it must mean the same in all trials.
        mode: whether a lower or a higher one is better.
        startup_trials: finished ones before any is pruned.
        warmup_epochs: of a trial before it is pruned.

    Attributes:
        pruned_epoch: after how many epochs the trial was pruned, None while it is not.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(
        self,
        trial: Any,
        monitor: str,
        mode: Literal["min", "max"],
        startup_trials: NonNegativeInt,
        warmup_epochs: NonNegativeInt,
    ):
        from optuna.pruners import MedianPruner

        self.trial = trial
        self.trial.study.pruner = MedianPruner(startup_trials, warmup_epochs)
        self.monitor = monitor
        self.sign = -1 if mode == "min" else 1
        self.pruned_epoch: int | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop at once if the trial was pruned before it was resumed."""
        trainer.should_stop = trainer.should_stop or self.pruned_epoch is not None

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Report the epoch's value to the study, and stop where it lags behind."""
        if trainer.sanity_checking:
            return
        self.trial.report(self.sign * float(trainer.callback_metrics[self.monitor]), trainer.current_epoch)
        if self.trial.should_prune():
            self.pruned_epoch = trainer.current_epoch + 1
            trainer.should_stop = True
            print(
                f"pruned   after {self.pruned_epoch} epochs: {self.monitor} lags behind the other trials'", flush=True
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed trial has to know."""
        return {"pruned_epoch": self.pruned_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.pruned_epoch = state_dict["pruned_epoch"]
