"""Compare a detector that was updated with photographs with one that was fitted on all of them.

    python -m experiments.update root=FOLDER                          # each folder in it is a texture, as MVTec AD's
    python -m experiments.update root=FOLDER textures=magnetic_tile seeds=0,1,2

Of a texture's training images a random half fits a detector (`half`), which is then updated with the other half
(`updated`); another one is fitted on all of them (`all`). Each scores the test images. No figure here chooses anything.
The other half has to hold 19 images at the default false-alarm rate.

Own keys: root, textures, seeds, workers, runs (folder of the halves and runs), output (without suffix: .json and .md
are written). Every other key=value goes to each run. Neither a finished run nor an update is repeated.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch

from experiments.runs import data_of, draw, link_samples, read_study, run_all, script, write_table
from experiments.textures import find_textures
from texture_ad.data.layouts import scan
from texture_ad.deploy.scorer import find_files
from texture_ad.deploy.update import update
from texture_ad.evaluation.metrics import image_metrics
from texture_ad.files import write_text
from texture_ad.methods.registry import load

SHOWN = {"image_auroc": "image AUROC", "false_positive_rate": "false alarms", "recall": "recall"}


def halve(texture: Path, seed: int, folder: Path) -> None:
    """Link half of the training images and all test images from `folder`/half, the other half from `folder`/rest."""
    layout = scan(texture)
    half, rest = draw(layout.train, len(layout.train) // 2, seed)
    link_samples([*half, *layout.test], texture, folder / "half")
    link_samples(rest, texture, folder / "rest")


def updated(run: Path, rest: Path) -> dict[str, Any]:
    """Return the image metrics of a run's detector after an update with the photographs of `rest`; it is made once."""
    path = run / "updated.json"
    if not path.is_file():
        detector = load(run / "detector.pt", "cpu")
        update(detector, rest, find_files(rest, rest / "none").images, 32)
        with torch.no_grad():
            found = [(detector(batch["image"]).scores, batch["label"]) for batch in data_of(run).test_dataloader()]
        scores, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        write_text(path, json.dumps(image_metrics(scores, labels, float(detector.threshold))))
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Make the runs and updates, and write the table."""
    study = read_study("update", root=[""], textures=[])
    jobs = {}
    for texture, seed in product(find_textures(study.root, study["textures"]), study.numbers("seeds")):
        halves = study.runs / "halves" / f"{texture}-seed{seed}"
        halve(study.root / texture, seed, halves)
        for kind, data in (("half", halves / "half"), ("all", study.root / texture)):
            options = ["data=folder", f"data.root={data}", f"seed={seed}"]
            jobs[texture, seed, kind] = study.job(study.runs / f"{texture}-{kind}-seed{seed}", options)
    measured = run_all(jobs, study.workers)
    for (texture, seed, kind), job in jobs.items():
        if kind == "half":
            rest = study.runs / "halves" / f"{texture}-seed{seed}" / "rest"
            measured[texture, seed, "updated"] = updated(job.folder, rest)
    found = [
        {"texture": texture, "seed": seed, "detector": kind, **{key: one[key] for key in SHOWN}}
        for (texture, seed, kind), one in measured.items()
    ]
    rows = [
        {
            "texture": texture,
            "detector": kind,
            **{
                shown: [f[key] for f in found if (f["texture"], f["detector"]) == (texture, kind)]
                for key, shown in SHOWN.items()
            },
        }
        for texture in dict.fromkeys(f["texture"] for f in found)
        for kind in ("half", "updated", "all")
    ]
    print(write_table(study.output, found, rows))


if __name__ == "__main__":
    script(main)
