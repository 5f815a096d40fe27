"""Measure fit and scoring on a GPU: seconds, how busy it is, images a second, and what bfloat16 changes.

    python -m benchmarks.gpu root=FOLDER           # one texture's photographs, in MVTec AD's layout
    python -m benchmarks.gpu root=FOLDER device=cpu images=64 epochs=1 seconds=1    # tries the script itself

Own keys: root, device, images (training images at most), epochs (of protocol=paper, of which it has 270; its seconds
are scaled up), seconds (that each throughput is measured for), output (without suffix: .json and .md are written).
Accuracy is the fitted default's image AUROC on the folder's test images, with the backbone in single precision and in
bfloat16. The backbone of protocol=paper has random weights here, and its rates are lowered so that its loss stays
finite: its times are meant, not its scores.
"""

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.material import configuration
from benchmarks.results import RESULTS, machine
from experiments.runs import QUIET, read_keys, script
from texture_ad import pipeline
from texture_ad.cli.experiment import prepare_process
from texture_ad.data.layouts import scan
from texture_ad.errors import UserError
from texture_ad.files import write_text
from texture_ad.methods.base import AnomalyDetector
from texture_ad.reporting.tables import markdown_table

CALIBRATED = 0.2  # share of the normal images
PAPER = ("protocol=paper", "backbone.weights=none", "representation.lr=1e-5", "representation.backbone_lr=1e-6")
BATCHES = (1, 32, 256)
PRECISIONS = ("float32", "bfloat16")  # of the backbone


