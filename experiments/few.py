"""Compare methods that are fitted on few photographs: what a new product has on its first day.

    python -m experiments.few root=FOLDER                             # each folder in it is a texture, as MVTec AD's
    python -m experiments.few root=FOLDER counts=4,16 methods=fusion,patchcore seeds=0 workers=2

Of each texture's training images `counts` are drawn at random, by seed, the same for all methods; every test image
tests. Each run fits once: no figure of the tables depends on a threshold. No figure here chooses anything: the table is
written and not read.

Own keys: root, textures, methods, counts, seeds, workers, runs (folder of the links and runs), output (without suffix:
.json and .md are written). Every other key=value goes to each run. The output grows with every run; a finished run is
not repeated.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from experiments.runs import draw, grouped, link_samples, read_study, run_all, script, write_table
from experiments.textures import find_textures, finished_runs, job, table
from texture_ad.data.layouts import scan
from texture_ad.errors import UserError
from texture_ad.reporting.tables import markdown_table


def link_few(texture: Path, count: int, seed: int, folder: Path) -> None:
    """Link `count` training images and all test images of a texture from a folder.

    Raises:
        UserError: the texture has fewer training images.
    """
    layout = scan(texture)
    if count > len(layout.train):
        raise UserError(f"{texture}: has {len(layout.train)} training images, counts= wants {count}")
    link_samples([*draw(layout.train, count, seed)[0], *layout.test], texture, folder)


def by_count(runs: Sequence[dict], methods: Sequence[str], key: str) -> list[dict]:
    """Return a row for each number of images: a metric of each method, a list over seeds of means over textures."""
    rows = []
    for (count,), of in grouped(runs, "count").items():
        groups = grouped((run for run in of if run[key] is not None), "method", "seed")
        means = {which: fmean(run[key] for run in group) for which, group in groups.items()}
        row: dict = {"training images": str(count)}
        for method in methods:
            row[method] = [mean for (name, _), mean in means.items() if name == method] or None
        rows.append(row)
    return rows


def main() -> None:
    """Make the runs, and write the tables after each."""
    study = read_study("few", root=[""], textures=[], methods=["fusion", "padim", "patchcore"], counts=["4", "8", "16"])
    textures = find_textures(study.root, study["textures"])
    folder = study.runs.absolute()
    counts = study.numbers("counts", least=1)
    jobs = {}
    for seed, count, texture in product(study.numbers("seeds"), counts, textures):
        few = folder / "images" / f"{count}-seed{seed}" / texture
        link_few(study.root / texture, count, seed, few)
        for method in study["methods"]:
            jobs[count, texture, method, seed] = job(
                study, folder / f"{count}-images", few, method, seed, "cross_fit=false"
            )

    def write() -> str:
        found = [
            {"count": count, **run}
            for count in counts
            for run in finished_runs({key[1:]: one for key, one in jobs.items() if key[0] == count})
        ]
        below = [markdown_table(by_count(found, study["methods"], "aupro"))]
        for count in counts:
            of = [run for run in found if run["count"] == count]
            below.append(
                f"{count} training images:\n\n" + markdown_table(table(of, study["methods"], textures, "image_auroc"))
            )
        return write_table(study.output, found, by_count(found, study["methods"], "image_auroc"), "\n\n".join(below))

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
