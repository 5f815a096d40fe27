"""Data sets that experiments make of others."""

import json

import numpy as np
from helpers import few_photographs
from PIL import Image

from experiments.strips import make_strips
from experiments.update import halve


def test_strips_differ_from_the_roll_in_one_tile(tmp_path):
    def write(folder, names, levels):
        (tmp_path / folder).mkdir(parents=True)
        for name, level in zip(names, levels, strict=True):
            Image.new("L", (256, 256), level).save(tmp_path / folder / f"{name}.png")

    write("cloth/train/good", [f"{n:03}" for n in range(33)], range(33))
    write("cloth/test/good", [f"{n:03}" for n in range(20)] + ["clean_000"], [*range(100, 120), 99])
    write("cloth/test/hole", ["000", "001"], [200, 201])
    make_strips(tmp_path / "cloth", tmp_path / "strips", 1000)
    first, second = sorted((tmp_path / "strips/train/good").iterdir())
    assert levels_of(first) == list(range(16)) and levels_of(second) == list(range(16, 32))
    places = json.loads((tmp_path / "strips/places.json").read_text())
    for number, (name, place) in enumerate(places.items()):
        tiles = levels_of(tmp_path / "strips/test/defect" / name)
        assert tiles.pop(place) == 200 + number
        mask = np.array(Image.open(tmp_path / "strips/ground_truth/defect" / name)) > 0
        assert mask[:, place * 256 : (place + 1) * 256].all() and mask.sum() == 256**2
        normal = levels_of(tmp_path / "strips/test/good" / name)
        steps = np.diff(normal)
        assert (steps != 1).sum() <= 2 and len(set(normal)) == 16 and 99 not in normal
        assert np.count_nonzero(np.diff(tiles) != 1) <= 1 and max(tiles) < 120


def levels_of(path):
    """Return the grey level of each tile of a strip."""
    return [int(level) for level in np.array(Image.open(path).convert("L"))[0, ::256]]


def test_halves_share_no_training_image_and_the_test_images_are_kept(tmp_path):
    source = few_photographs(tmp_path / "photographs")
    halve(source, 0, tmp_path / "halves")

    def names(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}

    half, rest = names(tmp_path / "halves/half"), names(tmp_path / "halves/rest")
    trained = {name for name in names(source) if name.startswith("train/")}
    assert half & trained and rest and not half & rest
    assert half | rest == names(source) and len(half & trained) == len(trained) // 2
