"""Sparse codes: orthogonal matching pursuit (equation 7) by SPAMS or by torch, reduced to residuals.

Shapes: signals (N, C), atoms (K, C) with unit-norm rows; Fortran (C, N) and (C, K) at the SPAMS boundary only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor


@contextmanager
def own_threads() -> Iterator[None]:
    """Keeps SPAMS's number of threads from torch.

    SPAMS sets OpenMP's for the whole process, and the last digits of torch's convolutions depend on it: what came
    before a call would differ from what comes after it, and a resumed run from an undisturbed one.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def omp_spams(signals: Tensor, atoms: Tensor, nonzeros: int, error: float, threads: int = -1):
    """Sparse codes as a scipy CSC matrix (K, N); see `residuals` for the arguments."""
    import spams

    # A contiguous (N, C) tensor is, transposed, the Fortran (C, N) array that SPAMS wants: no copy.
    x = signals.contiguous().numpy().T
    d = atoms.contiguous().numpy().T
    with own_threads():
        return spams.omp(x, d, L=nonzeros, eps=error, numThreads=threads)


def residuals(signals: Tensor, atoms: Tensor, nonzeros: int, error: float = 0.0, coder: str = "spams") -> Tensor:
    """Squared reconstruction error of each signal, ||y - D x||^2 with greedily chosen sparse x.

    Args:
        signals: float32 (N, C).
        atoms: float32 (K, C), unit-norm rows.
        nonzeros: OMP's limit on the non-zero coefficients, 1 to C.
        error: OMP stops where the squared error is at most this (the paper's xi, squared); 0 for no bound.
        coder: "spams" (CPU), "torch" (any device), or "auto": spams on a CPU where it is installed, torch elsewhere.

    Returns:
        (N,), at least 0.
    """
    if coder == "auto":
        coder = "spams" if signals.device.type == "cpu" and find_spec("spams") else "torch"
    if coder == "torch":
        return omp_residuals_torch(signals, atoms, nonzeros, error)
    codes = omp_spams(signals, atoms, nonzeros, error)
    d = atoms.numpy()
    y = signals.numpy()
    reconstruction = (codes.T @ d).astype(np.float32, copy=False)  # (N, K) sparse times (K, C)
    return torch.from_numpy(np.square(y - reconstruction).sum(1)).to(signals.device)


def omp_residuals_torch(signals: Tensor, atoms: Tensor, nonzeros: int, error: float = 0.0) -> Tensor:
    """`residuals` by batched pursuit on the Gram matrix, on the signals' device.

    As SPAMS does, each step takes the atom that lowers the error most once the chosen ones are projected out
    (order recursive matching pursuit; Gharavi-Alkhansari and Huang, A fast orthogonal matching pursuit
    algorithm, ICASSP 1998). Chosen atoms become an orthonormal basis; only its products with all atoms are kept.
    """
    gram = atoms @ atoms.T
    alpha = signals @ atoms.T  # products of the residual with every atom
    left = torch.ones_like(alpha)  # squared norms of the atoms, the basis projected out
    energy = signals.square().sum(1)
    basis: list[Tensor] = []
    for _ in range(nonzeros):
        gain = torch.where(left > 1e-6, alpha.square() / left, 0.0)
        best, chosen = gain.max(1, keepdim=True)
        going = energy[:, None] > error
        direction = gram[chosen[:, 0]]
        for b in basis:
            direction = direction - b.gather(1, chosen) * b
        direction = direction / left.gather(1, chosen).clamp(min=1e-6).sqrt()
        basis.append(direction)
        step = torch.where(going, alpha.gather(1, chosen) / left.gather(1, chosen).clamp(min=1e-6).sqrt(), 0.0)
        energy = energy - torch.where(going, best, 0.0)[:, 0]
        alpha = alpha - step * direction
        left = left - direction.square()
    return energy.clamp(min=0)