class Busy:
    """Sample how busy the GPU is, as nvidia-smi says: the share of the last moments in which a kernel ran."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Busy":
        asked = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
        command = ["nvidia-smi", *asked, "-lms", "100", "-i", "0"]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:  # no GPU: no samples
            return self
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.samples.append((time.perf_counter(), float(line) / 100))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def share(self, start: float, end: float) -> float | None:
        """Return the mean share between two times of `time.perf_counter`, None without a sample."""
        found = [share for at, share in self.samples if start <= at <= end]
        return fmean(found) if found else None


def subset(root: Path, count: int, folder: Path) -> Path:
    """Return a folder that links the test images and enough of the normal ones for `count` to train on."""
    layout = scan(root)
    for path in [sample.path for sample in layout.train][: round(count / (1 - CALIBRATED))]:
        link = folder / "train" / "good" / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    for name in ("test", "ground_truth"):
        if (root / name).is_dir():
            (folder / name).symlink_to((root / name).resolve())
    return folder


def fit(folder: Path, device: str, *overrides: str) -> tuple[dict[str, Any], AnomalyDetector, pipeline.Run]:
    """Fit on the images of a folder; return a row of the table, the detector and the run."""
    with tempfile.TemporaryDirectory() as root:
        accelerator = "cpu" if device == "cpu" else "gpu"
        options = ("data=folder", f"data.root={folder}", f"trainer.accelerator={accelerator}", *QUIET, *overrides)
        run = pipeline.Run(configuration(*options), Path(root))
        L.seed_everything(0, verbose=False)
        pipeline.prepare_data(run)
        with Busy() as busy:
            start = time.perf_counter()
            detector = pipeline.fit(run)
            stage1_end = start + run.metrics["stage1_seconds"]
            pipeline.calibrate(run, detector)
            row = {
                "training images": len(run.data.train_samples),
                "size": "{1} x {0}".format(*run.data.geometry.size),
                "fit, s": run.metrics["fit_seconds"],
                "stage 1, s": run.metrics["stage1_seconds"],
                "GPU busy in stage 1": busy.share(start, stage1_end),
                "GPU busy in the fit": busy.share(start, time.perf_counter()),
            }
        return row, detector, run


def per_second(function: Callable[[], object], images: int, seconds: float, device: str) -> float:
    """Return the images a second of a function that takes `images` of them."""
    for _ in range(3):
        function()
    _wait(device)
    start = time.perf_counter()
    calls = 0
    while time.perf_counter() - start < seconds:
        function()
        _wait(device)
        calls += 1
    return calls * images / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def throughput(detector: AnomalyDetector, size: tuple[int, int], seconds: float, device: str) -> list[dict[str, Any]]:
    """Return a row for each precision: images a second at each batch, images already on the device."""
    rows = []
    for precision in PRECISIONS:
        row: dict[str, Any] = {"size": "{1} x {0}".format(*size), "precision": precision}
        for batch in BATCHES:
            images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device)
            try:
                with backbone_in(precision, detector, device):
                    row[f"images/s, batch {batch}"] = per_second(partial(detector, images), batch, seconds, device)
            except torch.OutOfMemoryError:
                row[f"images/s, batch {batch}"] = None
        rows.append(row)
    return rows


@contextmanager
def backbone_in(precision: str, detector: AnomalyDetector, device: str) -> Iterator[None]:
    """Let a detector's backbone compute in a precision; whitening takes small differences of large numbers."""

    def extract(images: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return own(images)

    detector.feature_cache = extract  # type: ignore[assignment]
    try:
        yield
    finally:
        detector.feature_cache = None  # type: ignore[assignment]


@torch.no_grad()
def accuracy(detector: AnomalyDetector, run: pipeline.Run, device: str) -> dict[str, float]:
    """Return the image AUROC on the test images, with the backbone in single precision and in bfloat16."""
    found = {}
    scores: dict[str, Tensor] = {}
    labels = torch.cat([batch["label"] for batch in run.data.test_dataloader()])
    for precision in PRECISIONS:
        with backbone_in(precision, detector, device):
            parts = [detector(batch["image"].to(device)).scores.cpu() for batch in run.data.test_dataloader()]
        scores[precision] = torch.cat(parts).float()
        found[f"image AUROC, {precision}"] = float(roc_auc_score(labels, scores[precision]))
    found["largest difference of a score"] = float((scores["bfloat16"] - scores["float32"]).abs().max())
    return found


def main() -> None:
    """Fit by both protocols at 256 and 128 pixels, measure the default's scoring, and write the tables."""
    study = read_keys(
        {
            "root": [""],
            "device": ["cuda"],
            "images": ["280"],
            "epochs": ["5"],
            "seconds": ["2"],
            "output": [str(RESULTS / "gpu")],
        }
    )
    root, device = study.root, study.single("device")
    if study.overrides or not (root / "train" / "good").is_dir():
        raise UserError(f"root={root}: expected the folder of one texture, which holds train/good, and own keys alone")
    prepare_process()
    epochs, seconds = study.number("epochs", least=1), study.number("seconds", float)
    found: dict[str, Any] = {"machine": machine(), "data": root.name}
    found["device"] = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    with tempfile.TemporaryDirectory() as temporary:
        folder = subset(root, study.number("images", least=1), Path(temporary))
        fit(folder, device, "trainer.max_epochs=1", "density.epoch_steps=5", "detection.iterations=5")  # warms up
        row, detector, run = fit(folder, device)
        fits = [{"fit": "default"} | row]
        detector.eval().to(device)
        found["accuracy"] = accuracy(detector, run, device)
        sizes = [run.data.geometry.size]
        found["throughput"] = throughput(detector, sizes[0], seconds, device)
        row, detector, run = fit(folder, device, "data.size=128", "backbone.min_size=0")
        fits.append({"fit": "default at 128 px, not enlarged"} | row)
        found["throughput"] += throughput(detector.eval().to(device), run.data.geometry.size, seconds, device)
        for size in (128, 256):
            row, *_ = fit(folder, device, *PAPER, f"data.size={size}", f"trainer.max_epochs={epochs}")
            whole = row["fit, s"] + row["stage 1, s"] * (270 / epochs - 1)
            fits.append({"fit": f"protocol=paper, {epochs} of 270 epochs"} | row | {"270 epochs, s (scaled)": whole})
        found["fits"] = fits
    keys = dict.fromkeys(key for row in fits for key in row)
    fits = [{key: row.get(key) for key in keys} for row in fits]
    title = f"{found['device']}; {found['data']}; torch {torch.__version__}, {found['machine']['threads']} threads"
    tables = [markdown_table(fits), markdown_table([found["accuracy"]]), markdown_table(found["throughput"])]
    output = study.output
    write_text(output.with_name(f"{output.name}.json"), json.dumps(found, indent=1) + "\n")
    write_text(output.with_name(f"{output.name}.md"), "\n\n".join([title, *tables]) + "\n")
    print("\n\n".join([title, *tables]))


if __name__ == "__main__":
    script(main)
