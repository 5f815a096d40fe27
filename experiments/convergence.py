"""Train the learnt methods of Table 2 longer than by default, to see whether their training had converged.

    python -m experiments.convergence data.root=ROOT        # MVTec AD; without it, embedded data: not a benchmark

Runs of the default length are those of `experiments.table2` with the same folder of runs. No figure here chooses
anything.

Own keys: methods, factors (of the default's number of epochs), categories, seeds, workers, runs, output. Every other
key=value goes to each run.
"""

from experiments.runs import Job, kept_runs, paper_job, read_study, run_all, script, write_table
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
    study = read_study(
        "convergence",
        methods=["ganomaly", "dsebm", "patch_svdd"],
        factors=["1", "4"],
        categories=TEXTURES,
        runs=["runs/experiments/paper"],
    )
    study.numbers("factors", float)  # refuses what is no number
    epochs = {method: default_epochs(method) for method in study["methods"]}

    def job(category: str, method: str, factor: str, seed: int) -> Job:
        label, options = method, [f"method={method}"]
        if factor != "1":
            label = f"{method}-x{factor}"
            options.append(f"method.epochs={round(float(factor) * epochs[method])}")
        return paper_job(study, category, label, seed, options)

    jobs = {
        (category, method, factor, seed): job(category, method, factor, seed)
        for seed in study.numbers("seeds")
        for method in study["methods"]
        for category in study["categories"]
        for factor in study["factors"]
    }
    run_all(jobs, study.workers)
    runs = kept_runs(jobs, ("category", "method", "factor", "seed"))
    aurocs: dict[tuple, list[float]] = {}
    for run in runs:
        run["epochs"] = round(float(run["factor"]) * epochs[run["method"]])
        aurocs.setdefault((run["method"], run["category"], run.pop("factor")), []).append(run["image_auroc"])
    rows = [
        {
            "method": f"{method}, {epochs[method]} epochs",
            "category": category,
            **{f"{factor} × epochs": aurocs[method, category, factor] for factor in study["factors"]},
        }
        for method in study["methods"]
        for category in study["categories"]
    ]
    print(write_table(study.output, runs, rows))


if __name__ == "__main__":
    script(main)
