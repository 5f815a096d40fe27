"""Does the fusion help? Every representation with every score on it, beside how synthetic defects rank them.

    python -m experiments.fusion data.root=FOLDER                       # photographs
    python -m experiments.fusion data.category=carpet output=...        # embedded data: not a benchmark

Own keys: seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are written). Every other
key=value goes to each run. Runs that differ only in the score share one stage 1; a finished run is not repeated.
"""

from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from experiments.runs import arguments, read_run, run_all, script, write_table

REPRESENTATIONS = {
    "frozen": ["cutpaste=none"],
    "CutPaste": ["cutpaste=3way", "representation.backbone_lr=1e-4"],
    "CutPaste + flow": ["cutpaste=3way", "representation.backbone_lr=1e-4", "representation.flow_weight=1"],
}
SCORES = {
    "Gaussian density": ["dictionary.nonzeros=0"],
    "flow likelihood": ["dictionary.fusion=1"],
    "dictionary": ["dictionary.fusion=0"],
    "dictionary on latent features": ["dictionary.features=latent"],
    "dictionary and flow": ["dictionary.fusion=0.5"],
}
MEASURED = {"test": "image_auroc", "synthetic": "synthetic_auroc"}


def table(runs: list[dict]) -> list[dict]:
    """A row for each representation on test images and on synthetic defects, scores as columns, lists over seeds."""
    return [
        {"image AUROC on": name, "representation": representation}
        | {
            s: [r[key] for r in runs if (r["representation"], r["score"]) == (representation, s)] or None
            for s in SCORES
        }
        | {"data": runs[0]["data_source"]}
        for name, key in MEASURED.items()
        for representation in REPRESENTATIONS
    ]


def agreement(runs: list[dict]) -> str:
    """How far the synthetic defects' order of the options is the test images', both averaged over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["representation"], run["score"]), []).append(run)
    test, synthetic = ([mean(r[key] for r in group) for group in groups.values()] for key in MEASURED.values())
    chosen = max(range(len(synthetic)), key=synthetic.__getitem__)
    return (
        f"Rank correlation of both over {len(groups)} options: {spearmanr(test, synthetic).statistic:.2f}. Synthetic "
        f"defects prefer {' with '.join(list(groups)[chosen])}: {test[chosen]:.3f} on test images, where the best "
        f"option has {max(test):.3f}.\n"
    )


def main() -> None:
    own, overrides = arguments(
        {
            "seeds": ["0", "1", "2"],
            "workers": ["1"],
            "runs": ["runs/experiments/fusion"],
            "output": ["experiments/results/fusion"],
        }
    )
    given = dict(o.split("=", 1) for o in overrides)
    if "data.root" in given and "data" not in given:
        overrides.append("data=folder")
    name = Path(given.get("data.root", given.get("data.category", "carpet"))).name
    jobs = {
        (representation, score, seed): (
            Path(own["runs"][0]) / f"{name}-{representation}-{score}-seed{seed}".replace(" ", ""),
            ["cache=always", f"seed={seed}", "trainer.max_epochs=3", *chosen, *options, *overrides],
        )
        for seed in own["seeds"]
        for representation, chosen in REPRESENTATIONS.items()
        for score, options in SCORES.items()
    }
    kept = ("data_source", "data_fingerprint", "synthetic_auroc", "image_auroc", "pixel_auroc", "aupro", "fit_seconds")

    def write() -> str:
        runs = [
            {"representation": representation, "score": score, "seed": int(seed), **{k: found.get(k) for k in kept}}
            for (representation, score, seed), (folder, _) in jobs.items()
            if (found := read_run(folder))
        ]
        return write_table(Path(own["output"][0]), runs, table(runs), agreement(runs))

    run_all(list(jobs.values()), int(own["workers"][0]), write)
    print(write())


if __name__ == "__main__":
    script(main)
