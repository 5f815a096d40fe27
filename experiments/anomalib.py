"""Compare our methods with anomalib's PaDiM and PatchCore on every texture of a folder.

    python -m experiments.anomalib root=FOLDER seeds=0          # needs pip install ".[compare,openvino]"
    python -m experiments.anomalib root=FOLDER textures=carpet,wood coreset=0.01

Own keys: root, textures, methods, seeds, workers, runs, output, as in experiments.textures, and coreset, the share of
patches that PatchCore keeps, both ours and anomalib's. Every other key=value goes to each run. anomalib's models see
the same training images (calibration images are left out) in the same size, through the same network and layers, with
the same settings; experiments.anomalib_run says what is its own. A finished run is not repeated.

The time of an image is measured afterwards, all methods by turns on the same images and threads, without reading files,
with the score and the anomaly map in the images' size. It is the processor's, summed over threads, so that other
programs don't count; that of training is the wall's, and ours includes the thresholds that one fit gives
(cross_fit=false). It is measured by torch, and by the runtime that each is exported to, in float32: ONNX Runtime for
ours, which predict takes on a CPU, and OpenVINO for anomalib's, by its own exporter, one image after the other.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks.comparison import by_turns
from experiments.anomalib_run import check_installed, exported, score
from experiments.runs import Job, grouped, read_study, run_all, script, write_table
from experiments.textures import finished_runs, jobs_of
from texture_ad.data.geometry import Shape
from texture_ad.deploy.engines import FASTEST, use_engine
from texture_ad.deploy.runtimes import FORMATS, check_packages
from texture_ad.files import write_text
from texture_ad.methods.registry import load
from texture_ad.reporting.metrics import METRICS
from texture_ad.training.resources import keep_freed_memory

THEIRS = ("padim", "patchcore")  # methods that anomalib has too
BATCHES = (1, 32)
ENGINES = ("torch", "exported")
TURNS = 3
ACCURACY = ("image_auroc", "pixel_auroc", "aupro")
COSTS = ("fit_seconds", "peak_memory_mb")

Jobs = Mapping[tuple[str, str, int], Job]  # of texture, method and seed


def with_theirs(jobs: Jobs, coreset: str) -> dict[tuple[str, str, int], Job]:
    """Return the runs, each of a method that anomalib has followed by anomalib's.

    Args:
        jobs: the runs of ours.
        coreset: share of patches that PatchCore keeps.
    """
    found = {}
    for (texture, method, seed), one in jobs.items():
        if method == "patchcore":
            one.overrides.append(f"method.coreset={coreset}")
        found[texture, method, seed] = one
        if method in THEIRS:
            folder = one.folder.with_name(f"{texture}-anomalib_{method}-seed{seed}")
            found[texture, theirs(method), seed] = Job(folder, one.overrides, "experiments.anomalib_run")
    return found


def theirs(method: str) -> str:
    """Return what a table calls anomalib's model of a method."""
    return f"{method} of anomalib"


def seconds_by_turns(jobs: Jobs, file: Path) -> dict[str, dict[str, float]]:
    """Return the median processor seconds an image of each method, engine and batch size, measured once by turns.

    Args:
        jobs: finished runs of one texture and seed.
        file: where the seconds are kept.
    """
    folders = {method: one.folder for (_, method, _), one in jobs.items()}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = {_engine_and_batch(engine, count) for engine in ENGINES for count in BATCHES}
    if all(names <= kept.get(method, {}).keys() for method in folders):
        return kept  # else all are measured again, since they take turns
    # Calibration images, which every detector's file of ours keeps: the same for all.
    images = next(load(folder / "detector.pt").examples for folder in folders.values() if _ours(folder))
    scorers = {
        (method, engine): _scorer(folder, engine, (images.shape[2], images.shape[3]))
        for method, folder in folders.items()
        for engine in ENGINES
    }
    found: dict[str, dict[str, float]] = {method: {} for method in folders}
    for count in BATCHES:
        batch = images[torch.arange(count) % len(images)]
        turns = by_turns(
            *(partial(scorer, batch) for scorer in scorers.values()), repetitions=TURNS, clock=time.process_time
        )
        for (method, engine), seconds in zip(scorers, turns, strict=True):
            found[method][_engine_and_batch(engine, count)] = median(seconds) / count
    write_text(file, json.dumps(found, indent=1) + "\n")
    return found


