"""Work in slices on a CPU, whose caches then hold all that a slice needs."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_slices(function: Callable, x: Tensor, count: int) -> Tensor | tuple[Tensor, ...]:
    """`function` of x (N, ...), which gives a tensor or a tuple of them, of N rows each; of `count` rows at a time.

    Other devices than a CPU take all at once, and so does a graph that is exported, which has any number of rows.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or len(x) <= count:
        return function(x)
    parts = [function(part) for part in x.split(max(1, count))]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))
