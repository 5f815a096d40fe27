"""The paper's Figure 6: t-SNE of carpet's features before and after the flow.

    python -m experiments.figure6 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

A point is an image: the mean of the patch features at its five highest places. Own keys: category, seed, runs, output.
Every other key=value goes to the run.
"""

from pathlib import Path

import torch

from experiments.runs import arguments, run_once, script
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.models.saved import load_detector
from texture_ad.reporting.figures import tsne


@torch.no_grad()
def located_features(detector, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Backbone and latent features (B, C) at the five highest places, averaged, of uint8 (B, 3, H, W)."""
    locations = detector(images).locations
    patches, (height, width) = detector.patch_features(images)
    index = locations[..., 0] * width + locations[..., 1]
    index = index + torch.arange(len(images))[:, None] * height * width
    found = patches[index[locations[..., 0] >= 0]]
    image = torch.arange(len(images))[:, None].expand_as(index)[locations[..., 0] >= 0]
    return tuple(
        torch.zeros(len(images), f.shape[1]).index_reduce_(0, image, f, "mean", include_self=False)
        for f in (found, detector.flow(found)[0])
    )


def main() -> None:
    own, overrides = arguments({
        "category": ["carpet"], "seed": ["0"], "runs": ["runs/experiments/paper"],
        "output": ["experiments/results/figure6.png"],
    })  # fmt: skip
    category, seed = own["category"][0], own["seed"][0]
    folder = Path(own["runs"][0]) / f"{category}-fusion-seed{seed}"
    metrics = run_once(folder, [f"data.category={category}", f"seed={seed}", "method=fusion", *overrides])
    detector = load_detector(folder / "detector.pt")
    root = next((o.partition("=")[2] for o in overrides if o.startswith("data.root=")), None)
    data = TextureDataModule(root=root, category=category, size=detector.settings["size"])
    data.setup()
    parts = [(*located_features(detector, b["image"]), b["label"]) for b in data.test_dataloader()]
    before, after, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    tsne(before, after, labels, Path(own["output"][0]), metrics["data_source"])
    print(f"{metrics['data_source']}: {own['output'][0]}")


if __name__ == "__main__":
    script(main)
