"""Lay features out in the plane by t-SNE, for the figure that shows each learnt step."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from texture_ad.errors import UserError

MAX_POINTS = 400  # shown of one step; more cover one another
STEPS = 500  # of t-SNE; as many again lower its divergence by 2 % at most, of 400 points in 168 dimensions


def embed(
    features: Mapping[str, ArrayLike], labels: ArrayLike, seed: int, max_points: int = MAX_POINTS
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Choose features of both classes at random, and lay those of each step out in the plane by t-SNE.

    Source: van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008; Guo, Song, Ma, figure 6.

    Args:
        features: a step's name to finite features (N, C), of the same N positions or images in each step.
        labels: (N,) 0 normal, 1 anomalous.
        seed: of the choice and of t-SNE.
        max_points: features chosen at most, half of each class where there are enough.

    Returns:
        A step's name to its layout (n, 2), and the labels (n,) of the chosen features.

    Raises:
        UserError: fewer than 5 features, different numbers of them, values not finite or all the same.
    """
    arrays = {name: np.asarray(one) for name, one in features.items()}
    truth = np.asarray(labels)
    _check(arrays, truth)
    chosen = _choose(truth, max_points, seed)
    return _lay_out({name: one[chosen] for name, one in arrays.items()}, seed), truth[chosen]


def _check(features: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    counts = {name: len(one) for name, one in features.items()}
    if len(labels) < 5 or set(counts.values()) != {len(labels)}:
        raise UserError(f"{counts} features, {len(labels)} labels; give equally many of each, 5 or more")
    for name, one in features.items():
        if not np.isfinite(one).all() or not np.ptp(one, axis=0).any():
            raise UserError(
                f"the features {name} are not finite or all the same; the representation has "
                "collapsed, train it again with a lower learning rate"
            )


def _choose(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the indices of at most `count` labels, half of each class where there are enough."""
    rng = np.random.default_rng(seed)
    normal, anomalous = (rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1))
    wanted = min(len(anomalous), max(count // 2, count - len(normal)))
    return np.concatenate([normal[: count - wanted], anomalous[:wanted]])


def _lay_out(features: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    count = len(next(iter(features.values())))
    method = TSNE(perplexity=min(30, (count - 1) / 3), max_iter=STEPS, random_state=seed)
    # PyTorch's and scikit-learn's OpenMP threads hinder each other: one is several times faster than two.
    with threadpool_limits(1):
        return {name: method.fit_transform(one) for name, one in features.items()}
