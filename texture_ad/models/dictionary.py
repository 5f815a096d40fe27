"""Stage 2: SPAMS learns atoms from the patch features as they stream by (the paper's equation 8).

Mairal et al.: Online learning for matrix factorization and sparse coding, JMLR 2010.
"""

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.models.detector import Detector
from texture_ad.models.sparse import own_threads


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
    with own_threads():
        d, learnt = spams.trainDL(
            x, return_model=True, model=statistics, D=np.asfortranarray(atoms.numpy().T), lambda1=lambda1,
            iter=iterations, batchsize=min(batch, len(signals)), numThreads=threads, verbose=False,
        )  # fmt: skip
    # SPAMS keeps the norms at most 1: an atom that nothing uses may shrink below.
    return F.normalize(torch.from_numpy(np.ascontiguousarray(d.T)), dim=1), learnt


class Dictionary(L.LightningModule):
    """Epoch 0 streams the mean and covariance (for whitening), every later epoch streams the atoms.

    Args:
        detector: whose atoms and statistics this fits.
        lambda1: above 0; iterations, batch: per batch of images, at least 1; threads: -1 for all cores.
        epochs: passes over the training images that update the atoms, at least 1.
        seed: of the initial atoms.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, detector: Detector, lambda1: float = 0.2, iterations: int = 20, batch: int = 512,
                 threads: int = -1, epochs: int = 2, seed: int = 0):  # fmt: skip
        super().__init__()
        check_number("dictionary.lambda1", lambda1, 0, above=True)
        for key, value in (("iterations", iterations), ("batch", batch), ("epochs", epochs)):
            check_number(f"dictionary.{key}", value, 1, whole=True)
        check_number("dictionary.threads", threads, -1, whole=True)
        self.automatic_optimization = False
        self.detector = detector
        self.lambda1, self.iterations, self.batch, self.threads = lambda1, iterations, batch, threads
        self.epochs, self.seed = epochs, seed
        self.statistics: dict | None = None
        dim = len(detector.mean)
        self.register_buffer("total", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("outer", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def configure_optimizers(self):
        return None

    def on_fit_start(self) -> None:
        self.detector.requires_grad_(False)

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        patches, _ = self.detector.patch_features(batch["image"])
        if self.current_epoch == 0:
            x = patches.double()
            self.total += x.sum(0)
            self.outer += x.T @ x
            self.count += len(x)
            return
        signals = self.detector.dictionary_features(patches).cpu()
        if self.statistics is None and index == 0 and self.current_epoch == 1:
            self.detector.atoms.copy_(initial_atoms(signals, len(self.detector.atoms), self.seed))
        atoms, self.statistics = update_atoms(
            signals, self.detector.atoms.cpu(), self.statistics, self.lambda1, self.iterations, self.batch, self.threads
        )
        self.detector.atoms.copy_(atoms)

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 0:
            mean = self.total / self.count
            covariance = self.outer / self.count - torch.outer(mean, mean)
            self.detector.set_whitening(mean.float().cpu(), covariance.float().cpu())

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
        """Brings both scores to mean 0 and standard deviation 1 over held-out normal patches."""
        detector = self.detector
        batches = (b["image"].to(self.device) for b in loader)
        scores = torch.cat([torch.stack(detector.patch_scores(detector.patch_features(b)[0])) for b in batches], 1)
        detector.patch_statistics.copy_(torch.stack((scores.mean(1), scores.std(1).clamp(min=1e-6)), 1))
