"""Train the learnt methods of Table 2 longer than by default, to see whether their training had converged.

    python -m experiments.convergence data.root=ROOT        # MVTec AD; without it, embedded data: not a benchmark

Runs of the default length are those of `experiments.table2` with the same folder of runs. No figure here chooses
anything.

Own keys: methods, factors (of the default's number of epochs), categories, seeds, workers, runs, output. Every other
key=value goes to each run.
"""

from pathlib import Path

from experiments.runs import KEPT, Job, paper_job, run_all, script, study_arguments, write_table
from texture_ad.cli.compose import compose
from texture_ad.data.embedded import TEXTURES
from texture_ad.errors import UserError


def default_epochs(method: str) -> int:
    """Return how many epochs a method's default configuration trains.

    Raises:
        UserError: it trains none.
    """
    options = compose([f"method={method}"]).method
    if "epochs" not in options:
        raise UserError(f"methods={method}: it has no method.epochs that could be more")
    return options.epochs


def main() -> None:
    """Make the runs and write a table: a row for each texture and method, a column for each length of training."""
    own, overrides = study_arguments(
        "convergence",
        methods=["ganomaly", "dsebm", "patch_svdd"],
        factors=["1", "4"],
        categories=TEXTURES,
        runs=["runs/experiments/paper"],
    )
    epochs = {method: default_epochs(method) for method in own["methods"]}

    def job(category: str, method: str, factor: str, seed: str) -> Job:
        label, options = method, [f"method={method}"]
        if factor != "1":
            label = f"{method}-x{factor}"
            options.append(f"method.epochs={round(float(factor) * epochs[method])}")
        return paper_job(Path(own["runs"][0]), category, label, seed, options, overrides)

    jobs = {
        (category, method, factor, seed): job(category, method, factor, seed)
        for seed in own["seeds"]
        for method in own["methods"]
        for category in own["categories"]
        for factor in own["factors"]
    }
    found = dict(zip(jobs, run_all(list(jobs.values()), int(own["workers"][0])), strict=True))
    runs = [
        {
            "category": category,
            "method": method,
            "epochs": round(float(factor) * epochs[method]),
            "seed": int(seed),
            **{key: run.get(key) for key in KEPT},
        }
        for (category, method, factor, seed), run in found.items()
    ]
    rows = [
        {
            "method": f"{method}, {epochs[method]} epochs",
            "category": category,
            **{
                f"{factor} × epochs": [found[category, method, factor, seed]["image_auroc"] for seed in own["seeds"]]
                for factor in own["factors"]
            },
        }
        for method in own["methods"]
        for category in own["categories"]
    ]
    print(write_table(Path(own["output"][0]), runs, rows))


if __name__ == "__main__":
    script(main)
