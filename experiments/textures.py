"""Compare methods on every texture of a folder, over seeds: what is true of one texture may not be of another.

    python -m experiments.textures root=FOLDER                        # each folder in it is a texture, as MVTec AD's
    python -m experiments.textures root=FOLDER methods=fusion,padim seeds=0 workers=2

Own keys: root, textures, methods, seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are
written). Every other key=value goes to each run. `methods` may name variants of ours: "-head", "-flow", "-dictionary"
(the fusion without that part) and "-position" (one whitening for all positions). The output grows with every run; a
finished run is not repeated. No figure here chooses anything: the table is written and not read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from scipy.stats import wilcoxon

from experiments.runs import Job, Study, grouped, kept_runs, read_study, run_all, script, write_table
from texture_ad.errors import UserError
from texture_ad.evaluation.spread import mean_ranks
from texture_ad.reporting.metrics import METRICS
from texture_ad.reporting.tables import markdown_table

WITHOUT = {
    "-head": ["score.head_weight=0"],
    "-flow": ["score.flow_weight=0"],
    "-dictionary": ["score.dictionary_weight=0"],
    "-position": ["whitening.mode=global"],
}
BY_TEXTURE = ("image_auroc", "aupro", "aupro_05", "seg_f1")  # shown for each texture
COMPARED = (
    "image_auroc",
    "image_ap",
    "pixel_auroc",
    "aupro",
    "aupro_05",
    "seg_f1",
    "fit_seconds",
    "test_seconds_per_image",
)


def options(method: str) -> list[str]:
    """Return the overrides of a method, or of ours without a part."""
    return ["method=fusion", *WITHOUT[method]] if method in WITHOUT else [f"method={method}"]


def job(study: Study, runs: Path, texture: Path, method: str, seed: int, *more: str) -> Job:
    """Return the run of a method on a texture, with `more` overrides of the study's, in its own folder in `runs`."""
    folder = runs / f"{texture.name}-{method.replace('-', 'without_')}-seed{seed}"
    return study.job(folder, ["data=folder", f"data.root={texture}", f"seed={seed}", *options(method), *more])


def jobs_of(study: Study, *more: str) -> dict[tuple[str, str, int], Job]:
    """Return the run of every texture, method and seed that a study's own keys name, with `more` overrides."""
    return {
        (texture, method, seed): job(study, study.runs, study.root / texture, method, seed, *more)
        for seed in study.numbers("seeds")
        for texture in find_textures(study.root, study["textures"])
        for method in study["methods"]
    }


def finished_runs(jobs: Mapping[tuple[str, str, int], Job], more: Sequence[str] = ()) -> list[dict]:
    """Return what a table's JSON keeps of each finished run, with `more` keys of its metrics."""
    return kept_runs(jobs, ("texture", "method", "seed"), (*COMPARED, *more))


def find_textures(root: Path, wanted: Sequence[str]) -> list[str]:
    """Return the names of the textures in a folder, or check those that are wanted.

    Raises:
        UserError: no such folder, or a texture that it doesn't hold.
    """
    if not root.is_dir():
        raise UserError(f"root={root}: no such folder; give the folder that holds one folder for each texture")
    found = sorted(path.parents[1].name for path in root.glob("*/train/good"))
    missing = [name for name in wanted if name not in found]
    if not found:
        raise UserError(f"root={root}: no folder in it holds train/good; give the folder of the textures' folders")
    if missing:
        raise UserError(f"root={root}: holds {', '.join(found)}, not {', '.join(missing)}")
    return list(wanted) or found


def table(runs: Sequence[dict], methods: Sequence[str], textures: Sequence[str], key: str) -> list[dict]:
    """Return a row for each texture, then the mean and the mean rank: a metric of each method, lists over seeds."""
    heading = METRICS[key].heading
    of = {
        (texture, method): [
            r[key] for r in runs if (r["texture"], r["method"]) == (texture, method) and r[key] is not None
        ]
        for texture in textures
        for method in methods
    }
    rows: list[dict] = [{heading: t, **{m: of[t, m] or None for m in methods}} for t in textures]
    complete = [t for t in textures if all(of[t, m] for m in methods)]
    if complete:
        means = {m: [fmean(of[t, m]) for t in complete] for m in methods}
        rows.append({heading: f"mean of {len(complete)}", **{m: fmean(means[m]) for m in methods}})
        ranks = mean_ranks([[means[m][i] for m in methods] for i in range(len(complete))])
        rows.append({heading: "mean rank", **dict(zip(methods, ranks, strict=True))})
    return rows


def other_metrics(runs: Sequence[dict], methods: Sequence[str]) -> list[dict]:
    """Return a row for each method: every metric, averaged over the seeds of each texture, then over textures."""
    return [
        {"mean over textures": method, **{METRICS[key].heading: _mean(runs, method, key) for key in COMPARED}}
        for method in methods
    ]


def _mean(runs: Sequence[dict], method: str, key: str) -> float | None:
    of = _means_by_texture(runs, method, key)
    return fmean(of.values()) if of else None


def _means_by_texture(runs: Sequence[dict], method: str, key: str) -> dict[str, float]:
    """Return the mean of a method's metric over the seeds of each texture that has it, in the unit of its heading."""
    own = grouped((r for r in runs if r["method"] == method and r.get(key) is not None), "texture")
    return {texture: fmean(METRICS[key].scale * r[key] for r in group) for (texture,), group in own.items()}


def paired(runs: Sequence[dict], methods: Sequence[str]) -> str:
    """Return how the first method differs from each other one, in pairs, one a texture, each the mean over seeds.

    The test is Wilcoxon's signed ranks, two-sided.
    """
    ours, *others = methods
    lines = []
    for other in others:
        means = {method: _means_by_texture(runs, method, "image_auroc") for method in (ours, other)}
        differences = [of - means[other][texture] for texture, of in means[ours].items() if texture in means[other]]
        if any(differences):
            p = wilcoxon(differences).pvalue
            better = sum(d > 0 for d in differences)
            mean = fmean(differences)
            lines.append(
                f"- {ours} less {other}: {mean:+.4f}; higher in {better} of {len(differences)} textures, p = {p:.3f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Make the runs, and write the tables after each."""
    study = read_study("textures", root=[""], textures=[], methods=["fusion", "padim", "patchcore"])
    jobs = jobs_of(study)
    textures = list(dict.fromkeys(texture for texture, _, _ in jobs))

    def write() -> str:
        runs = finished_runs(jobs)
        first, *others = (table(runs, study["methods"], textures, key) for key in BY_TEXTURE)
        below = [markdown_table(other_metrics(runs, study["methods"])), paired(runs, study["methods"])]
        return write_table(study.output, runs, first, "\n\n".join([*below, *(markdown_table(rows) for rows in others)]))

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
