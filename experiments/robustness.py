"""Score runs under changed light, focus, noise, compression and position, as they change in a factory.

    python -m experiments.robustness root=FOLDER                          # each folder in it is a texture
    python -m experiments.robustness root=FOLDER textures=A,B,C augmentations=none,light trainer.accelerator=gpu

For each texture, augmentation and seed one run is made; then its test images are changed in several ways and strengths
and scored. Written are the image AUROC and the share of normal images above the run's own threshold, which stays where
it is, and a plot of both. No figure here chooses anything.

Own keys: root, textures, augmentations, seeds, workers, device (that scores), runs (folder of the runs), output
(without suffix: .json, .md and .png are written). Every other key=value goes to each run. A finished run is not
repeated, nor is a change that was scored.
"""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from experiments.runs import data_of, read_study, run_all, save_chart, script, write_table
from experiments.textures import find_textures
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.files import write_text
from texture_ad.methods.base import AnomalyDetector
from texture_ad.methods.registry import load


def jpeg(images: Tensor, quality: float) -> Tensor:
    """Return images, uint8 (B, 3, H, W), after JPEG of a quality."""
    found = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=int(quality))
        found.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1))
    return torch.stack(found)


def noise(images: Tensor, deviation: float) -> Tensor:
    """Return images, uint8 (B, 3, H, W), with Gaussian noise of a deviation in levels, the same in all channels."""
    generator = torch.Generator().manual_seed(0)
    drawn = deviation * torch.randn(images[:, :1].shape, generator=generator)
    return (images + drawn).round().clamp(0, 255).to(torch.uint8)


def shift(images: Tensor, share: float) -> Tensor:
    """Return images, uint8 (B, 3, H, W), moved right and down by a share of their sides; edges are mirrored."""
    down, right = (max(1, round(share * side)) for side in images.shape[-2:])
    padded = F.pad(images, [right, down, 0, 0], padding_mode="reflect")
    return padded[..., : images.shape[-2], : images.shape[-1]]


def blur(images: Tensor, sigma: float) -> Tensor:
    """Return images, uint8 (B, 3, H, W), blurred by a Gaussian of so many pixels."""
    return F.gaussian_blur(images, [2 * int(3 * sigma + 0.5) + 1] * 2, [sigma, sigma])


CHANGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "brightness": (F.adjust_brightness, (0.7, 0.85, 1.15, 1.3)),
    "contrast": (F.adjust_contrast, (0.7, 0.85, 1.15, 1.3)),
    "gamma": (F.adjust_gamma, (0.7, 0.85, 1.15, 1.3)),
    "blur": (blur, (0.5, 1.0, 2.0)),
    "noise": (noise, (2.0, 5.0, 10.0)),
    "jpeg": (jpeg, (90, 70, 40)),
    "shift": (shift, (0.01, 0.03, 0.1)),
}


@torch.no_grad()
def measure(
    detector: AnomalyDetector, batches: Sequence[dict], change: Callable[[Tensor, float], Tensor], strength: float
) -> dict[str, float | None]:
    """Return image AUROC and false-alarm rate at the detector's threshold on changed test images."""
    scores = torch.cat([detector(change(batch["image"], strength).to(detector.device)).scores for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    found = scores.cpu()
    auroc = image_metrics(found.numpy(), labels.tolist(), float(detector.threshold))["image_auroc"]
    return {
        "image_auroc": auroc,
        "false_alarms": float((found[labels == 0] > float(detector.threshold)).float().mean()),
    }


def measure_run(folder: Path, device: str) -> dict[str, dict[str, float | None]]:
    """Return what `measure` finds of a run for every change, by "change strength"; it is found once a run."""
    path = folder / "robustness.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    wanted = {f"{name} {s:g}": (change, s) for name, (change, strengths) in CHANGES.items() for s in strengths}
    wanted = {"unchanged": (lambda images, _: images, 0.0)} | wanted
    if found.keys() >= wanted.keys():
        return found
    batches = list(data_of(folder).test_dataloader())
    detector = load(folder / "detector.pt", device)
    for name, (change, strength) in wanted.items():
        if name not in found:
            found[name] = measure(detector, batches, change, strength)
            write_text(path, json.dumps(found, indent=1))
    return found


def plot(results: Sequence[dict], output: Path) -> None:
    """Draw image AUROC and false-alarm rate of each augmentation, means over textures and seeds, by change."""
    from matplotlib.figure import Figure

    names = list(results[0]["changes"])
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(2, 1, sharex=True),
        ("image_auroc", "false_alarms"),
        ("image AUROC", "normal images above the threshold"),
        strict=True,
    ):
        for augmentation in dict.fromkeys(r["augmentation"] for r in results):
            runs = [r["changes"] for r in results if r["augmentation"] == augmentation]
            axes.plot(names, [fmean(run[n][key] for run in runs) for n in names], marker="o", label=augmentation)
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
        axes.tick_params(axis="x", rotation=90)
    axes.legend(title="augmentation", frameon=False)
    textures = ", ".join(dict.fromkeys(r["texture"] for r in results))
    figure.suptitle(f"Test images changed after training: means over {textures}")
    save_chart(figure, output)


def main() -> None:
    """Make the runs, score them under every change, and write table and plot."""
    study = read_study("robustness", root=[""], textures=[], augmentations=["none", "light"], device=["cpu"])
    device = study.single("device")
    jobs = {
        (texture, augmentation, seed): study.job(
            study.runs / f"{texture}-{augmentation}-seed{seed}",
            ["data=folder", f"data.root={study.root / texture}", f"augmentation={augmentation}", f"seed={seed}"],
        )
        for seed in study.numbers("seeds")
        for texture in find_textures(study.root, study["textures"])
        for augmentation in study["augmentations"]
    }
    run_all(jobs, study.workers)
    results: list[dict[str, Any]] = [
        {
            "texture": texture,
            "augmentation": augmentation,
            "seed": seed,
            "changes": measure_run(job.folder, device),
        }
        for (texture, augmentation, seed), job in jobs.items()
    ]
    table = [
        {
            "change": change,
            **{
                f"{key}, {augmentation}": [
                    r["changes"][change][name] for r in results if r["augmentation"] == augmentation
                ]
                for name, key in (("image_auroc", "image AUROC"), ("false_alarms", "false alarms"))
                for augmentation in study["augmentations"]
            },
        }
        for change in results[0]["changes"]
    ]
    plot(results, study.output)
    print(write_table(study.output, results, table))


if __name__ == "__main__":
    script(main)
