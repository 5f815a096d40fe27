"""Hold what thresholds promise against new normal photographs: calibration images held out, or cross-fitted.

    python -m experiments.promise root=FOLDER                         # each folder in it is a texture, as MVTec AD's
    python -m experiments.promise root=FOLDER textures=magnetic_tile counts=28 seeds=0,1,2

Of all normal images of a texture, those of its test too, `counts` are drawn at random for a run, and up to `tested` of
the others stand for images to come. So both are of one kind, as the promise wants it. A row has the share of the latter
above the threshold (`found`, with its standard deviation over seeds) beside the expected one, and how often it lay in
the interval that the run told. Counting errors of the tested images make it lie outside a little more often.

Own keys: root, textures, counts, tested, seeds, workers, runs (folder of the draws and runs), output (without suffix:
.json and .md are written). Every other key=value goes to each run. A finished run is not repeated.
"""

from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.runs import grouped, link_all, read_study, run_all, script, write_table
from experiments.textures import find_textures
from texture_ad.data.layouts import scan

WAYS = {"held out": "cross_fit=false", "cross-fitted": "cross_fit=true"}


def draw(texture: Path, count: int, tested: int, seed: int, folder: Path) -> Path:
    """Make a folder of links to normal images, `count` for training and up to `tested` others, and return it."""
    layout = scan(texture)
    paths = [sample.path for sample in (*layout.train, *layout.test) if not sample.label]
    files = {}
    for place, number in enumerate(np.random.default_rng(seed).permutation(len(paths))[: count + tested]):
        name = f"{number:05}{paths[number].suffix}"
        files[folder / ("train" if place < count else "test") / "good" / name] = paths[number]
    link_all(files, folder)
    return folder


def row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the runs of one texture, count and way."""
    first = runs[0]
    inside = [run["low"] <= run["found"] <= run["high"] for run in runs]
    return {
        "texture": first["texture"],
        "normal images": first["count"],
        "calibration": first["way"],
        "images that calibrate": first["images"],
        "expected": first["expected"],
        "found": [run["found"] for run in runs],
        "interval, mean": f"{fmean(run['low'] for run in runs):.3f} to {fmean(run['high'] for run in runs):.3f}",
        "inside": f"{sum(inside)} of {len(inside)}",
    }


def main() -> None:
    """Make the runs, and write the table."""
    study = read_study("promise", root=[""], textures=[], counts=["28", "60"], tested=["200"])
    tested = study.number("tested")
    counts, seeds = study.numbers("counts", least=1), study.numbers("seeds")
    jobs = {}
    for texture, count, seed in product(find_textures(study.root, study["textures"]), counts, seeds):
        name = f"{texture}-{count}-{tested}-seed{seed}"
        drawn = draw(study.root / texture, count, tested, seed, study.runs / "draws" / name)
        for way, override in WAYS.items():
            options = ["data=folder", f"data.root={drawn}", f"seed={seed}", override]
            jobs[texture, count, way, seed] = study.job(study.runs / f"{name}-{way.replace(' ', '_')}", options)
    found = []
    for key, one in run_all(jobs, study.workers).items():
        about = dict(zip(("texture", "count", "way", "seed"), key, strict=True))
        found.append(about | {"found": one["false_positive_rate"], **one["expected_false_alarms"]})
    print(write_table(study.output, found, list(map(row, grouped(found, "texture", "count", "way").values()))))


if __name__ == "__main__":
    script(main)
