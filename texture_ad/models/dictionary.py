"""Stage 2: SPAMS learns atoms from the patch features as they stream by (the paper's equation 8).

Mairal et al.: Online learning for matrix factorization and sparse coding, JMLR 2010.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.distributed import gather
from texture_ad.errors import check_number
from texture_ad.models.detector import Detector
from texture_ad.models.sparse import own_threads, residuals

LOGGED = 512  # signals of a batch, at most, whose residual is logged


def initial_atoms(signals: Tensor, count: int, seed: int) -> Tensor:
    """`count` random signals of (N, C) scaled to unit norm, (count, C); repeated with noise if N is smaller."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(signals), (count,), generator=generator)
    index[: min(count, len(signals))] = torch.randperm(len(signals), generator=generator)[:count]
    drawn = signals[index] + 1e-3 * torch.randn(count, signals.shape[1], generator=generator)
    return F.normalize(drawn, dim=1)


def update_atoms(signals: Tensor, atoms: Tensor, statistics: dict | None, lambda1: float, iterations: int,
                 batch: int, threads: int) -> tuple[Tensor, dict]:  # fmt: skip
    """One call of `spams.trainDL`, warm-started from its own statistics.

    Args:
        signals: float32 (N, C).
        atoms: (K, C), unit-norm rows.
        statistics: what the last call returned (A, B and the iteration count), or None at the start.
        lambda1: the l1 weight, equation 8's beta.
        iterations, batch: mini-batches drawn from the signals, and the signals in each.
        threads: -1 for all cores.

    Returns:
        The new atoms (K, C), unit-norm rows, and SPAMS's statistics.
    """
    import spams

    x = signals.contiguous().numpy().T
    # The objective with 1/2 ||y - D x||^2 is equation 8 divided by two, up to lambda1's scale.
    with own_threads(threads) as count:
        d, learnt = spams.trainDL(
            x, return_model=True, model=statistics, D=np.asfortranarray(atoms.numpy().T), lambda1=lambda1,
            iter=iterations, batchsize=min(batch, len(signals)), numThreads=count, verbose=False,
        )  # fmt: skip
    # SPAMS keeps the norms at most 1: an atom that nothing uses may shrink below.
    return F.normalize(torch.from_numpy(np.ascontiguousarray(d.T)), dim=1), learnt


