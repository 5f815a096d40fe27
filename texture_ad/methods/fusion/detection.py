"""Stage 2: SPAMS learns atoms from the patch features as they stream by (equation 8 of Guo, Song, Ma)."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.models.dictionary import initial_atoms, update_atoms
from texture_ad.parameters import Count, NonNegativeInt, Positive, Range, checked
from texture_ad.training.distributed import gather

LOGGED = 512  # feature vectors of a batch, at most, whose residual is logged


@checked
class Detection(L.LightningModule):
    """Train the dictionary: stage 2. Every epoch streams the training images' features past the atoms.

    SPAMS fits one batch's atoms in a thread of its own while the backbone extracts the next batch's features; the fits
    follow one another in order, so the result is that of one thread.

    Args:
        detector: whose atoms are learnt.
        features: the training images' patch features, as its backbone gives them.
        lambda1: equation 8's beta.
        iterations: mini-batches altogether, spread over the batches of images, at least one for each.
        batch: feature vectors in a mini-batch.
        threads: of SPAMS, -1 for all cores.
        epochs: passes over the training images.
        seed: of the initial atoms.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(
        self,
        detector: FusionDetector,
        features: TrainingFeatures,
        lambda1: Positive,
        iterations: Count,
        batch: Count,
        threads: Annotated[int, Range(-1)],
        epochs: Count,
        seed: NonNegativeInt,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.detector = detector
        self.features = features
        self.lambda1 = lambda1
        self.iterations = iterations
        self.batch = batch
        self.threads = threads
        self.epochs = epochs
        self.seed = seed
        self.statistics: dict[str, Any] | None = None
        self._fit: Future | None = None  # of the last batch, on rank zero
        self._fitting = False

    def configure_optimizers(self) -> None:
        """Return none: SPAMS learns."""

    def on_fit_start(self) -> None:
        """Fix all but the atoms, and start the thread that SPAMS works in."""
        self.detector.requires_grad_(False)
        self._worker = ThreadPoolExecutor(1)

    def train(self, mode: bool = True) -> "Detection":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Hand a batch's features to SPAMS, after it has finished the batch before."""
        patches = self.features.of_all_processes(batch, self.device)
        numbers = gather(batch["index"].to(self.device))
        whitened = self.detector.whitening.cross_fitted(patches, numbers).flatten(0, 1)
        features = self.detector.dictionary_features(whitened)
        dictionary = self.detector.dictionary
        if self.statistics is None and index == 0 and self.current_epoch == 0:
            dictionary.set_atoms(initial_atoms(features.cpu(), len(dictionary.atoms), self.seed))
        self.finish_fit()
        some = features[:: -(-len(features) // LOGGED)]
        self.log("dictionary/residual", dictionary(some).mean(), prog_bar=True)
        self._fitting = True
        if self.trainer.is_global_zero:  # fits on all processes' patches; the others wait for its atoms
            self._fit = self._worker.submit(
                update_atoms,
                features.cpu(),
                dictionary.atoms.cpu(),
                self.statistics,
                self.lambda1,
                -(-self.iterations // (self.epochs * int(self.trainer.num_training_batches))),
                self.batch,
                self.threads,
            )

    def finish_fit(self) -> None:
        """Wait for the fit under way and take over its atoms."""
        if self._fitting:
            self._fitting = False
            atoms: Any = None
            if self._fit is not None:
                atoms, self.statistics = self._fit.result()
            self.detector.dictionary.set_atoms(self.trainer.strategy.broadcast(atoms))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state after the fit under way."""
        self.finish_fit()
        return super().state_dict(*args, **kwargs)

    def on_train_epoch_end(self) -> None:
        """Finish the fit under way."""
        self.finish_fit()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save SPAMS's statistics, so that a resumed run continues from them."""
        if self.statistics is not None:
            checkpoint["spams"] = {
                k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else int(v)
                for k, v in self.statistics.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load SPAMS's statistics."""
        if "spams" in checkpoint:
            self.statistics = {
                k: np.asfortranarray(v.numpy()) if isinstance(v, Tensor) else v for k, v in checkpoint["spams"].items()
            }
