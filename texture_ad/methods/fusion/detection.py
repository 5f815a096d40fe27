"""Stage 2: SPAMS learns atoms from the patch features as they stream by (the paper's equation 8).

Mairal et al.: Online learning for matrix factorization and sparse coding, JMLR 2010.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.fusion.detector import Detector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.models.sparse import own_threads, residuals
from texture_ad.training.distributed import gather

LOGGED = 512  # features of a batch, at most, whose residual is logged


def initial_atoms(features: Tensor, count: int, seed: int) -> Tensor:
    """`count` random features of (N, C) scaled to unit norm, (count, C); repeated with noise if N is smaller."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(features), (count,), generator=generator)
    index[: min(count, len(features))] = torch.randperm(len(features), generator=generator)[:count]
    drawn = features[index] + 1e-3 * torch.randn(count, features.shape[1], generator=generator)
    return F.normalize(drawn, dim=1)


def update_atoms(
    features: Tensor, atoms: Tensor, statistics: dict | None, lambda1: float, iterations: int, batch: int, threads: int
) -> tuple[Tensor, dict]:
    """One call of `spams.trainDL`, warm-started from its own statistics.

    Args:
        features: float32 (N, C).
        atoms: (K, C), unit-norm rows.
        statistics: what the last call returned (A, B and the iteration count), or None at the start.
        lambda1: the l1 weight, equation 8's beta.
        iterations, batch: mini-batches drawn from the features, and the features in each.
        threads: -1 for all cores.

    Returns:
        The new atoms (K, C), unit-norm rows, and SPAMS's statistics.
    """
    import spams

    x = features.contiguous().numpy().T
    # The objective with 1/2 ||y - D x||^2 is equation 8 divided by two, up to lambda1's scale.
    with own_threads(threads) as count:
        d, learnt = spams.trainDL(
            x,
            return_model=True,
            model=statistics,
            D=np.asfortranarray(atoms.numpy().T),
            lambda1=lambda1,
            iter=iterations,
            batchsize=min(batch, len(features)),
            numThreads=count,
            verbose=False,
        )
    # SPAMS keeps the norms at most 1: an atom that nothing uses may shrink below.
    return F.normalize(torch.from_numpy(np.ascontiguousarray(d.T)), dim=1), learnt


class Dictionary(L.LightningModule):
    """Every epoch streams the training images' features past the atoms, batch by batch.

    Few iterations are better than many: atoms that reconstruct normal patches ever better come to reconstruct defects
    too (experiments/README.md).

    SPAMS fits one batch's atoms in a thread of its own while the backbone extracts the next batch's features; the fits
    follow one another in order, so the result is that of one thread.

    Args:
        detector: whose atoms and statistics this fits.
        features: the training images' patch features, as its backbone gives them.
        lambda1: above 0; iterations, batch: per batch of images, at least 1; threads: -1 for all cores.
        epochs: passes over the training images, at least 1.
        seed: of the initial atoms.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(
        self,
        detector: Detector,
        features: TrainingFeatures,
        lambda1: float = 0.2,
        iterations: int = 4,
        batch: int = 512,
        threads: int = -1,
        epochs: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        check_number("dictionary.lambda1", lambda1, 0, above=True)
        for key, value in (("iterations", iterations), ("batch", batch), ("epochs", epochs)):
            check_number(f"dictionary.{key}", value, 1, whole=True)
        check_number("dictionary.threads", threads, -1, whole=True)
        self.automatic_optimization = False
        self.detector = detector
        self.features = features
        self.lambda1 = lambda1
        self.iterations = iterations
        self.batch = batch
        self.threads = threads
        self.epochs = epochs
        self.seed = seed
        self.statistics: dict | None = None
        self._fit: Future | None = None  # of the last batch, in the first process
        self._fitting = False

    def configure_optimizers(self):
        return None

    def on_fit_start(self) -> None:
        self.detector.requires_grad_(False)
        self._worker = ThreadPoolExecutor(1)

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        patches = self.features.of_all_processes(batch, self.device).flatten(0, 1)
        features = self.detector.dictionary_features(patches).cpu()
        if self.statistics is None and index == 0 and self.current_epoch == 0:
            self.detector.set_atoms(initial_atoms(features, len(self.detector.atoms), self.seed))
        self.finish_fit()
        s = self.detector.settings
        some = features[:: -(-len(features) // LOGGED)]
        left = residuals(some, self.detector.atoms.cpu(), s["nonzeros"], s["error"]).sqrt().mean()
        self.log("dictionary/residual", left, prog_bar=True)
        self._fitting = True
        if self.trainer.is_global_zero:  # fits on all processes' patches; the others wait for its atoms
            self._fit = self._worker.submit(
                update_atoms,
                features,
                self.detector.atoms.cpu(),
                self.statistics,
                self.lambda1,
                self.iterations,
                self.batch,
                self.threads,
            )

    def finish_fit(self) -> None:
        """Waits for the fit under way and takes over its atoms."""
        if self._fitting:
            self._fitting = False
            atoms = None
            if self.trainer.is_global_zero:
                atoms, self.statistics = self._fit.result()
            self.detector.set_atoms(self.trainer.strategy.broadcast(atoms))

    def state_dict(self, *args, **kwargs) -> dict:
        self.finish_fit()
        return super().state_dict(*args, **kwargs)

    def on_train_epoch_end(self) -> None:
        self.finish_fit()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.statistics is not None:
            checkpoint["spams"] = {
                k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else int(v)
                for k, v in self.statistics.items()
            }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "spams" in checkpoint:
            self.statistics = {
                k: np.asfortranarray(v.numpy()) if isinstance(v, Tensor) else v for k, v in checkpoint["spams"].items()
            }

    @torch.no_grad()
    def standardise(self, loader) -> None:
        """Brings both scores to mean 0 and standard deviation 1 over the patches of a loader's images.

        Not the training images: the flow and the atoms know those too well, each in its own measure.
        """
        total = 0.0
        count = 0
        for batch in loader:
            patches = gather(self.detector.patch_features(batch["image"].to(self.device))[0])
            scores = torch.stack(self.detector.patch_scores(patches)).double()
            total = total + torch.stack((scores, scores.square()), 1).sum(2)
            count = count + scores.shape[1]
        mean, square = (total / count).unbind(1)
        deviation = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.detector.patch_statistics.copy_(torch.stack((mean, deviation), 1))
