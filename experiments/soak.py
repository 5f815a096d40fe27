"""Many predictions in one process: does memory stay flat, and the latency even?

    python experiments/soak.py runs/carpet/.../detector.pt FOLDER --count 50000 --output experiments/soak.json

Each photograph of the folder is read from the disk and scored by itself, over and over. The result holds the resident
memory at ten moments and the latency's quantiles, both without the first hundred predictions, and whether they keep
their bounds: memory grows by less than 5 %, the 99th percentile stays within three medians.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from texture_ad.deploy.scorer import Scorer, find_images
from texture_ad.files import write_atomic
from texture_ad.methods.fusion.detector import Detector

WARM_UP = 100


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--output", type=Path, default=Path("soak.json"))
    args = parser.parse_args()
    detector = Detector.load(args.detector)
    paths = find_images(args.folder, args.output.with_suffix(""))
    scorer = Scorer(detector, args.folder, None)
    seconds = np.empty(args.count)
    memory = []
    for i in range(-WARM_UP, args.count):
        start = time.perf_counter()
        one = [paths[i % len(paths)]]
        scorer.score(one, scorer.read(one))
        if i >= 0:
            seconds[i] = time.perf_counter() - start
            if i % max(1, args.count // 10) == 0 or i == args.count - 1:
                memory.append(round(resident(), 1))
                print(f"{i + 1} predictions, {memory[-1]} MiB", flush=True)
    median, p99 = (float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    result = {
        "predictions": args.count,
        "size": detector.settings["size"],
        "memory_mib": memory,
        "memory_growth": round(memory[-1] / memory[0] - 1, 4),
        "median_ms": round(1000 * median, 2),
        "p99_ms": round(1000 * p99, 2),
        "p99_over_median": round(p99 / median, 2),
        "max_ms": round(1000 * float(seconds.max()), 2),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "kept": bool(memory[-1] < 1.05 * memory[0] and p99 < 3 * median),
    }
    write_atomic(args.output, json.dumps(result, indent=2).encode() + b"\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
