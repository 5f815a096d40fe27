"""Process rows in slices on a CPU, whose caches then hold all that a slice needs."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows", Tensor, tuple[Tensor, ...])


def in_slices(function: Callable[[Tensor], Rows], x: Tensor, count: int) -> Rows:
    """Return `function(x)`, computed for `count` rows of x (N, ...) at a time.

    Other devices than a CPU take all at once, and so does a graph that is exported, which has any number of rows.

    Args:
        function: returns a tensor or a tuple of tensors, each with a row for every row that it is given.
        x: of any type, rows first.
        count: of rows in a slice.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or len(x) <= count:
        return function(x)
    parts = [function(part) for part in x.split(max(1, count))]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
