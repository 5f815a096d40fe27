"""The schedule of learning rates that both modules of stage 1 train by."""

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimizer: Optimizer, batches: float, rise: float) -> OptimizerLRSchedulerConfig:
    """Return an optimizer with a one-cycle schedule whose peaks are its own learning rates.

    Args:
        optimizer: with the peak of every group as its rate.
        batches: that the trainer estimates to step over.
        rise: share of the steps until the peak.
    """
    steps = max(2, int(batches))
    # OneCycleLR divides by zero where its rise lasts exactly one step.
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = OneCycleLR(optimizer, peaks, steps, pct_start=max(rise, 1.5 / steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
