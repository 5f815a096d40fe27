"""Measure what each part of our score adds, and how well label-free criteria rank variants of it.

    python -m experiments.criterion root=FOLDER                       # each folder in it is a texture, as MVTec AD's
    python -m experiments.criterion root=FOLDER seeds=0 textures=grid workers=4

Each texture and seed is fitted once. The patch maps of the four parts are kept for calibration images, the same with
synthetic defects, and test images; every variant (parts left out, weights, trust, highest positions, smoothing) is then
a matter of seconds. Each run fits once, so that calibration images are held out.

Own keys: root, textures, seeds, workers, draws (synthetic defects an image), runs (folder of the runs), output (without
suffix: .json and .md are written). Every other key=value goes to each run. A finished run is not repeated. No figure
here chooses anything: the tables are written and not read. "Oracle" is what test labels would have chosen, which nobody
has: a limit, and no result.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr, wilcoxon
from sklearn.metrics import roc_auc_score
from torch import Tensor

from experiments.maps import anomaly_maps
from experiments.runs import (
    Job,
    check_overrides,
    data_of,
    grouped,
    load_fusion,
    read_run,
    read_study,
    run_once,
    script,
    write_table,
)
from experiments.textures import find_textures, job
from texture_ad.errors import UserError
from texture_ad.evaluation.metrics import metrics_at_masks
from texture_ad.files import save_atomic
from texture_ad.methods.fusion.detector import FLOW, PARTS, FusionDetector
from texture_ad.reporting.tables import markdown_table

LEFT_OUT = tuple(f"-{part}" for part in PARTS)
STEP = 0.1  # of the weights that the oracle tries
PASTED = 0.25  # share of a position's cell from which on it counts as defective


class Maps(NamedTuple):
    """Hold the standardised patch maps of one fitted detector, (N, 4, h, w) each, and what is known of the images.

    Attributes:
        normal: of the calibration images.
        synthetic: of the same with synthetic defects.
        defects: (N, h, w), share of each position's cell that a synthetic defect covers.
        test: of the test images.
        excess: (N,) of the images of each of these three, what their centred flow maps lack.
        labels: (N,) of the test images, 0 or 1.
        learnt: share of their weight that head, flow and dictionary have.
        weights: of the four parts, before that share.
    """

    normal: Tensor
    synthetic: Tensor
    defects: Tensor
    test: Tensor
    excess: dict[str, Tensor]
    labels: Tensor
    learnt: float
    weights: tuple[float, ...]


class Variant(NamedTuple):
    """State how the parts make the image score.

    Attributes:
        weights: returns those of the four parts, of the maps.
        top: highest positions whose mean is the score.
        sigma: of a Gaussian that smooths the patch map, in positions; 0 for none.
    """

    weights: Callable[[Maps], Sequence[float]]
    top: int = 5
    sigma: float = 0.0


def fused_weights(maps: Maps, without: Sequence[str] = (), learnt: float | None = None) -> list[float]:
    """Return the weights of the default, or of it without some parts, or with another share of what is learnt."""
    learnt = maps.learnt if learnt is None else learnt
    shares = (1 - learnt, learnt, learnt, learnt)
    return [w * s * (part not in without) for part, w, s in zip(PARTS, maps.weights, shares, strict=True)]


def only(maps: Maps, parts: Sequence[str]) -> list[float]:
    """Return weights of 1 for these parts and of 0 for the others."""
    return [float(part in parts) for part in PARTS]


def _fixed(_: Maps, weights: Sequence[float]) -> Sequence[float]:
    return weights


def variants() -> dict[str, Variant]:
    """Return the variants by name, the default first."""
    found = {"default": Variant(fused_weights)}
    found |= {f"-{part}": Variant(partial(fused_weights, without=(part,))) for part in PARTS}
    for count in (1, 2, 4):
        for parts in itertools.combinations(PARTS, count):
            found["+".join(parts)] = Variant(partial(only, parts=parts))
    found |= {f"learnt {share:g}": Variant(partial(fused_weights, learnt=share)) for share in (0.25, 0.5, 0.9)}
    found |= {f"top {top}": Variant(fused_weights, top=top) for top in (1, 3, 10, 20, 50)}
    found |= {f"smoothed {sigma:g}": Variant(fused_weights, sigma=sigma) for sigma in (0.5, 1, 2)}
    return found


def patch_maps(parts: Tensor, weights: Sequence[float], sigma: float = 0.0) -> Tensor:
    """Return the weighted sum (N, h, w) of the parts (N, 4, h, w), smoothed by a Gaussian of `sigma` positions."""
    maps = torch.einsum("nphw,p->nhw", parts, torch.tensor(weights, dtype=parts.dtype))
    if not sigma:
        return maps
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def means_of_top(maps: Tensor, top: int) -> Tensor:
    """Return the mean of the highest positions (N,) of patch maps (N, h, w)."""
    flat = maps.flatten(1)
    return flat.topk(min(top, flat.shape[1]), 1).values.mean(1)


def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """Return how often a score of `anomalous` is above one of `normal`."""
    labels = [0] * len(normal) + [1] * len(anomalous)
    return float(roc_auc_score(labels, torch.cat((normal, anomalous)).numpy()))


def criteria(maps: Maps, variant: Variant) -> dict[str, float]:
    """Return the image AUROC on test images beside what can be known without a label, higher being better.

    "synthetic AUROC" is that of images; "synthetic distance" the mean difference of an image's scores with and without
    its defect, in deviations of the scores without; "synthetic positions" the AUROC of positions; "tail" says how near
    a typical normal image's score is to the largest ones, in deviations of its positions.
    """
    weights = variant.weights(maps)
    scored = {name: patch_maps(getattr(maps, name), weights, variant.sigma) for name in ("normal", "synthetic", "test")}
    normal, synthetic, test = (
        means_of_top(made, variant.top) + weights[FLOW] * maps.excess[name] for name, made in scored.items()
    )
    draws = len(synthetic) // len(normal)
    covered = maps.defects >= PASTED
    return {
        "test": auroc(test[maps.labels == 0], test[maps.labels == 1]),
        "synthetic AUROC": auroc(normal, synthetic),
        "synthetic distance": float((synthetic - normal.repeat(draws)).mean() / normal.std().clamp(min=1e-9)),
        "synthetic positions": auroc(scored["normal"].flatten(), scored["synthetic"][covered]),
        "tail": -float((normal.max() - normal.median()) / scored["normal"].std().clamp(min=1e-9)),
    }


def simplex(count: int, step: float) -> list[tuple[float, ...]]:
    """Return all weights of `count` parts that are multiples of `step` and sum to 1."""
    steps = round(1 / step)
    cuts = itertools.combinations(range(steps + count - 1), count - 1)
    bars = ((-1, *cut, steps + count - 1) for cut in cuts)
    return [tuple((b - a - 1) * step for a, b in itertools.pairwise(bar)) for bar in bars]


def weightings(maps: Maps) -> dict[str, Any]:
    """Return what the best weights by test labels (the oracle) and by synthetic defects reach on the test images.

    "grid" is the test image AUROC of all weights, in the order of `simplex`.
    """
    tried = []
    for weights in simplex(len(PARTS), STEP):
        found = criteria(maps, Variant(partial(_fixed, weights=weights)))
        tried.append((found["test"], found["synthetic AUROC"], found["synthetic distance"], weights))
    best = max(tried)
    return {
        "oracle": best[0],
        "oracle weights": [round(w, 3) for w in best[3]],
        "by synthetic AUROC": max(tried, key=lambda t: (t[1], t[2]))[0],
        "by synthetic distance": max(tried, key=lambda t: t[2])[0],
        "grid": [round(t[0], 5) for t in tried],
    }


@torch.no_grad()
def measure(folder: Path, draws: int) -> Maps:
    """Return the standardised part maps of the detector in a run's folder.

    Args:
        folder: of a finished run of the fusion.
        draws: synthetic defects for each calibration image.
    """
    from texture_ad.data.batches import WithSyntheticDefects

    data = data_of(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = load_fusion(folder, device)

    excess: dict[str, list[Tensor]] = {"normal": [], "synthetic": [], "test": []}

    def parts(images: Tensor, name: str) -> Tensor:
        measured = detector.measure(detector.fill(images.to(device))).parts
        assert measured is not None
        excess[name].append(detector.excess(measured).cpu())
        return detector.standardised(measured).cpu()

    normal = torch.cat([parts(batch["image"], "normal") for batch in data.calibration_dataloader()])
    grid = (normal.shape[2], normal.shape[3])
    synthetic = []
    defects = []
    count = len(data.calibration_samples)
    for draw in range(draws):
        damaged = WithSyntheticDefects(data._calibration, data.seed + draw)
        for start in range(0, count, data.eval_batch_size):
            batch = damaged.__getitems__([count + i for i in range(start, min(start + data.eval_batch_size, count))])
            synthetic.append(parts(batch["image"], "synthetic"))
            defects.append(F.adaptive_avg_pool2d(batch["mask"].float(), grid))
    tested = [(parts(batch["image"], "test"), batch["label"]) for batch in data.test_dataloader()]
    test, labels = (torch.cat(column) for column in zip(*tested, strict=True))
    return Maps(
        normal,
        torch.cat(synthetic),
        torch.cat(defects),
        test,
        {name: torch.cat(values) for name, values in excess.items()},
        labels,
        float(detector.learnt),
        detector.weights,
    )


def map_metrics(folder: Path, maps: Maps) -> dict[str, dict[str, Any]]:
    """Return AUPRO at 0.05 of the anomaly maps of a run's test images, with all parts and without each of them.

    The maps are enlarged as the detector's, and not smoothed, as by default.

    Args:
        folder: of the run.
        maps: of its detector.

    Returns:
        By the names of variants; nothing where no test image has a mask.
    """
    data = data_of(folder)
    if not data.has_masks:
        return {}
    masks = list(data.true_masks(range(len(data.test_samples))))
    every = variants()
    found = {}
    for name in ("default", *LEFT_OUT):
        parts = patch_maps(maps.test, every[name].weights(maps))
        made = anomaly_maps(parts, data.geometry.size, FusionDetector.upsampling, 0.0)
        found[name] = {"aupro_05": metrics_at_masks(made, masks)["aupro_05"]}
    return found


def evaluate(run: Job, draws: int) -> dict[str, Any]:
    """Return all figures of one texture and seed; fit the detector and measure its maps where that is not done yet."""
    fitted = run_once(run)
    path = run.folder / f"maps{draws}.pt"
    if not path.is_file():
        save_atomic(path, {"maps": measure(run.folder, draws)._asdict()})
    maps = Maps(**torch.load(path, weights_only=True)["maps"])
    return {
        "run": fitted["image_auroc"],
        "fit_seconds": fitted["fit_seconds"],
        "learnt": maps.learnt,
        "variants": {name: criteria(maps, variant) for name, variant in variants().items()},
        "weightings": weightings(maps),
        "maps": map_metrics(run.folder, maps),
    }


def leave_one_out(found: Sequence[dict], title: str, of: str, metric: str) -> list[dict]:
    """Return a row for each texture, then the mean: a metric with all parts, and the loss without each.

    Args:
        found: from `evaluate`, texture by texture.
        title: of the table, that of the metric.
        of: key of what was found in which the metric stands by the names of variants.
        metric: its key there.
    """
    rows = []
    for (texture,), group in grouped((r for r in found if r[of]), "texture").items():
        runs = [r[of] for r in group]
        row = {title: texture, "default": [v["default"][metric] for v in runs]}
        rows.append(row | {name: [v["default"][metric] - v[name][metric] for v in runs] for name in LEFT_OUT})
    return with_mean(rows, title)


def paired(rows: Sequence[dict]) -> str:
    """Return the test of what each part adds, in pairs, one a texture: Wilcoxon's signed ranks, two-sided."""
    lines = []
    for name in LEFT_OUT:
        losses = [fmean(row[name]) for row in rows[:-1]]
        if any(losses):
            better = sum(loss > 0 for loss in losses)
            p = wilcoxon(losses).pvalue
            lines.append(f"- {name[1:]} adds {fmean(losses):+.4f}; in {better} of {len(losses)} textures, p = {p:.3f}")
    return "\n".join(lines)