def _engine_and_batch(engine: str, count: int) -> str:
    return f"{engine}, {count} at once"


def _ours(folder: Path) -> bool:
    return (folder / "detector.pt").is_file()


def _scorer(folder: Path, engine: str, size: Shape) -> Callable[[torch.Tensor], object]:
    """Return what a finished run scores images uint8 (B, 3, H, W) of a size (H, W) by."""
    if _ours(folder):
        detector = load(folder / "detector.pt")
        if engine != "torch":
            use_engine(detector, folder / "detector.pt", FASTEST[0], 0)
        return detector
    model = torch.load(folder / "model.pt", weights_only=False)  # written by our own run
    return partial(score, model) if engine == "torch" else exported(model, size, folder)


def rows(runs: Sequence[dict], seconds: Mapping[str, Mapping]) -> list[dict]:
    """Return a row for each texture and method, lists over the seeds, and the mean over textures of each method.

    Args:
        runs: finished ones.
        seconds: of an image by texture and method, then by engine and batch size.
    """
    found = []
    for (texture, method), own in grouped(runs, "texture", "method").items():
        row: dict = {"texture": texture, "method": method}
        for key in ACCURACY + COSTS:
            row[METRICS[key].heading] = [run[key] for run in own if run[key] is not None] or None
        measured = seconds.get(texture, {}).get(method, {})
        for name in (_engine_and_batch(engine, count) for engine in ENGINES for count in BATCHES):
            row[f"processor ms an image, {name}"] = round(1000 * measured[name], 1) if name in measured else None
        found.append(row)
    count = len(grouped(found, "texture"))
    for (method,), own in grouped(found, "method").items():
        if len(own) == count > 1:
            values = {key: [one[key] for one in own] for key in own[0] if key not in ("texture", "method")}
            means = {key: fmean(map(_mean, one)) if None not in one else None for key, one in values.items()}
            found.append({"texture": f"mean of {len(own)}", "method": method} | means)
    return found


def _mean(values: float | Sequence[float]) -> float:
    return fmean(values) if isinstance(values, Sequence) else values


def differences(runs: Sequence[dict]) -> str:
    """Return how far each method's mean image AUROC over the seeds is from that of anomalib's, a line a method."""
    lines = []
    for method in THEIRS:
        found = {}
        for texture in dict.fromkeys(run["texture"] for run in runs):
            ours, others = (
                [r["image_auroc"] for r in runs if (r["texture"], r["method"]) == (texture, name)]
                for name in (method, theirs(method))
            )
            if ours and others:
                found[texture] = fmean(ours) - fmean(others)
        if found:
            each = ", ".join(f"{texture} {value:+.4f}" for texture, value in found.items())
            lines.append(f"- {method} less {theirs(method)}, image AUROC: mean {fmean(found.values()):+.4f}; {each}")
    return "\n".join(lines)


def main() -> None:
    """Make the runs, measure the seconds of an image, and write the table after each run."""
    study = read_study(
        "anomalib", root=[""], textures=[], methods=["fusion", "padim", "patchcore"], seeds=["0"], coreset=["0.1"]
    )
    check_installed()
    for name in (FASTEST[0], "openvino"):
        check_packages("engine", name, FORMATS[name].packages)
    jobs = with_theirs(jobs_of(study, "cross_fit=false"), study.single("coreset"))
    seconds: dict[str, Mapping] = {}

    def write() -> str:
        runs = finished_runs(jobs, COSTS)
        return write_table(study.output, runs, rows(runs, seconds), differences(runs))

    keep_freed_memory()
    for texture in dict.fromkeys(texture for texture, _, _ in jobs):
        of_texture = {key: one for key, one in jobs.items() if key[0] == texture}
        run_all(of_texture, study.workers, write)
        first = {key: one for key, one in of_texture.items() if key[2] == study.numbers("seeds")[0]}
        seconds[texture] = seconds_by_turns(first, study.runs / f"{texture}-seconds.json")
        write()
    print(write())


if __name__ == "__main__":
    script(main)
