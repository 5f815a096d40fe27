"""Checkpoints that are complete or absent, and that hold no code."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from texture_ad.errors import UserError
from texture_ad.files import save_atomic


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically, and read them without running code.

    Lightning's own writer goes through the system's folder for temporary files, from which a file can't be renamed
    where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint atomically."""
        save_atomic(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values.

        Raises:
            UserError: another file, or a damaged one.
        """
        try:
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)
        except Exception as error:
            raise UserError(
                f"{path}: not a checkpoint of this program, or damaged; remove it, and what it holds is made anew"
            ) from error


class SaveEpochs(Checkpoint):
    """Save at every epoch's end, which ModelCheckpoint leaves out where no optimizer has stepped or nothing improved.

    A Checkpoint, because those come after the module's own end of the epoch.

    Args:
        folder: of the stage.
    """

    def __init__(self, folder: Path):
        self.path = folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save last.ckpt."""
        trainer.save_checkpoint(self.path)


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of a stage's last checkpoint, None where there is none."""
    path = folder / "last.ckpt"
    return str(path) if path.is_file() else None
