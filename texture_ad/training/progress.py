"""Show the progress of the stages and of the test: a bar each on a terminal, a line now and then elsewhere."""

import sys
import time
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

LINES_APART = 10.0  # seconds between two lines where there is no terminal


def _pace(task: Task) -> str:
    """Return the speed, and the time that is left or, at the end, was taken."""
    speed = task.finished_speed or task.speed
    seconds = task.elapsed if task.finished else task.time_remaining
    parts = [f"{speed:.3g} steps/s"] if speed else []
    if seconds is not None:
        parts.append(f"{timedelta(seconds=round(seconds))} {'taken' if task.finished else 'left'}")
    return "  ".join(parts)


class _Pace(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_pace(task))


class StageProgress(ProgressBar):
    """Show a stage's name, epoch, speed, time left and the values that it logs for the progress bar.

    A step of the dictionary's stage is one batch of images in SPAMS.

    Args:
        name: of the stage; a test is shown as "test".
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self._is_rank_zero = True
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but rank zero."""
        self._is_rank_zero = False

    def _open(self, name: str, total: int, done: int = 0) -> None:
        if not self._is_rank_zero:
            return
        # A notebook draws bars by widgets; without them it gets lines, as a file does.
        console = Console(file=sys.stdout, force_jupyter=None if find_spec("ipywidgets") else False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[epoch]}"),
            _Pace(),
            TextColumn("{task.fields[values]}"),
        )
        progress = Progress(*columns, console=console)
        progress.add_task(name.ljust(8), total=total, completed=done, epoch="", values="")
        self._progress = progress
        self._printed = time.monotonic()
        if console.is_terminal:
            progress.start()

    def _update(self, trainer: L.Trainer, advance: int = 0, **fields: str) -> None:
        if self._progress is None:
            return
        logged: dict[str, Any] = dict(self.get_metrics(trainer, trainer.lightning_module))
        shown = {name: float(value) for name, value in logged.items() if name != "v_num"}
        values = "  ".join(f"{name.rpartition('/')[2]} {value:.3g}" for name, value in shown.items())
        more: dict[str, Any] = {"values": values, **fields}
        self._progress.update(self._progress.task_ids[0], advance=advance, **more)
        waited = time.monotonic() - self._printed
        finished = self._progress.finished
        if waited >= LINES_APART and not (finished or self._progress.console.is_terminal):
            self._print(self._progress.tasks[0])

    def _print(self, task: Task) -> None:
        self._printed = time.monotonic()
        parts = (task.description, task.fields["epoch"], f"{task.percentage:.0f}%", _pace(task), task.fields["values"])
        print("  ".join(part for part in parts if part), flush=True)

    def _close(self) -> None:
        if self._progress is not None:
            if self._progress.console.is_terminal:
                self._progress.stop()
            else:
                self._print(self._progress.tasks[0])
            self._progress = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the stage's bar."""
        steps = int(trainer.num_training_batches)
        self._open(self.name, steps * (trainer.max_epochs or 1), steps * trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the epoch."""
        self._update(trainer, epoch=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        """Advance by a batch."""
        self._update(trainer, 1)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the epoch's values."""
        self._update(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the test's bar."""
        self._open("test", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        """Advance by a batch."""
        self._update(trainer, 1)

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        """Close the bar."""
        self._close()
