"""Measure the memory of scoring one very large picture by tiles: `python -m benchmarks.large_picture DETECTOR.pt`.

The picture is written first, 8192 x 20000 pixels of colour unless told otherwise. The detector is one with data.tile.
Printed is the peak of the process less what interpreter, libraries and detector had taken before.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.runs import script

WRITE = """
import sys
import numpy as np
from PIL import Image
width, height = map(int, sys.argv[2:])
tile = np.random.default_rng(0).integers(90, 110, (256, 256, 3), np.uint8)
pixels = np.tile(tile, (-(-height // 256), -(-width // 256), 1))[:height, :width]
Image.fromarray(pixels).save(sys.argv[1])
"""


def main() -> None:
    """Write the picture, score it and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--height", type=int, default=8192)
    parser.add_argument("--suffix", default=".tif")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"large{args.suffix}"
        # In a process of its own: its memory is not ours.
        subprocess.run([sys.executable, "-c", WRITE, str(path), str(args.width), str(args.height)], check=True)
        from texture_ad.deploy.scorer import Scorer
        from texture_ad.methods.registry import load
        from texture_ad.training.resources import peak_memory

        scorer = Scorer(load(args.detector), path, Path(folder) / "output")
        before = peak_memory()["peak_memory_mb"]
        start = time.perf_counter()
        (result,) = scorer.score([path], scorer.read([path]))
        peak = peak_memory()["peak_memory_mb"]
        print(
            f"{args.width} x {args.height} px ({args.suffix}): {peak - before:.0f} MiB beside the interpreter's "
            f"{before:.0f}, {time.perf_counter() - start:.0f} s, score {result.score}, {len(result.regions)} regions"
        )


if __name__ == "__main__":
    script(main)
