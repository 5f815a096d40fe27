"""Sparse codes by orthogonal matching pursuit (equation 7 of Guo, Song, Ma), reduced to residuals.

Shapes: features (N, C), atoms (K, C) with unit-norm rows; Fortran (C, N) and (C, K) at the SPAMS boundary only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from texture_ad.models.slices import in_slices

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix
    from threadpoolctl import ThreadpoolController

SLICE = 2**19  # products with the atoms of the features in a slice


@contextmanager
def own_threads(threads: int) -> Iterator[int]:
    """Keep SPAMS's number of threads from torch, and give it: for -1 torch's, a job's share of the machine.

    SPAMS sets OpenMP's for the whole process, and the last digits of torch's convolutions depend on it: what came
    before a call would differ from what comes after it, and a resumed run from an undisturbed one. SPAMS's own BLAS has
    one thread meanwhile: others would spin on after each product and keep SPAMS's from the cores. So 2048 feature
    vectors took 19 ms instead of 28 on 2 cores.
    """
    torchs = torch.get_num_threads()
    try:
        with spams_blas().limit(limits=1):
            yield torchs if threads == -1 else threads
    finally:
        torch.set_num_threads(torchs)


@cache  # to look through the loaded libraries takes longer than a call
def spams_blas() -> "ThreadpoolController":
    """Return the controller of the threads of SPAMS's own BLAS."""
    import spams  # noqa: F401, loads its BLAS
    from threadpoolctl import ThreadpoolController

    loaded = ThreadpoolController().select(user_api="blas")
    return loaded.select(filepath=[c.filepath for c in loaded.lib_controllers if "spams" in c.filepath])


def omp_spams(features: Tensor, atoms: Tensor, nonzeros: int, error: float) -> "csc_matrix":
    """Return SPAMS's sparse codes as a scipy CSC matrix (K, N).

    Args:
        features: float32 (N, C), on the CPU.
        atoms: float32 (K, C), unit-norm rows.
        nonzeros: limit on the non-zero coefficients of a code.
        error: pursuit stops where the squared error is at most this; 0 for no bound.
    """
    import spams

    # A contiguous (N, C) tensor is, transposed, the Fortran (C, N) array that SPAMS wants: no copy.
    x = features.contiguous().numpy().T
    d = atoms.contiguous().numpy().T
    with own_threads(-1) as count:
        return spams.omp(x, d, L=nonzeros, eps=error, numThreads=count)  # it reads eps, set or not


def residuals(features: Tensor, atoms: Tensor, gram: Tensor, nonzeros: int, error: float) -> Tensor:
    """Return the squared reconstruction error of each feature vector, ||y - D x||^2 with greedily chosen sparse x.

    Computed by batched pursuit on the Gram matrix, on the features' device. As SPAMS does, each step takes the atom
    that lowers the error most once the chosen ones are projected out (order recursive matching pursuit;
    Gharavi-Alkhansari and Huang, A fast orthogonal matching pursuit algorithm, ICASSP 1998).

    Args:
        features: float32 (N, C).
        atoms: float32 (K, C), unit-norm rows.
        gram: atoms @ atoms.T, (K, K).
        nonzeros: limit on the non-zero coefficients of a code, 1 to C.
        error: pursuit stops where the squared error is at most this (xi of Guo, Song, Ma, squared); 0 for no bound.

    Returns:
        (N,), at least 0.
    """
    pursue = partial(_pursue, atoms=atoms, gram=gram, nonzeros=nonzeros, error=error)
    return in_slices(pursue, features, SLICE // len(atoms))


def _largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row of (N, K) and its column, (N, 1) each.

    First over 16 interleaved parts: on a CPU torch's max that gives the columns too is many times slower than amax.
    """
    if values.shape[1] % 16:
        return values.max(1, keepdim=True)
    parts = values.unflatten(1, (16, -1))
    best, column = parts.amax(1).max(1, keepdim=True)
    part = parts.gather(2, column[:, None].expand(-1, 16, 1)).argmax(1)
    return best, part * parts.shape[2] + column


def _pursue(features: Tensor, atoms: Tensor, gram: Tensor, nonzeros: int, error: float) -> Tensor:
    """Return `residuals` of a slice.

    Chosen atoms become an orthonormal basis, of which only the products with all atoms are kept.
    """
    alpha = features @ atoms.T  # products of the residual with every atom
    left = torch.ones_like(alpha)  # squared norms of the atoms, the basis projected out
    energy = features.square().sum(1, keepdim=True)
    gain = torch.empty_like(alpha)  # one buffer: a new one in each step would cost more than the arithmetic
    basis: list[Tensor] = []
    for step in range(nonzeros):
        best, chosen = _largest(torch.mul(alpha, alpha, out=gain).div_(left))
        energy = torch.where(energy > error, energy - best, energy)
        if step == nonzeros - 1:
            break
        direction = gram.index_select(0, chosen[:, 0])
        for b in basis:
            direction.addcmul_(b, b.gather(1, chosen), value=-1)
        scale = left.gather(1, chosen).rsqrt()
        direction *= scale
        basis.append(direction)
        alpha.addcmul_(direction, alpha.gather(1, chosen) * scale, value=-1)
        # A chosen atom has nothing left, and no product with the residual: the bound keeps it from being chosen again.
        left.addcmul_(direction, direction, value=-1).clamp_(min=1e-6)
    return energy[:, 0].clamp(min=0)
