"""Find defects on long strips at their own resolution, beside single tiles: are tiles joined as good as tiles alone?

    python -m experiments.strips root=FOLDER                       # FOLDER holds aitex_fabric03, as MVTec AD's
    python -m experiments.strips root=FOLDER seeds=0 strips=8 trainer.accelerator=gpu

Strips of 16 tiles are put together from the texture's images of 256 pixels in the order of their names, which is that
on the roll: training strips from training images, test strips from good test images. In each test strip one tile, at
a random place, is another one: a good one of elsewhere, or an anomalous one. So both kinds have as many joints that
do not fit. Random tiles side by side would have one at every tile, to which a woven cloth is as sensitive as to a
defect. Good images named clean_*, of another roll than those for training, are left out: the highest of sixteen would
often be one of them, with or without a defect.

Compared are the images one by one (`tiles`) and the strips cut by data.tile (`strips`), by image AUROC. `located` is
the share of anomalous strips whose defective tile holds more of the five highest places, which make the score, than
any other tile (where several hold as many, the one with the highest place counts). `peak` is the share in which the
map's highest pixel lies in it.

Own keys: root, texture, strips (anomalous and normal test strips, at most), seeds, device (that locates), workers, runs
(folder of the strips and runs), output (without suffix: .json and .md are written). Every other key=value goes to each
run. A finished run is not repeated.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.runs import kept_runs, read_study, run_all, script, write_table
from experiments.textures import find_textures
from texture_ad.data.images import read_image, read_mask
from texture_ad.data.layouts import scan
from texture_ad.errors import UserError
from texture_ad.files import write_text
from texture_ad.methods.registry import load

LENGTH = 16  # tiles of a strip
SIDE = 256  # of a tile, pixels
# No overlap: at a joint two photographs meet that don't fit, and a tile that holds one looks anomalous.
TILED = [f"data.tile={SIDE}", "data.overlap=0"]


def write(pixels: np.ndarray, path: Path) -> None:
    """Write a strip or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_strips(source: Path, target: Path, most: int) -> None:
    """Write the strips of a texture in MVTec AD's layout, and in places.json which tile of each is defective.

    Raises:
        UserError: too few good images for training or test strips.
    """
    layout = scan(source)
    generator = np.random.default_rng(0)
    trained = [read_image(sample.path) for sample in layout.train]
    good = [s for s in layout.test if not s.label and not s.path.stem.startswith("clean_")]
    if len(trained) < 2 * LENGTH or len(good) <= LENGTH:
        raise UserError(
            f"{source}: needs {2 * LENGTH} training images and {LENGTH + 1} good test images of the same roll"
        )
    normal = [read_image(sample.path) for sample in good]
    for number in range(len(trained) // LENGTH):
        write(
            np.concatenate(trained[number * LENGTH : (number + 1) * LENGTH], 1),
            target / f"train/good/{number:03d}.png",
        )
    defective = [sample for sample in layout.test if sample.label]
    defective = [defective[i] for i in sorted(generator.permutation(len(defective))[:most])]
    places = {}

    def strip(other: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Return a piece of the roll with another tile, None for a good one of elsewhere, and its place."""
        start = int(generator.integers(len(normal) - LENGTH + 1))
        tiles, rest = normal[start : start + LENGTH], normal[:start] + normal[start + LENGTH :]
        place = int(generator.integers(LENGTH))
        tiles[place] = rest[int(generator.integers(len(rest)))] if other is None else other
        return np.concatenate(tiles, 1), place

    for number, sample in enumerate(defective):
        name = f"{number:03d}.png"
        write(strip(None)[0], target / "test/good" / name)
        pixels, place = strip(read_image(sample.path))
        places[name] = place
        mask = np.zeros((SIDE, LENGTH * SIDE), bool)
        mask[:, place * SIDE : (place + 1) * SIDE] = read_mask(sample.mask, (SIDE, SIDE)) if sample.mask else True
        write(pixels, target / "test/defect" / name)
        write(mask, target / "ground_truth/defect" / name)
    write_text(target / "places.json", json.dumps(places))


def located(run: Path, strips: Path, device: str) -> dict[str, float]:
    """Return in what share of anomalous strips the defective tile is found; it is looked for once a run.

    Returns:
        `located`, by the tile that holds more of the highest places than any other (of as many, by the highest place),
        and `peak`, by the highest of the map's pixels alone.
    """
    found = run / "located.json"
    if not found.is_file():
        detector = load(run / "detector.pt", device)
        hits = []
        for name, place in json.loads((strips / "places.json").read_text(encoding="utf-8")).items():
            prediction = detector(detector.read(strips / "test/defect" / name))
            tiles = (prediction.positions[0, :, 1] * LENGTH // prediction.grid[1]).tolist()
            peak = int(prediction.anomaly_maps[0].amax(0).argmax()) * LENGTH // prediction.anomaly_maps.shape[2]
            hits.append((max(tiles, key=tiles.count) == place, peak == place))
        write_text(found, json.dumps(dict(zip(("located", "peak"), np.mean(hits, 0).tolist(), strict=True))))
    return json.loads(found.read_text(encoding="utf-8"))


def main() -> None:
    """Make the strips and the runs, and write the table."""
    study = read_study("strips", root=[""], texture=["aitex_fabric03"], strips=["1000"], device=["cpu"])
    (texture,) = find_textures(study.root, [study.single("texture")])
    most, device = study.number("strips", least=1), study.single("device")
    strips = study.runs / f"{texture}-{most}-strips"
    if not (strips / "places.json").is_file():
        make_strips(study.root / texture, strips, most)
    data = {"tiles": [f"data.root={study.root / texture}"], "strips": [f"data.root={strips}", *TILED]}
    jobs = {
        (kind, seed): study.job(
            study.runs / f"{kind}-seed{seed}", ["data=folder", *options, f"seed={seed}", "cross_fit=false"]
        )
        for seed in study.numbers("seeds")
        for kind, options in data.items()
    }
    run_all(jobs, study.workers)
    results = kept_runs(jobs, ("images", "seed"))
    for run, job in zip(results, jobs.values(), strict=True):
        if run["images"] == "strips":
            run |= located(job.folder, strips, device)
    table = [
        {
            "images": kind,
            **{
                key: values
                for key in ("image_auroc", "pixel_auroc", "aupro", "located", "peak")
                if (values := [r[key] for r in results if r["images"] == kind and key in r])
            },
        }
        for kind in data
    ]
    print(write_table(study.output, results, table))


if __name__ == "__main__":
    script(main)
