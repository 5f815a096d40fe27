"""Measure whether the fusion helps: every representation with every score, and how synthetic defects rank them.

    python -m experiments.fusion data.root=FOLDER                       # photographs
    python -m experiments.fusion data.category=carpet output=...        # embedded data: not a benchmark

Own keys: seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are written). Every other
key=value goes to each run. Runs that differ only in the score share one stage 1; a finished run is not repeated.
"""

from statistics import mean

from scipy.stats import spearmanr

from experiments.runs import data_of_overrides, grouped, kept_runs, read_photograph_study, run_all, script, write_table

REPRESENTATIONS = {
    "frozen": ["cutpaste=none", "trainer.max_epochs=8"],
    "CutPaste": ["cutpaste=3way", "representation.backbone_lr=1e-4"],
    "CutPaste + flow": ["cutpaste=3way", "representation.backbone_lr=1e-4", "representation.flow_weight=1"],
}
# Of all layers and without the head, as a backbone that learns CutPaste needs; each part alone has all of its weight.
LEARNT = ("flow.first=0", "score.head_weight=0")
ALONE = (*LEARNT, "score.trust=0")
SCORES = {
    "Gaussian": [*ALONE, "score.flow_weight=0", "score.dictionary_weight=0"],
    "flow likelihood": [*ALONE, "score.dictionary_weight=0"],
    "dictionary": [*ALONE, "score.flow_weight=0"],
    "dictionary on latent features": [*ALONE, "score.flow_weight=0", "dictionary.features=latent", "dictionary.last=0"],
    "all of these": [*LEARNT],
}
MEASURED = {"test": "image_auroc", "synthetic": "synthetic_auroc"}
OPTION = ("representation", "score")  # what runs of one seed differ in


def table(runs: list[dict]) -> list[dict]:
    """Return a row for each representation on test images and on synthetic defects, scores as lists over the seeds."""
    groups = grouped(runs, *OPTION)
    source = runs[0]["data_source"]
    return [
        {"image AUROC on": name, "representation": representation}
        | {score: [run[key] for run in groups.get((representation, score), [])] or None for score in SCORES}
        | {"data": source}
        for name, key in MEASURED.items()
        for representation in REPRESENTATIONS
    ]


def agreement(runs: list[dict]) -> str:
    """Return how far synthetic defects rank the options as the test images do, both averaged over the seeds."""
    groups = grouped(runs, *OPTION)
    test, synthetic = ([mean(run[key] for run in group) for group in groups.values()] for key in MEASURED.values())
    chosen = max(range(len(synthetic)), key=synthetic.__getitem__)
    return (
        f"Rank correlation of both over {len(groups)} options: {spearmanr(test, synthetic).statistic:.2f}. Synthetic "
        f"defects prefer {' with '.join(list(groups)[chosen])}: {test[chosen]:.3f} on test images, where the best "
        f"option has {max(test):.3f}.\n"
    )


def main() -> None:
    """Make the runs, and write the table after each."""
    study = read_photograph_study("fusion")
    name = data_of_overrides(study.overrides)
    jobs = {
        (representation, score, seed): study.job(
            study.runs / f"{name}-{representation}-{score}-seed{seed}".replace(" ", ""),
            ["cache=always", f"seed={seed}", "trainer.max_epochs=3", *chosen, *options],
        )
        for seed in study.numbers("seeds")
        for representation, chosen in REPRESENTATIONS.items()
        for score, options in SCORES.items()
    }

    def write() -> str:
        runs = kept_runs(jobs, (*OPTION, "seed"))
        return write_table(study.output, runs, table(runs), agreement(runs))

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
