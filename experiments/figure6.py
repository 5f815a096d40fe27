"""The paper's Figure 6: t-SNE of carpet's patch features before and after each learnt step.

    python -m experiments.figure6 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

Own keys: category, seed, runs, output. Every other key=value goes to the run.
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.runs import arguments, run_once, script
from texture_ad.models.saved import load_detector
from texture_ad.reporting.features import sample_features
from texture_ad.reporting.figures import tsne


def main() -> None:
    own, overrides = arguments({
        "category": ["carpet"], "seed": ["0"], "runs": ["runs/experiments/paper"],
        "output": ["experiments/results/figure6.png"],
    })  # fmt: skip
    category, seed = own["category"][0], own["seed"][0]
    folder = Path(own["runs"][0]) / f"{category}-fusion-seed{seed}"
    metrics = run_once(folder, [f"data.category={category}", f"seed={seed}", "method=fusion", *overrides])
    config = OmegaConf.load(folder / "config.yaml")
    data = instantiate(config.data)
    data.setup()
    features, labels = sample_features(
        instantiate(config.backbone).eval(), load_detector(folder / "detector.pt"), data, config.seed
    )
    tsne(features, labels, Path(own["output"][0]), metrics["data_source"], seed=config.seed)
    print(f"{metrics['data_source']}: {own['output'][0]}")


if __name__ == "__main__":
    script(main)
