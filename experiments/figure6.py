"""The paper's Figure 6: t-SNE of carpet's patch features before and after each learnt step.

    python -m experiments.figure6 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

Own keys: category, seed, runs, output. Every other key=value goes to the run.
"""

from hydra.utils import instantiate
from omegaconf import OmegaConf
from texture_ad.methods.saved import load_detector

from experiments.runs import figure_run, script
from texture_ad.evaluation.embedding import embed
from texture_ad.methods.fusion.explain import sample_features
from texture_ad.reporting.charts import tsne


def main() -> None:
    folder, metrics, output = figure_run("figure6")
    config = OmegaConf.load(folder / "config.yaml")
    data = instantiate(config.data)
    data.setup()
    features, labels = sample_features(
        instantiate(config.backbone).eval(), load_detector(folder / "detector.pt"), data, config.seed
    )
    layouts, labels = embed(features, labels, config.seed)
    tsne(layouts, labels, output, metrics["data_source"], "patches")
    print(f"{metrics['data_source']}: {output}")


if __name__ == "__main__":
    script(main)