def correlations(found: Sequence[dict]) -> list[dict]:
    """Return Spearman's rank correlation over the variants of each criterion with the test, a list over the seeds."""
    rows = []
    for (texture,), group in grouped(found, "texture").items():
        names = [name for name in group[0]["variants"]["default"] if name != "test"]
        rows.append(
            {"rank correlation": texture} | {name: [_correlation(r["variants"], name) for r in group] for name in names}
        )
    return with_mean(rows, "rank correlation")


def _correlation(of: dict[str, dict[str, float]], name: str) -> float:
    test, other = ([v[key] for v in of.values()] for key in ("test", name))
    constant = len(set(test)) == 1 or len(set(other)) == 1
    return 0.0 if constant else float(spearmanr(test, other).statistic)


def chosen(found: Sequence[dict]) -> list[dict]:
    """Return a row for each texture, then the mean: the default beside weights chosen with and without labels."""
    names = ("by synthetic AUROC", "by synthetic distance", "oracle")
    groups = {texture: group for (texture,), group in grouped(found, "texture").items()}
    rows = []
    for texture, group in groups.items():
        row = {"weights": texture, "default": [r["variants"]["default"]["test"] for r in group]}
        others = [other for name, other in groups.items() if name != texture]
        if others:
            row["by the other textures"] = by_others(group, others)
        rows.append(row | {name: [r["weightings"][name] for r in group] for name in names})
    return with_mean(rows, "weights")