class Dictionary(L.LightningModule):
    """Epoch 0 streams mean and covariance for whitening, epoch 1 those of each position, every later one the atoms.

    Few iterations are better than many: atoms that reconstruct normal patches ever better come to reconstruct defects
    too (experiments/README.md).

    SPAMS fits one batch's atoms in a thread of its own while the backbone extracts the next batch's features; the fits
    follow one another in order, so the result is that of one thread.

    Args:
        detector: whose atoms and statistics this fits.
        lambda1: above 0; iterations, batch: per batch of images, at least 1; threads: -1 for all cores.
        epochs: passes over the training images that update the atoms, at least 1.
        memory_mb: budget for patch features, which are then extracted once instead of in every epoch; at least 0.
        seed: of the initial atoms.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, detector: Detector, lambda1: float = 0.2, iterations: int = 4, batch: int = 512,
                 threads: int = -1, epochs: int = 1, memory_mb: int = 256, seed: int = 0):  # fmt: skip
        super().__init__()
        check_number("dictionary.lambda1", lambda1, 0, above=True)
        for key, value in (("iterations", iterations), ("batch", batch), ("epochs", epochs)):
            check_number(f"dictionary.{key}", value, 1, whole=True)
        check_number("dictionary.memory_mb", memory_mb, 0, whole=True)
        check_number("dictionary.threads", threads, -1, whole=True)
        self.automatic_optimization = False
        self.detector = detector
        self.lambda1, self.iterations, self.batch, self.threads = lambda1, iterations, batch, threads
        self.epochs, self.memory_mb, self.seed = epochs, memory_mb, seed
        self.statistics: dict | None = None
        self._fit: Future | None = None  # of the last batch, in the first process
        self._fitting = False
        self._kept: dict[int, Tensor] = {}
        dim = len(detector.mean)
        self.register_buffer("total", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("outer", torch.zeros(dim, dim, dtype=torch.float64))
        # Of the whitening at every position; of none where it is the same for all.
        position = detector.settings["whiten"] == "position" and detector.settings["features"] == "backbone"
        self.fitting_from = 2 if position else 1  # the first epoch that updates atoms
        positions, length = math.prod(detector.grid()) if position else 0, detector.basis.shape[1]
        self.register_buffer("position_total", torch.zeros(positions, length))
        self.register_buffer("position_outer", torch.zeros(positions, length, length))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def configure_optimizers(self):
        return None

    def on_fit_start(self) -> None:
        self.detector.requires_grad_(False)
        self._worker = ThreadPoolExecutor(1)

    def train(self, mode: bool = True):
        return super().train(False)

    def patch_features(self, images: Tensor, index: int) -> Tensor:
        """Patch features (N, C) of batch `index` of the training images: always the same, and kept while they fit."""
        if index in self._kept:
            return self._kept[index]
        patches = gather(self.detector.patch_features(images)[0])
        if sum(p.nbytes for p in self._kept.values()) + patches.nbytes <= self.memory_mb * 2**20:
            self._kept[index] = patches
        return patches

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        patches = self.patch_features(batch["image"], index)
        if self.current_epoch == 0:
            x = patches.double()
            self.total += x.sum(0)
            self.outer += x.T @ x
            self.count += len(x)
            return
        if self.current_epoch < self.fitting_from:
            x = self.detector.project(patches).view(-1, *self.position_total.shape).transpose(0, 1)
            self.position_total += x.sum(1)
            self.position_outer.baddbmm_(x.transpose(1, 2), x)
            return
        signals = self.detector.dictionary_features(patches).cpu()
        if self.statistics is None and index == 0 and self.current_epoch == self.fitting_from:
            self.detector.set_atoms(initial_atoms(signals, len(self.detector.atoms), self.seed))
        self.finish_fit()
        s, some = self.detector.settings, signals[:: -(-len(signals) // LOGGED)]
        left = residuals(some, self.detector.atoms.cpu(), s["nonzeros"], s["error"]).sqrt().mean()
        self.log("dictionary/residual", left, prog_bar=True)
        self._fitting = True
        if self.trainer.is_global_zero:  # fits on all processes' patches; the others wait for its atoms
            self._fit = self._worker.submit(update_atoms, signals, self.detector.atoms.cpu(), self.statistics,
                                            self.lambda1, self.iterations, self.batch, self.threads)  # fmt: skip

    def finish_fit(self) -> None:
        """Waits for the fit under way and takes over its atoms."""
        if self._fitting:
            self._fitting, atoms = False, None
            if self.trainer.is_global_zero:
                atoms, self.statistics = self._fit.result()
            self.detector.set_atoms(self.trainer.strategy.broadcast(atoms))

    def state_dict(self, *args, **kwargs) -> dict:
        self.finish_fit()
        return super().state_dict(*args, **kwargs)

    def on_train_epoch_end(self) -> None:
        self.finish_fit()
        if self.current_epoch == 0:
            mean = self.total / self.count
            covariance = self.outer / self.count - torch.outer(mean, mean)
            self.detector.set_whitening(mean.float().cpu(), covariance.float().cpu())
        elif self.current_epoch < self.fitting_from:
            images = int(self.count) // len(self.position_total)
            mean = self.position_total / images
            covariance = self.position_outer / images - mean[:, :, None] * mean[:, None]
            self.detector.set_position_whitening(mean, covariance, images)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.statistics is not None:
            checkpoint["spams"] = {
                k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else int(v)
                for k, v in self.statistics.items()
            }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        stored = {key.removeprefix("detector."): value for key, value in checkpoint["state_dict"].items()}
        self.detector.take_shapes(stored)
        if "spams" in checkpoint:
            self.statistics = {
                k: np.asfortranarray(v.numpy()) if isinstance(v, Tensor) else v for k, v in checkpoint["spams"].items()
            }

    @torch.no_grad()
    def standardise(self, loader) -> None:
        """Brings both scores to mean 0 and standard deviation 1 over the training images.

        Args:
            loader: of the batches that the atoms were learnt from, in the same order.
        """
        total, count = 0.0, 0
        for index, batch in enumerate(loader):
            patches = self.patch_features(batch["image"].to(self.device), index)
            scores = torch.stack(self.detector.patch_scores(patches)).double()
            total, count = total + torch.stack((scores, scores.square()), 1).sum(2), count + scores.shape[1]
        self._kept.clear()
        mean, square = (total / count).unbind(1)
        deviation = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.detector.patch_statistics.copy_(torch.stack((mean, deviation), 1))
