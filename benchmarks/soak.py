"""Measure whether memory stays flat and latency even over many predictions in one process.

    python -m benchmarks.soak DETECTOR FOLDER --count 50000 --output benchmarks/results/soak.json

Each photograph of the folder is read from the disk and scored by itself, over and over. The result holds the resident
memory at ten moments and the latency's quantiles, both without the first hundred predictions, and whether they keep
their bounds: memory grows by less than 5 %, the 99th percentile stays within three medians. Only Linux tells the
resident memory; elsewhere it is left out.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from experiments.runs import script
from texture_ad.deploy.scorer import Scorer, find_files
from texture_ad.files import write_text
from texture_ad.methods.registry import load

WARM_UP = 100
MAX_GROWTH = 0.05  # of the resident memory
MAX_P99 = 3  # medians


def resident(process: int | None = None) -> float | None:
    """Return how much of a process, by default this one, is in memory, in MiB; None where the system does not tell."""
    statm = Path(f"/proc/{process or os.getpid()}/statm")
    if not statm.exists():
        return None
    pages = int(statm.read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def measure(scorer: Scorer, paths: list[Path], count: int) -> tuple[np.ndarray, list[float]]:
    """Score one image at a time.

    Returns:
        The seconds of each prediction (count,), and the resident memory in MiB at ten moments and the end; empty where
        the system does not tell.
    """
    seconds = np.empty(count)
    memory = []
    for i in range(-WARM_UP, count):
        start = time.perf_counter()
        one = [paths[i % len(paths)]]
        scorer.score(one, scorer.read(one))
        if i >= 0:
            seconds[i] = time.perf_counter() - start
        if i >= 0 and (i % max(1, count // 10) == 0 or i == count - 1):
            memory.append(resident())
            print(f"{i + 1} predictions, {memory[-1]} MiB", flush=True)
    return seconds, [value for value in memory if value is not None]


def memory_result(memory: list[float]) -> dict[str, object]:
    """Return the part of the result about memory in MiB; empty where it was not measured."""
    if not memory:
        print("memory_mib is left out: this system does not tell a process's resident memory")
        return {}
    return {"memory_mib": memory, "memory_growth": round(memory[-1] / memory[0] - 1, 4)}


def latency_result(seconds: np.ndarray) -> dict[str, object]:
    """Return the part of the result about the seconds of each prediction (n,)."""
    median, p99 = (float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    return {
        "median_ms": round(1000 * median, 2),
        "p99_ms": round(1000 * p99, 2),
        "p99_over_median": round(p99 / median, 2),
        "max_ms": round(1000 * float(seconds.max()), 2),
    }


def is_flat(memory: list[float]) -> bool:
    """Return whether the resident memory in MiB did not grow, or was not measured."""
    return not memory or memory[-1] < (1 + MAX_GROWTH) * memory[0]


def within_bounds(seconds: np.ndarray, memory: list[float]) -> bool:
    """Return whether memory and latency are within their bounds."""
    median, p99 = np.quantile(seconds, (0.5, 0.99))
    return bool(is_flat(memory) and p99 < MAX_P99 * median)


def main() -> None:
    """Measure a detector on a folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--output", type=Path, default=Path("soak.json"))
    args = parser.parse_args()
    scorer = Scorer(load(args.detector), args.folder, None)
    paths = find_files(args.folder, args.output.with_suffix("")).images
    seconds, memory = measure(scorer, paths, args.count)
    result = {
        "predictions": args.count,
        "size": scorer.size,
        **memory_result(memory),
        **latency_result(seconds),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "kept": within_bounds(seconds, memory),
    }
    text = json.dumps(result, indent=2)
    write_text(args.output, text + "\n")
    print(text)


if __name__ == "__main__":
    script(main)
