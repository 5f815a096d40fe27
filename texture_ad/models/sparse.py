"""Sparse codes: orthogonal matching pursuit (equation 7) by SPAMS or by torch, reduced to residuals.

Shapes: signals (N, C), atoms (K, C) with unit-norm rows; Fortran (C, N) and (C, K) at the SPAMS boundary only.
"""

import numpy as np
import torch
from torch import Tensor


def omp_spams(signals: Tensor, atoms: Tensor, nonzeros: int, error: float, threads: int = -1):
    """Sparse codes as a scipy CSC matrix (K, N); see `residuals` for the arguments."""
    import spams

    # A contiguous (N, C) tensor is, transposed, the Fortran (C, N) array that SPAMS wants: no copy.
    x = signals.contiguous().numpy().T
    d = atoms.contiguous().numpy().T
    return spams.omp(x, d, L=nonzeros, eps=error, numThreads=threads)


def residuals(signals: Tensor, atoms: Tensor, nonzeros: int, error: float = 0.0, coder: str = "spams") -> Tensor:
    """Squared reconstruction error of each signal, min over sparse x of ||y - D x||^2, greedily.

    Args:
        signals: float32 (N, C).
        atoms: float32 (K, C), unit-norm rows.
        nonzeros: OMP's limit on the non-zero coefficients, 1 to C.
        error: OMP stops where the squared error is at most this (the paper's xi, squared); 0 for no bound.
        coder: "spams" (CPU) or "torch" (any device).

    Returns:
        (N,), at least 0.
    """
    if coder == "torch":
        return omp_residuals_torch(signals, atoms, nonzeros, error)
    codes = omp_spams(signals, atoms, nonzeros, error)
    d = atoms.numpy()
    y = signals.numpy()
    reconstruction = (codes.T @ d).astype(np.float32, copy=False)  # (N, K) sparse times (K, C)
    return torch.from_numpy(np.square(y - reconstruction).sum(1)).to(signals.device)


def omp_residuals_torch(signals: Tensor, atoms: Tensor, nonzeros: int, error: float = 0.0) -> Tensor:
    """`residuals` by batched OMP on the Gram matrix, on the signals' device.

    Each step solves the normal equations of the chosen atoms afresh; with few non-zeros that is cheaper than
    updating factors signal by signal. Rubinstein et al., Efficient implementation of the K-SVD algorithm, 2008.
    """
    gram = atoms @ atoms.T
    alpha0 = signals @ atoms.T
    alpha = alpha0
    energy = signals.square().sum(1)
    result = energy
    active = torch.ones_like(energy, dtype=torch.bool)
    chosen = torch.empty(len(signals), 0, dtype=torch.long, device=signals.device)
    for step in range(nonzeros):
        scores = alpha.abs()
        if step:
            scores = scores.scatter(1, chosen, -1.0)
        chosen = torch.cat((chosen, scores.argmax(1, keepdim=True)), 1)
        block = gram[chosen[:, :, None], chosen[:, None, :]]
        block = block + 1e-7 * torch.eye(step + 1, device=signals.device)
        target = alpha0.gather(1, chosen)
        code = torch.linalg.solve(block, target[..., None])[..., 0]
        error_now = energy - (code * target).sum(1)
        result = torch.where(active, error_now, result)
        active = active & (result > error)
        if error and not active.any():
            break
        if step + 1 < nonzeros:
            alpha = alpha0 - torch.einsum("nk,nkm->nm", code, gram[chosen])
    return result.clamp(min=0)
