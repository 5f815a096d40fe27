"""Print the peak memory in MiB of whitening, stage 2 and calibration on so many images, which are not held.

    python -m benchmarks.stage2_memory 3000

The images are 30 files under many names; they are decoded anew at every pass.
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.material import SMALL, fit_after_stage1, prepared_run, untrained_detector, write_noise
from texture_ad.cli.experiment import prepare_process
from texture_ad.training.resources import peak_memory

FILES = 30
SIZE = 128
SETTINGS = (
    *SMALL,
    "backbone.layers=[block2]",
    "backbone.grid=block2",
    "backbone.weights=none",
    "dictionary.num_atoms=64",
    f"data.size={SIZE}",
    "data.cache_mb=0",
    "data.eval_batch_size=30",
    "features.memory_mb=16",
    "detection.iterations=1",
    "detection.batch=128",
)


def write_images(folder: Path, count: int) -> None:
    """Write FILES images of noise, and links to them until there are `count` images."""
    write_noise(folder, FILES, SIZE, SIZE)
    files = sorted((folder / "train" / "good").iterdir())
    for i in range(FILES, count):
        original = files[i % FILES]
        original.with_name(f"{i:04d}{original.suffix}").symlink_to(original)


def main() -> None:
    """Fit on as many images as the command line says, and print the peak."""
    prepare_process()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        write_images(Path(root), int(sys.argv[1]))
        run = prepared_run(Path(root), *SETTINGS)
        fit_after_stage1(run, untrained_detector(run, run.data.geometry))
    print(peak_memory()["peak_memory_mb"])


if __name__ == "__main__":
    main()
