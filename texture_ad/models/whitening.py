"""Whitening of patch features: what the Gaussian, head, flow and dictionary model.

Whitening every position by itself is PaDiM's idea (Defard et al., ICPR 2021): each position of the image has a mean and
a covariance of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from texture_ad.errors import ParameterError
from texture_ad.parameters import Count, arguments_of, check, checked

RIDGE = 0.03  # times the features' mean variance
PRIOR = 8  # images: how much the statistics of all positions weigh at each single one
POSITIONS = 64  # whose matrices are computed at a time
FITTING = 16  # matrices of each position that a fit holds at once, with those of its folds
FOLDS = 3  # of the training images, for whitening each by statistics of the others
# The positions of a single image, or of copies of one, vary by nothing: length is then what the covariance makes of it
# that theirs are drawn towards, 1 in each direction.
ALIKE = 1e-5  # of that squared length, below which positions vary by nothing
QUARTERS = 4  # of a position, in which the finest layer has vectors of its own


@checked
class Whitening(nn.Module):
    """Decorrelate and scale patch features by the training set's covariance.

    Each layer is whitened by itself: what layers have in common is left in. Whitening keeps the `components`
    directions of most variance of each, and adds RIDGE of the layer's mean variance to each direction: features of a
    normal texture have many directions of almost no variance, whose noise would else drown the rest. Whitened features
    have a mean squared length of 1, so that the dictionary's `lambda1` means the same for every backbone.

    Where the finest layer's vectors in the quarters of a position come first, they are whitened as well, by statistics
    that the four share. These whitened quarters come first, and count nothing in that length.

    Args:
        channels: of each layer in the patch features; with those of the quarters their sum is C.
        mode: "position", by the covariance of the same position of the image; "global", by that of all positions;
            "channel", which standardises each channel for itself; "none", which centres and scales all features alike;
            or "auto", which is "position" unless the fit is told that positions mean nothing.
        components: directions that whitening keeps of each layer; with "channel" and "none" there are all channels.
        quarters: whether the finest layer's four quarters come first; see Backbone.patch_features.

    Attributes:
        lengths: of each layer in a whitened feature vector.
        length: of all layers in it, without quarters.
        width: of a whitened feature vector, with them.
        folds: center and matrix of all images but those of each fold; not saved.

    Raises:
        ParameterError: a parameter out of its range.
    """

    # Of each layer, and before them once of the quarters: c channels in all, k directions.
    mean: Tensor  # (c,)
    basis: Tensor  # (c, k)
    center: Tensor  # (positions, k), of all positions together (1) or, once fitted, of each
    matrix: Tensor  # (positions, squares), of each layer (l, l) and flat: between layers there is nothing to store
    count: Tensor  # (), feature vectors that each of center and matrix was fitted on
    energy: Tensor  # (), root mean square length of the whitened features before they are scaled to 1

    def __init__(
        self,
        channels: Sequence[int],
        mode: Literal["auto", "position", "global", "channel", "none"],
        components: Count,
        quarters: bool = False,
    ):
        super().__init__()
        for count in channels:
            check("channels", count, Count)
        self.settings = arguments_of(self) | {"channels": list(channels)}
        self.may_change = mode == "auto"
        self.mode = self.settings["mode"] = "position" if mode == "auto" else mode
        self.quarters = quarters
        first = [channels[0]] if quarters else []
        self.copies = [QUARTERS] * len(first) + [1] * len(channels)
        self.channels = [*first, *channels]
        self.kept = [min(components, count) if self.rotates else count for count in self.channels]
        self.lengths = self.kept[len(first) :]
        self.length = sum(self.lengths)
        self.width = sum(copies * length for copies, length in zip(self.copies, self.kept, strict=True))
        self.register_buffer("mean", torch.zeros(sum(self.channels)))
        self.register_buffer("basis", torch.eye(sum(self.channels), sum(self.kept)))
        self.register_buffer("center", torch.zeros(1, sum(self.kept)))
        self.register_buffer("matrix", _flat([torch.eye(length)[None] for length in self.kept]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("energy", torch.tensor(1.0))
        self.folds: list[tuple[Tensor, Tensor]] = []
        self._pictures: Tensor | None = None  # of the last fit

    @property
    def rotates(self) -> bool:
        """Return whether features are reduced to the directions of most variance."""
        return self.mode not in ("channel", "none")

    def memory(self, positions: int) -> tuple[int, int]:
        """Return the bytes that the statistics of so many positions take once fitted, and at most while they are."""
        matrix = self.matrix[0].nbytes * (positions if self.mode == "position" else 1)
        return matrix, FITTING * matrix

    def ignore_positions(self) -> None:
        """Whiten by all positions, before the fit; their places in the images mean nothing.

        Raises:
            ParameterError: whitening by position was asked for.
        """
        if self.mode == "position" and not self.may_change:
            problem = "positions of tiles are no places of the picture; expected auto, global or none but for strips"
            raise ParameterError("mode", "position", problem)
        if self.mode == "position":
            self.mode = self.settings["mode"] = "global"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("center", "matrix"):  # of one position or of many
            if prefix + name in state_dict:
                own = getattr(self, name)
                setattr(self, name, own.new_empty(len(state_dict[prefix + name]), *own.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit(self, patches: Callable[[], Iterable[Tensor]], pictures: Tensor | None = None) -> None:
        """Fit all statistics.

        Args:
            patches: streams the training set's patch features, (B, P, C) of P positions, anew at every call, always in
                the same order.
            pictures: see `refit`.
        """
        moments = _Moments(self.channels)
        shifts: list[Tensor] = []
        for batch in patches():
            layers = self._layers(batch.flatten(0, 1))
            # About a mean, so that single precision does for a batch's products.
            shifts = shifts or [layer.mean((0, 1)) for layer in layers]
            moments.add([(x - shift)[None] for x, shift in zip(layers, shifts, strict=True)], torch.float64)
        self.mean.copy_(torch.cat(shifts) + moments.mean()[0])
        if self.rotates:
            found = zip(_matrices(moments.covariance().cpu(), self.channels), self.kept, strict=True)
            self.basis.copy_(torch.block_diag(*(torch.linalg.eigh(layer[0])[1][:, -kept:] for layer, kept in found)))
        self.refit(patches(), pictures)

    def check_updatable(self) -> None:
        """Check that there is something for `update` to add to.

        Raises:
            ParameterError: mode "none", whose matrix holds no covariance.
        """
        if self.mode == "none":
            raise ParameterError("mode", self.mode, "keeps no covariance to add to; fit again on all images")

    @torch.no_grad()
    def update(self, patches: Iterable[Tensor]) -> None:
        """Add the features (B, P, C) of further images to center and matrix, without those of the first ones.

        The result is that of `refit` on all of them. Mean and basis stay.

        Raises:
            ParameterError: by `check_updatable`.
        """
        self.check_updatable()
        self.refit(patches, known=self.moments())

    def moments(self) -> "_Moments":
        """Return the moments that center and matrix were made from; `_statistics` backwards, in double precision."""
        count = int(self.count)
        own = count / (count + PRIOR)
        mean = self.center.double() / own
        squares = _outer(mean, self.kept)
        drawn = []  # towards the overall covariance, with a ridge
        for layer in _matrices(self.matrix.double() * self.energy, self.kept):
            factor = _inverse(layer.transpose(1, 2))
            drawn.append(factor @ factor.transpose(1, 2))
        covariance = _flat(drawn)
        overall = covariance.mean(0) + own * squares.mean(0)
        ridge = self._ridge(overall) / (1 + RIDGE)
        overall -= ridge
        covariance = (covariance - ridge - (1 - own) * overall) / own
        outer = count * (covariance + squares)
        return _Moments(self.kept, count, count * mean.float(), outer.float())

    @torch.no_grad()
    def refit(self, patches: Iterable[Tensor], pictures: Tensor | None = None, known: "_Moments | None" = None) -> None:
        """Fit center and matrix anew, and those of each fold, from one pass over patch features.

        Mean and basis stay, so that the whitened features change no more than the features do. A position's statistics
        are drawn towards those of all, as if PRIOR more images had shown the latter.

        Args:
            patches: (B, P, C) of the images, in order.
            pictures: (N,), a number for each of all images, the same for those that must lie in one fold; None for
                another for each.
            known: of other images, counts as if the pass had begun with them; without folds.
        """
        self._pictures = pictures
        parts = [_Moments(self.kept) for _ in range(FOLDS)]
        means = self.mean.split(self.channels)
        number = 0
        for batch in patches:
            layers = zip(self._layers(batch), means, self._bases(), strict=True)
            reduced = [(x - mean) @ basis for x, mean, basis in layers]
            folds = self._folds_of(torch.arange(number, number + len(batch), device=batch.device))
            for fold, part in enumerate(parts):
                part.add([self._by_position(x[folds == fold]) for x in reduced])
            number += len(batch)
        everything = _Moments.sum(parts if known is None else [known, *parts])
        self.center, matrix, energy = self._statistics(everything)
        self.matrix = matrix.div_(energy)
        self.energy.copy_(energy)
        self.count.fill_(everything.count)
        self.folds = []
        several = number if pictures is None else len(pictures.unique())
        if self.mode != "none" and known is None and several >= 2 * FOLDS:
            while parts:
                center, matrix, _ = self._statistics(everything.without(parts.pop(0)))
                self.folds.append((center, matrix.div_(energy)))

    def _folds_of(self, numbers: Tensor) -> Tensor:
        """Return the fold of each image of these numbers, (B,)."""
        return (numbers if self._pictures is None else self._pictures.to(numbers.device)[numbers]) % FOLDS

    def _by_position(self, x: Tensor) -> Tensor:
        """Return features (B, P, ...) as those of each position (P, B, ...), or of all together (1, B P, ...)."""
        return x.transpose(0, 1) if self.mode == "position" else x.flatten(0, 1)[None]

    def _layers(self, patches: Tensor) -> list[Tensor]:
        """Return patch features (..., C) as those of the quarters (..., 4, c) and of each layer (..., 1, c)."""
        parts = patches.split([copies * c for copies, c in zip(self.copies, self.channels, strict=True)], -1)
        return [part.unflatten(-1, (copies, -1)) for part, copies in zip(parts, self.copies, strict=True)]

    def _bases(self) -> list[Tensor]:
        """Return the basis (c, k) of each layer: between layers it is zero."""
        return [rows.split(self.kept, 1)[layer] for layer, rows in enumerate(self.basis.split(self.channels))]

    def _statistics(self, moments: "_Moments") -> tuple[Tensor, Tensor, Tensor]:
        """Return center, matrix before it is scaled, and the root mean square length of what they whiten."""
        own = moments.count / (moments.count + PRIOR)
        matrices = torch.empty_like(moments.outer)
        energies = []
        whiten = self._whitener(moments.overall(), own)
        for part, found in zip(moments.split(POSITIONS), matrices.split(POSITIONS), strict=True):
            covariance = part.covariance()
            found.copy_(whiten(covariance))
            energy = torch.zeros((), device=found.device)
            layers = (_matrices(x, self.kept) for x in (covariance, found))
            for number, (spread, whitening) in enumerate(zip(*layers, strict=True)):
                if number or not self.quarters:
                    energy = energy + (whitening * (spread @ whitening)).sum((1, 2))
            energies.append(energy)
        energy = torch.cat(energies).mean()
        if self.mode != "none" and energy < ALIKE * self.length:
            energy = energy.new_tensor(self.length)
        return own * moments.mean(), matrices, energy.clamp(min=1e-12).sqrt()

    def _whitener(self, overall: Tensor, own: float) -> Callable[[Tensor], Tensor]:
        """Return what makes matrices (P, squares), before they are scaled, of covariances (P, squares).

        Args:
            overall: covariance (squares,) of all positions together.
            own: how much a position's own covariance weighs, in [0, 1].
        """
        if self.mode == "none":
            return lambda covariance: _flat([_identity(length, covariance) for length in self.kept]).expand_as(
                covariance
            )
        ridge = self._ridge(overall)

        def whiten(covariance: Tensor) -> Tensor:
            drawn = torch.lerp(overall.expand_as(covariance), covariance, own) + ridge
            layers = _matrices(drawn, self.kept)
            if self.mode == "channel":
                layers = [layer.diagonal(dim1=1, dim2=2).diag_embed() for layer in layers]
            factors = [torch.linalg.cholesky(layer) for layer in layers]
            return _flat([_inverse(factor).transpose(1, 2) for factor in factors])

        return whiten

    def _ridge(self, covariance: Tensor) -> Tensor:
        """Return what is added to a covariance (squares,): RIDGE of each layer's mean variance in all directions."""
        variances = [layer.diagonal().mean().clamp(min=1e-12) for layer in _matrices(covariance, self.kept)]
        pairs = zip(variances, self.kept, strict=True)
        return _flat([RIDGE * variance * _identity(length, covariance) for variance, length in pairs])

    @torch.no_grad()
    def cross_fitted(self, patches: Tensor, numbers: Tensor) -> Tensor:
        """Return whitened features (B, P, width) of training images by statistics that have not seen them.

        What an image's own statistics whiten looks more normal than any image to come. Each image is whitened by those
        of the folds that it is not in; where there are too few images for folds, by those of all.

        Args:
            patches: (B, P, C).
            numbers: (B,) of the training images, by which they were streamed.
        """
        if not self.folds:
            return self(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        found = patches.new_empty(*patches.shape[:2], self.width)
        folds = self._folds_of(numbers)
        for fold, (center, matrix) in enumerate(self.folds):
            inside = folds == fold
            if inside.any():
                found[inside] = self._whitened(patches[inside].flatten(0, 1), center, matrix).unflatten(
                    0, (int(inside.sum()), -1)
                )
        return found

    def forward(self, patches: Tensor) -> Tensor:
        """Return whitened features (N, width) of the patch features (N, C) of whole images, in order."""
        return self._whitened(patches, self.center, self.matrix)

    def _whitened(self, patches: Tensor, center: Tensor, matrix: Tensor) -> Tensor:
        positions = len(center)
        shifted = center + self.mean @ self.basis  # a pass over the patches less than to subtract the mean
        layers = zip(
            self._layers(patches), self._bases(), shifted.split(self.kept, 1), _matrices(matrix, self.kept), strict=True
        )
        white = []
        for x, basis, shift, whitening in layers:
            x = (x @ basis).unflatten(0, (-1, positions)).transpose(0, 1)  # (positions, B, copies, k)
            copies = x.shape[2]
            x = (x - shift[:, None, None]).flatten(1, 2) @ whitening
            white.append(x.unflatten(1, (-1, copies)).flatten(2))
        return torch.cat(white, 2).transpose(0, 1).reshape(-1, self.width)


def _identity(length: int, like: Tensor) -> Tensor:
    """Return the matrix (l, l) that changes nothing, of the type and on the device of another tensor."""
    return torch.eye(length, dtype=like.dtype, device=like.device)


def _inverse(factor: Tensor) -> Tensor:
    """Return the inverse of lower triangular matrices (..., l, l)."""
    return torch.linalg.solve_triangular(factor, _identity(factor.shape[-1], factor), upper=False)


def _matrices(flat: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Return views of the layers' matrices (..., l, l) that lie one after the other in (..., squares)."""
    parts = flat.split([length**2 for length in lengths], -1)
    return [part.unflatten(-1, (length, length)) for part, length in zip(parts, lengths, strict=True)]


def _flat(matrices: Sequence[Tensor]) -> Tensor:
    """Return the layers' matrices (..., l, l), one after the other in (..., squares)."""
    return torch.cat([matrix.flatten(-2) for matrix in matrices], -1)


def _outer(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the outer products (P, squares) of each layer's part of vectors (P, k)."""
    return _flat([part[:, :, None] * part[:, None] for part in x.split(lengths, 1)])


class _Moments:
    """Add up count, sum and each layer's outer products of features, for each of P positions."""

    def __init__(
        self, lengths: Sequence[int], count: int = 0, total: Tensor | None = None, outer: Tensor | None = None
    ) -> None:
        self.lengths = lengths
        self.count = count
        self.total = torch.zeros(()) if total is None else total  # (P, k)
        self.outer = torch.zeros(()) if outer is None else outer  # (P, squares)

    def add(self, layers: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
        """Add the mean over its m copies of each layer's features (P, N, m, l), and that of their outer products.

        The sums are kept in `dtype`, as the features are where it is None.
        """
        first = layers[0]
        if not self.count:
            self.total = first.new_zeros(len(first), sum(self.lengths), dtype=dtype)
            self.outer = first.new_zeros(len(first), sum(length**2 for length in self.lengths), dtype=dtype)
        self.count += first.shape[1]
        self.total += torch.cat([layer.mean(2).sum(1) for layer in layers], 1)
        for layer, outer in zip(layers, _matrices(self.outer, self.lengths), strict=True):
            x = layer.flatten(1, 2)
            if outer.dtype == x.dtype:
                outer.baddbmm_(x.transpose(1, 2), x, alpha=1 / layer.shape[2])
            else:
                outer += x.transpose(1, 2) @ x / layer.shape[2]

    @staticmethod
    def sum(parts: "Sequence[_Moments]") -> "_Moments":
        first, *others = (part for part in parts if part.count)
        found = first._like(first.count, first.total.clone(), first.outer.clone())
        for part in others:
            found.count += part.count
            found.total += part.total
            found.outer += part.outer
        return found

    def without(self, part: "_Moments") -> "_Moments":
        """Return the moments without those of a part, whose memory they take."""
        total = torch.sub(self.total, part.total, out=part.total)
        return self._like(self.count - part.count, total, torch.sub(self.outer, part.outer, out=part.outer))

    def split(self, positions: int) -> "list[_Moments]":
        """Return the moments of a few positions each."""
        pairs = zip(self.total.split(positions), self.outer.split(positions), strict=True)
        return [self._like(self.count, total, outer) for total, outer in pairs]

    def mean(self) -> Tensor:
        return self.total / self.count

    def covariance(self) -> Tensor:
        return self.outer / self.count - _outer(self.mean(), self.lengths)

    def overall(self) -> Tensor:
        """Return the covariance (squares,) of all positions together; the features' overall mean is zero."""
        return self.outer.mean(0) / self.count

    def _like(self, count: int, total: Tensor, outer: Tensor) -> "_Moments":
        return _Moments(self.lengths, count, total, outer)
