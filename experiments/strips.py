"""Find defects on long strips at their own resolution, beside single tiles: are tiles joined as good as tiles alone?

    python -m experiments.strips root=FOLDER                       # FOLDER holds aitex_fabric03, as MVTec AD's
    python -m experiments.strips root=FOLDER seeds=0 strips=8 trainer.accelerator=gpu

AITEX's names tell which tiles of 256 pixels lay side by side in the original photograph. These rows, of 11 tiles, are
the strips, so that they have no joint of their own. Training strips are made of training images alone. One test strip
is made for each anomalous test image, which is put in the place of a random tile of a row of good test images; as many
normal ones get a good tile of another photograph instead. Each of these tiles has the mean grey of the one that it
replaces, is moved by up to 12 pixels to where its weave fits best, and is blended over 16 pixels, so that its edges
tell little.

Compared are the images one by one (`tiles`) and the strips cut by data.tile (`strips`), by image AUROC; `located` is
the share of anomalous strips whose highest anomaly lies in the defective tile.

Own keys: root, texture, strips (anomalous and normal test strips, at most), seeds, device (that locates), workers, runs
(folder of the strips and runs), output (without suffix: .json and .md are written). Every other key=value goes to each
run. A finished run is not repeated.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.runs import KEPT, Job, arguments, read_run, run_all, script, write_table
from experiments.textures import find_textures
from texture_ad.data.images import read_image, read_mask
from texture_ad.data.layouts import Sample, scan
from texture_ad.errors import UserError
from texture_ad.files import write_text
from texture_ad.methods.registry import load

LENGTH = 11  # tiles of a strip
SIDE = 256  # of a tile, pixels
BLEND = 16  # pixels at the edges of a tile that is put into a row
REACH = 12  # pixels that it is moved by, at most
TILED = [f"data.tile={SIDE}", "data.overlap=32"]


def rows(samples: Sequence[Sample]) -> list[np.ndarray]:
    """Return rows of LENGTH tiles that lay side by side, uint8 (256, LENGTH * 256, 3)."""
    places: dict[str, dict[int, Sample]] = defaultdict(dict)
    for sample in samples:
        name, _, place = sample.path.stem.rpartition("_")
        places[name][int(place) // SIDE] = sample
    return [
        np.concatenate([read_image(row[place].path) for place in sorted(row)], 1)
        for row in places.values()
        if len(row) == LENGTH and max(row) - min(row) == LENGTH - 1
    ]


def insert(row: np.ndarray, tile: np.ndarray, mask: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Put another tile into a row, where its weave fits best.

    Args:
        row: uint8 (256, LENGTH * 256, 3).
        tile: uint8 (256, 256, 3).
        mask: of its defect, bool (256, 256).
        place: of the tile that it replaces.

    Returns:
        The strip, uint8, and the mask, bool, of the row's size.
    """
    padded = np.pad(row, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="symmetric").astype(np.float32)
    left = place * SIDE
    before = padded[REACH : REACH + SIDE, REACH + left : REACH + left + SIDE]
    matched = tile * (before.mean() / max(1.0, tile.mean()))
    edge = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) + 1
    rim = np.minimum(*np.meshgrid(edge, edge)) <= BLEND
    moves = list(product(range(2 * REACH + 1), repeat=2))

    def misfit(move: tuple[int, int]) -> float:
        part = padded[move[0] : move[0] + SIDE, left + move[1] : left + move[1] + SIDE]
        return float(np.abs(part[rim] - matched[rim]).mean())

    down, across = min(moves, key=misfit)
    part = padded[down : down + SIDE, left + across : left + across + SIDE]
    part += np.minimum(1, np.minimum(*np.meshgrid(edge, edge)) / BLEND)[..., None] * (matched - part)
    marked = np.zeros(padded.shape[:2], bool)
    marked[down : down + SIDE, left + across : left + across + SIDE] = mask
    inside = (slice(REACH, -REACH), slice(REACH, -REACH))
    return padded[inside].clip(0, 255).round().astype(np.uint8), marked[inside]


