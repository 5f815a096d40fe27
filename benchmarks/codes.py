"""Rows about sparse codes: ours, SPAMS's and scikit-learn's, each library with its own default number of threads.

SPAMS and torch use all cores, scikit-learn one process. The goal is held to what the detector uses.
"""

from functools import partial

import numpy as np
import torch
from scipy.sparse import csc_matrix
from sklearn.decomposition import sparse_encode
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.comparison import Row, by_turns
from benchmarks.material import default_detector, default_lambda1, features, images, learn_atoms
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.sparse import omp_spams, own_threads, residuals

NONZEROS = 4


def lasso_weights(channels: int) -> dict[str, tuple[float, bool]]:
    """Return the l1 weights of the rows about SPAMS's lasso, and whether the goal is held to them.

    The usual one is that of Mairal et al. (Online learning for matrix factorization and sparse coding, JMLR 2010,
    section 6). The default's leaves one or two atoms a feature vector, so that there is less to be faster at.
    """
    default = default_lambda1()
    return {"λ₁ = 1.2/√m": (1.2 / channels**0.5, True), f"the default's λ₁ = {default}": (default, False)}


def spams_residuals(x: Tensor, atoms: Tensor, nonzeros: int) -> Tensor:
    """Return the squared errors (N,) of features (N, C) that SPAMS's codes of the atoms (K, C) leave."""
    codes = omp_spams(x, atoms, nonzeros, 0.0)
    return (x - torch.from_numpy(codes.T @ atoms.numpy())).square().sum(1)


def coders(quick: bool) -> list[Row]:
    """Compare what gives codes or their residuals, on features of three layers and on the default detector's."""
    repetitions = 2 if quick else 5
    x = features()[:8192]
    atoms = learn_atoms(x, 256, 1, 20, default_lambda1(), 1)
    return [
        *_pursuits(x, atoms, repetitions),
        *_lassos(x[:512].numpy(), atoms.numpy(), repetitions),
        *_detector_pursuits(repetitions),
    ]


def _pursuits(x: Tensor, atoms: Tensor, repetitions: int) -> list[Row]:
    """Compare orthogonal matching pursuit with scikit-learn's."""
    y = x.numpy()
    d = atoms.numpy()
    by_torch = partial(residuals, x, atoms, atoms @ atoms.T, NONZEROS, 0.0)
    by_spams = partial(omp_spams, x, atoms, NONZEROS, 0.0)
    by_sklearn = partial(sparse_encode, y, d, algorithm="omp", n_nonzero_coefs=NONZEROS)
    errors = (
        _mean_error(y, d, by_spams().T),
        float(by_torch().mean()),
        _mean_error(y, d, by_sklearn()),
    )
    note = "mean squared error: SPAMS {:.4f}, torch {:.4f}, scikit-learn {:.4f}".format(*errors)
    rows = []
    for work, ours, goal in (("residuals by torch", by_torch, 10), ("codes by SPAMS", by_spams, None)):
        seconds = by_turns(ours, by_sklearn, repetitions=repetitions)
        name = f"OMP {work}, {NONZEROS} non-zeros"
        rows.append(Row(name, "scikit-learn sparse_encode", goal, *seconds, note=note))
    return rows


def _mean_error(y: np.ndarray, d: np.ndarray, codes: np.ndarray | csc_matrix) -> float:
    """Return the mean squared error of features (N, C) that codes (N, K) of the atoms (K, C) leave."""
    return float(np.square(y - codes @ d).sum(1).mean())


def _lassos(y: np.ndarray, d: np.ndarray, repetitions: int) -> list[Row]:
    """Compare SPAMS's lasso codes of features (N, C) by atoms (K, C) with scikit-learn's."""
    rows = []
    for name, (lambda1, held) in lasso_weights(y.shape[1]).items():
        ours = partial(_spams_lasso, y, d, lambda1)
        baseline = partial(sparse_encode, y, d, algorithm="lasso_lars", alpha=lambda1)
        difference = float(np.abs(ours().T.toarray() - baseline()).max())
        seconds = by_turns(ours, baseline, repetitions=repetitions, calls=3)
        rows.append(
            Row(
                f"lasso codes by SPAMS on the Gram matrix, {name}",
                "scikit-learn sparse_encode",
                30 if held else None,
                *seconds,
                note=f"largest difference of codes {difference:.1e}",
            )
        )
    return rows


def _spams_lasso(y: np.ndarray, d: np.ndarray, lambda1: float) -> csc_matrix:
    """Return SPAMS's lasso codes (K, N), by the Gram matrix of the atoms."""
    import spams

    with own_threads(-1) as threads, threadpool_limits(1, "blas"):
        return spams.lasso(y.T, Q=(d @ d.T).T, q=(y @ d.T).T, lambda1=lambda1, numThreads=threads)


@torch.no_grad()
def _detector_pursuits(repetitions: int) -> list[Row]:
    """Compare the default detector's residuals with SPAMS's, of one image and of a batch."""
    detector = default_detector()
    dictionary = detector.dictionary
    rows = []
    for count in (1, 32):
        maps = detector.patch_features(images("train")[:count])
        whitened = detector.whitening(flatten_patches(maps))
        z = detector.dictionary_features(whitened)
        by_torch = partial(residuals, z, dictionary.atoms, dictionary.gram, dictionary.nonzeros, dictionary.error)
        by_spams = partial(spams_residuals, z, dictionary.atoms, dictionary.nonzeros)
        seconds = by_turns(by_torch, by_spams, repetitions=repetitions, calls=3)
        work = f"OMP residuals by torch, {len(dictionary.atoms)} atoms, {len(z)} patch features"
        rows.append(Row(work, "by SPAMS, all cores", None, *seconds))
    return rows
