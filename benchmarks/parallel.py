"""Measure what two processes gain: a sweep of two runs side by side, and one run on two processes by DDP.

    python -m benchmarks.parallel            # on two quiet cores, some minutes

Each process has one thread. Efficiency is the time of one process after the other over twice that of both together, or
the time of one process over twice that of two. Writes benchmarks/results/parallel.json. The images are random.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.material import write_noise
from benchmarks.results import RESULTS, machine
from texture_ad.files import write_text

SETTINGS = (
    "data=folder",
    "pictures=false",
    "logger=none",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
)
SWEEP = ("-m", "seed=0,1", "cache=never")
SIDE_BY_SIDE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
DDP = ("trainer.devices=2", "trainer.strategy=ddp")


def seconds(root: Path, *overrides: str) -> float:
    """Return the seconds of a command of `texture_ad.run` on the images of a folder, its start included."""
    with tempfile.TemporaryDirectory() as runs:
        folder = [] if "-m" in overrides else [f"run_dir={runs}/run"]
        call = [sys.executable, "-m", "texture_ad.run", *overrides, f"data.root={root}", *SETTINGS, *folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
        start = time.perf_counter()
        subprocess.run(call, check=True, cwd=runs, env=environment, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    """Measure both, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", help="of every run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "noise"
        write_noise(root, args.images, args.size)
        times = {
            "sweep, one after the other": seconds(root, *SWEEP, *args.overrides),
            "sweep, side by side": seconds(root, *SWEEP, *SIDE_BY_SIDE, *args.overrides),
            "one process": seconds(root, *args.overrides),
            "two processes": seconds(root, *DDP, *args.overrides),
        }
    found = {
        "machine": machine(),
        "images": args.images,
        "seconds": times,
        "efficiency of the sweep": times["sweep, one after the other"] / (2 * times["sweep, side by side"]),
        "efficiency of DDP": times["one process"] / (2 * times["two processes"]),
    }
    write_text(args.output / "parallel.json", json.dumps(found, indent=1) + "\n")
    print(
        json.dumps({key: found[key] for key in ("seconds", "efficiency of the sweep", "efficiency of DDP")}, indent=1)
    )


if __name__ == "__main__":
    main()