def by_others(group: Sequence[dict], others: Sequence[Sequence[dict]]) -> list[float]:
    """Return what a texture's runs reach with the weights that are the best on the other textures' test images."""
    means = [torch.tensor([r["weightings"]["grid"] for r in other]).mean(0) for other in others]
    best = int(torch.stack(means).mean(0).argmax())
    return [r["weightings"]["grid"][best] for r in group]


def with_mean(rows: list[dict], title: str) -> list[dict]:
    """Return the rows of textures, whose names stand under `title`, and below them that of their means."""
    if not rows:
        return rows
    means = {name: fmean(fmean(row[name]) for row in rows) for name in rows[0] if name != title}
    return [*rows, {title: f"mean of {len(rows)}"} | means]


def all_variants(found: Sequence[dict]) -> list[dict]:
    """Return a row for each variant: every figure, averaged over the seeds of each texture, then over textures."""
    groups = grouped(found, "texture").values()

    def mean(name: str, key: str) -> float:
        return fmean(fmean(r["variants"][name][key] for r in group) for group in groups)

    keys = found[0]["variants"]["default"]
    return [{"variant": name} | {key: mean(name, key) for key in keys} for name in variants()]


def write(output: Path, found: Sequence[dict], textures: Sequence[str]) -> str:
    """Write all tables, and return them as text."""
    ordered = sorted(found, key=lambda r: (textures.index(r["texture"]), r["seed"]))
    losses = leave_one_out(ordered, "image AUROC", "variants", "test")
    located = leave_one_out(ordered, "AUPRO at 0.05", "maps", "aupro_05")
    below = [
        paired(losses),
        markdown_table(located),
        paired(located),
        "Rank correlation of label-free criteria with the test image AUROC, over all variants:",
        markdown_table(correlations(ordered)),
        "Weights chosen on a grid: by the test labels of the other textures, by synthetic defects, or (oracle) by the"
        " test labels:",
        markdown_table(chosen(ordered)),
        "All variants, means over textures:",
        markdown_table(all_variants(ordered)),
    ]
    return write_table(output, list(ordered), losses, "\n\n".join(below))


