"""Draw Figure 6 of Guo, Song, Ma: t-SNE of carpet's patch features before and after each learnt step.

    python -m experiments.figure6 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

Own keys: category, seed, runs, output. Every other key=value goes to the run.
"""

from experiments.runs import figure_run, load_fusion, run_of, script
from texture_ad.evaluation.embedding import embed
from texture_ad.methods.fusion.explain import sample_features
from texture_ad.reporting.charts import tsne


def main() -> None:
    """Make the run, unless it is finished, and draw its features."""
    folder, metrics, output = figure_run("figure6")
    run = run_of(folder)
    data = run.make("data")
    data.setup()
    features, labels = sample_features(run.pretrained_backbone(), load_fusion(folder), data, run.config.seed)
    layouts, labels = embed(features, labels, run.config.seed)
    tsne(layouts, labels, output, metrics["data_source"], "patches")
    print(f"{metrics['data_source']}: {output}")


if __name__ == "__main__":
    script(main)
