"""Rows about the fit of the dictionary: how fast it converges, what streaming costs, how much memory it takes."""

import subprocess
import sys
import time
from functools import partial

import numpy as np
import spams
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor

from benchmarks.codes import lasso_weights
from benchmarks.comparison import Row, by_turns
from benchmarks.material import (
    batches,
    default_detector,
    default_lambda1,
    features,
    images,
    learn_atoms,
    make,
    train_dictionary,
)
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.dictionary import initial_atoms

ATOMS = 256
GOAL = 30  # times as fast as scikit-learn
TOLERANCE = 1.001  # times our objective, at which scikit-learn is as good


def objective(x: Tensor, atoms: Tensor, lambda1: float) -> float:
    """Return the mean of ||y - D a||^2 / 2 + lambda1 |a|_1 over features (N, C), with SPAMS's lasso codes."""
    y = x.numpy().T
    d = np.asfortranarray(atoms.numpy().T)
    codes = spams.lasso(y, D=d, lambda1=lambda1, numThreads=1)
    return float((np.square(y - d @ codes).sum(0) / 2 + lambda1 * np.abs(codes).sum(0)).mean())


def sklearn_until(
    target: float,
    limit: float,
    x: Tensor,
    held_out: Tensor,
    lambda1: float,
    solver: str,
    jobs: int,
) -> tuple[float, float]:
    """Return the seconds that scikit-learn needs to reach a held-out objective, and what it reached.

    Args:
        target: the objective.
        limit: seconds after which it is stopped.
        x: features (N, C) to learn from.
        held_out: features (M, C) for the objective.
        lambda1: the l1 weight.
        solver: "lars" or "cd".
        jobs: processes.
    """
    learner = MiniBatchDictionaryLearning(
        ATOMS,
        alpha=lambda1,
        batch_size=512,
        dict_init=initial_atoms(x, ATOMS, 0).numpy(),
        random_state=0,
        fit_algorithm=solver,
        transform_alpha=lambda1,
        n_jobs=jobs,
    )
    generator = np.random.default_rng(0)
    reached = np.inf
    seconds = 0.0
    while reached > target * TOLERANCE and seconds < limit:
        parts = [x[generator.choice(len(x), 512, replace=False)].numpy() for _ in range(5)]
        start = time.perf_counter()
        for part in parts:
            learner.partial_fit(part)
        seconds += time.perf_counter() - start
        reached = objective(held_out, torch.from_numpy(learner.components_.astype(np.float32)), lambda1)
    return seconds, reached


def fit_to_objective(quick: bool) -> list[Row]:
    """Compare with scikit-learn from the same atoms, on all cores.

    It has the better of its solvers and numbers of jobs, and goes on until it is as good or the goal is surely met.
    """
    weights = lasso_weights(features().shape[1])
    return [_objective_row(name, lambda1, held) for name, (lambda1, held) in weights.items()]


def _objective_row(name: str, lambda1: float, held: bool) -> Row:
    x = features()[:20_000]
    held_out = features()[-2000:]
    learn_atoms(x, ATOMS, 1, 1, lambda1, -1)  # warms up
    start = time.perf_counter()
    atoms = learn_atoms(x, ATOMS, 4, 5, lambda1, -1)
    ours = time.perf_counter() - start
    target = objective(held_out, atoms, lambda1)
    limit = 1.2 * GOAL * ours
    best, seconds, reached = _best_of_sklearn(target, limit, x, held_out, lambda1)
    before = objective(held_out, initial_atoms(x, ATOMS, 0), lambda1)
    note = f"held-out objective: untrained {before:.4f}, ours {target:.4f}, scikit-learn ({best}) {reached:.4f}"
    return Row(
        f"stage-2 fit to the same held-out objective, {x.shape[1]} channels, {ATOMS} atoms, {name}",
        "scikit-learn MiniBatchDictionaryLearning",
        GOAL if held else None,
        [ours],
        [seconds],
        note=note + (", stopped there" if seconds >= limit else ""),
    )


def _best_of_sklearn(
    target: float, limit: float, x: Tensor, held_out: Tensor, lambda1: float
) -> tuple[str, float, float]:
    """Return the name of scikit-learn's best solver and number of jobs, its seconds, and what it reached."""
    found = [
        (f"{solver}, {jobs} jobs", *sklearn_until(target, limit, x, held_out, lambda1, solver, jobs))
        for solver in ("lars", "cd")
        for jobs in (1, 2)
    ]
    return min(found, key=lambda f: (min(f[1], limit), f[2]))


def fit_streaming(quick: bool) -> list[Row]:
    """Compare the streaming fit with one call of SPAMS, on features alone and as the whole of stage 2."""
    detector = default_detector()
    count = len(detector.dictionary.atoms)
    loader = batches(images("train"), 32)
    atoms = detector.dictionary.atoms.clone()
    maps = detector.patch_features(images("train"))
    x = detector.dictionary_features(detector.whitening(flatten_patches(maps)))
    at_once = partial(_fit_at_once, x, count)

    def stage2() -> None:
        kept = make("features", detector=detector)
        train_dictionary(make("detection", detector=detector, features=kept, iterations=80, epochs=1), loader)

    def one_after_the_other() -> None:
        for batch in loader:
            detector.patch_features(batch["image"])
        at_once()

    streaming, baseline, whole, sequence = by_turns(
        lambda: learn_atoms(x, count, 4, 20, default_lambda1(), 1),
        at_once,
        stage2,
        one_after_the_other,
        repetitions=1 if quick else 2,
        warm=False,
    )
    detector.dictionary.set_atoms(atoms)  # other rows share the detector
    beside = "one spams.trainDL call on features in memory"
    return [
        Row(f"streaming fit, {count} atoms", beside, 1 / 1.2, streaming, baseline),
        Row(f"stage 2, {count} atoms", f"its extraction, then {beside}", None, whole, sequence),
    ]


def _fit_at_once(x: Tensor, count: int) -> None:
    """Fit `count` atoms to features (N, C) by one call of SPAMS, as many mini-batches as four parts of 20 have."""
    spams.trainDL(
        x.numpy().T,
        D=initial_atoms(x, count, 0).numpy().T,
        lambda1=default_lambda1(),
        iter=80,
        batchsize=512,
        numThreads=1,
        verbose=False,
    )


def memory(quick: bool) -> list[Row]:
    """Compare the peak memory of many images with that of few, whose features exceed the budget already."""
    few = 300
    many = 1500 if quick else 3000
    peaks = [[_stage2_memory(count)] for count in (many, few)]
    return [Row(f"peak memory of stage 2, {many} images", f"{few} images", 1 / 1.1, *peaks, unit="MiB")]


def _stage2_memory(count: int) -> float:
    """Return what benchmarks.stage2_memory prints in a process of its own, MiB."""
    command = [sys.executable, "-m", "benchmarks.stage2_memory", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])