def main() -> None:
    """Fit, measure and evaluate every texture and seed, and write the tables after each."""
    study = read_study("criterion", root=[""], textures=[], draws=["4"], runs=["runs/experiments/textures"])
    textures, draws = find_textures(study.root, study["textures"]), study.number("draws", least=1)
    jobs = {
        (texture, seed): job(study, study.runs, study.root / texture, "fusion", seed, "cross_fit=false")
        for seed in study.numbers("seeds")
        for texture in textures
    }
    check_overrides(one for one in jobs.values() if not read_run(one))
    found: list[dict] = []
    failures: list[UserError] = []
    # Spawned: a process that was forked can't use a GPU that its parent has looked at.
    with ProcessPoolExecutor(study.workers, get_context("spawn")) as pool:
        waiting = {pool.submit(evaluate, one, draws): key for key, one in jobs.items()}
        for future in as_completed(waiting):
            texture, seed = waiting[future]
            try:
                found.append({"texture": texture, "seed": seed, **future.result()})
            except UserError as error:
                failures.append(error)
                print(f"failed   {error}", flush=True)
                continue
            print(f"{texture}, seed {seed}: {found[-1]['run']:.3f}", flush=True)
            write(study.output, found, textures)
    if found:
        print(write(study.output, found, textures))
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} runs failed, first: {failures[0]}")


if __name__ == "__main__":
    script(main)