def write(pixels: np.ndarray, path: Path) -> None:
    """Write a strip or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_strips(source: Path, target: Path, most: int) -> None:
    """Write the strips of a texture in MVTec AD's layout, and in places.json which tile of each is defective.

    Raises:
        UserError: images that lay side by side are too few.
    """
    layout = scan(source)
    generator = np.random.default_rng(0)
    good = [sample for sample in layout.test if not sample.label]
    trained, tested = rows(layout.train), rows(good)
    others = [sample for sample in good if sample.path.stem.startswith("clean_")]
    if len(trained) < 2 or not tested or not others:
        raise UserError(f"{source}: needs rows of {LENGTH} tiles that lay side by side, named as aitex_fabric03's")
    for number, row in enumerate(trained):
        write(row, target / f"train/good/{number:03d}.png")
    defective = [sample for sample in layout.test if sample.label]
    defective = [defective[i] for i in sorted(generator.permutation(len(defective))[:most])]
    places = {}
    for number, sample in enumerate(defective):
        name = f"{number:03d}.png"
        place, other = (int(generator.integers(LENGTH)) for _ in range(2))
        row, another = (tested[int(generator.integers(len(tested)))] for _ in range(2))
        marked = read_mask(sample.mask, (SIDE, SIDE)) if sample.mask else np.ones((SIDE, SIDE), bool)
        strip, mask = insert(row, read_image(sample.path), marked, place)
        write(strip, target / "test/defect" / name)
        write(mask, target / "ground_truth/defect" / name)
        normal = read_image(others[int(generator.integers(len(others)))].path)
        write(insert(another, normal, marked, other)[0], target / "test/good" / name)
        places[name] = place
    write_text(target / "places.json", json.dumps(places))


def located(run: Path, strips: Path, device: str) -> float:
    """Return the share of anomalous strips whose highest anomaly lies in the defective tile; it is found once a run."""
    found = run / "located.json"
    if not found.is_file():
        detector = load(run / "detector.pt", device)
        places = json.loads((strips / "places.json").read_text(encoding="utf-8"))
        hits = []
        for name, place in places.items():
            maps = detector(detector.read(strips / "test/defect" / name)).anomaly_maps
            column = int(maps[0].amax(0).argmax())
            hits.append(column * LENGTH // maps.shape[2] == place)
        write_text(found, json.dumps(float(np.mean(hits))))
    return json.loads(found.read_text(encoding="utf-8"))


def main() -> None:
    """Make the strips and the runs, and write the table."""
    own, overrides = arguments(
        {
            "root": [""],
            "texture": ["aitex_fabric03"],
            "strips": ["1000"],
            "seeds": ["0", "1", "2"],
            "device": ["cpu"],
            "workers": ["1"],
            "runs": ["runs/experiments/strips"],
            "output": ["experiments/results/strips"],
        }
    )
    root = Path(own["root"][0]).expanduser()
    (texture,) = find_textures(root, own["texture"])
    runs = Path(own["runs"][0])
    strips = runs / f"{texture}-strips"
    if not (strips / "places.json").is_file():
        make_strips(root / texture, strips, int(own["strips"][0]))
    data = {"tiles": [f"data.root={root / texture}"], "strips": [f"data.root={strips}", *TILED]}
    jobs = {
        (kind, seed): Job(runs / f"{kind}-seed{seed}", ["data=folder", *options, f"seed={seed}", *overrides])
        for seed in own["seeds"]
        for kind, options in data.items()
    }
    run_all(list(jobs.values()), int(own["workers"][0]))
    results = [
        {
            "images": kind,
            "seed": int(seed),
            "located": located(job.folder, strips, own["device"][0]) if kind == "strips" else None,
            **{key: found.get(key) for key in KEPT},
        }
        for (kind, seed), job in jobs.items()
        if (found := read_run(job.folder))
    ]
    table = [
        {
            "images": kind,
            **{
                key: [r[key] for r in results if r["images"] == kind] for key in ("image_auroc", "pixel_auroc", "aupro")
            },
            "located": [r["located"] for r in results if r["images"] == kind] if kind == "strips" else None,
        }
        for kind in data
    ]
    print(write_table(Path(own["output"][0]), results, table))


if __name__ == "__main__":
    script(main)
