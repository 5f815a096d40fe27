import numpy as np
import pytest
import torch
from helpers import make
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from texture_ad.cli.entry import CONF
from texture_ad.data.batches import EpochShuffle
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.mvtec import COUNTS
from texture_ad.errors import ParameterError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """MVTec AD's layout: one category, images of several sizes."""
    rng = np.random.default_rng(0)
    top = tmp_path_factory.mktemp("mvtec")
    for part, count in (("train/good", 11), ("test/good", 3), ("test/hole", 4)):
        (top / "carpet" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (40 + i, 50, 3), np.uint8)).save(top / "carpet" / part / f"{i}.png")
    (top / "carpet/ground_truth/hole").mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((40 + i, 50), np.uint8)
        mask[10:20, 10:20] = 255
        Image.fromarray(mask).save(top / f"carpet/ground_truth/hole/{i}_mask.png")
    return top


def module(root, **options):
    data = make("data", ["data=mvtec"], **{"root": str(root), "size": 32, "batch_size": 4, **options})
    data.setup()
    return data


def test_split_is_disjoint_and_the_seeds(root):
    a = module(root)
    b = module(root)
    assert not set(a.train_samples) & set(a.calibration_samples)
    assert len(a.train_samples) == 9 and len(a.calibration_samples) == 2
    assert a.train_samples == b.train_samples
    assert len({tuple(module(root, seed=s).calibration_samples) for s in range(5)}) > 2


def test_no_test_image_is_trained_or_validated_on(root):
    data = module(root)
    assert all("test" not in s.path.parts for s in data.train_samples + data.calibration_samples)


@pytest.mark.parametrize("cache_mb", [4096, 0])
def test_batches(root, cache_mb):
    data = module(root, cache_mb=cache_mb)
    batches = list(data.test_dataloader())
    assert batches[0]["image"].shape == (7, 3, 32, 32) and batches[0]["image"].dtype == torch.uint8
    assert batches[0]["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batches[0]["mask"].dtype == torch.bool and batches[0]["mask"].flatten(1).any(1).tolist()[3:] == [True] * 4
    assert sorted(i for b in data.train_dataloader() for i in b["index"].tolist()) == list(range(9))


@pytest.mark.parametrize("cache_mb", [4096, 0])
def test_labels_and_masks_are_those_of_their_images(root, cache_mb):
    data = module(root, cache_mb=cache_mb, eval_batch_size=2)
    batches = list(data.test_dataloader())
    found = {key: torch.cat([batch[key] for batch in batches]) for key in ("label", "mask", "index")}
    assert found["label"].tolist() == [sample.label for sample in data.test_samples] == [0, 0, 0, 1, 1, 1, 1]
    assert found["mask"].flatten(1).any(1).int().tolist() == found["label"].tolist()
    some = data.test_batch([5, 1])
    assert some["label"].tolist() == [1, 0] and some["index"].tolist() == [5, 1]


def test_every_seed_and_epoch_has_an_order_of_its_own():
    orders = {}
    for seed in range(4):
        for epoch in range(4):
            sampler = EpochShuffle(range(50), seed)
            sampler.set_epoch(epoch)
            orders[seed, epoch] = tuple(sampler)
            assert sorted(orders[seed, epoch]) == list(range(50))
    assert len(set(orders.values())) == 16 and tuple(EpochShuffle(range(50), 2)) == orders[2, 0]


def test_whole_images_give_a_method_nothing_from_outside_the_region(root):
    data = module(root, roi=[4, 4, 30, 40])
    for loader in (data.normal_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert torch.equal(batch["image"], data.interest.fill(batch["image"]))
            assert not batch["mask"][:, ~data.interest.inside].any()


def test_cached_and_decoded_images_are_equal(root):
    a, b = (next(iter(module(root, cache_mb=m).test_dataloader()))["image"] for m in (4096, 0))
    assert torch.equal(a, b)


def test_shuffling_is_the_seeds(root):
    a, b, c = ([i for x in module(root, seed=s).train_dataloader() for i in x["index"].tolist()] for s in (3, 3, 4))
    assert a == b and a != c


def test_validation_pairs_normals_with_synthetic_defects(root):
    data = module(root, eval_batch_size=3)
    parts = list(data.val_dataloader())
    merged = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    assert merged["label"].tolist() == [0, 0, 1, 1] and merged["index"].tolist() == [0, 1, 0, 1]
    changed = (merged["image"][2:] != merged["image"][:2]).any(1)
    assert changed.flatten(1).any(1).all() and not merged["mask"][:2].any()
    assert (merged["mask"][2:] & ~changed).sum() == 0
    assert not torch.equal(merged["mask"][2], merged["mask"][3])  # each image has a defect of its own
    again = torch.cat([p["image"] for p in module(root, eval_batch_size=1).val_dataloader()])
    assert torch.equal(again, merged["image"])


def test_source_is_named(root, monkeypatch, tmp_path):
    assert make("data", root=str(root)).source_name == "folder carpet"  # a user's own, of another number of images
    monkeypatch.setitem(COUNTS, "carpet", (11, 7))
    assert make("data", root=str(root)).source_name == "MVTec AD carpet"
    (tmp_path / "rug").symlink_to(root / "carpet")
    assert make("data", root=str(tmp_path), category="rug").source_name == "folder rug"
    monkeypatch.setenv("TEXTURE_AD_CACHE", str(tmp_path))
    assert "generated, not a benchmark" in make("data", root=None, category="wood").source_name
    assert make("data", ["data=folder"], root=str(root / "carpet")).source_name == "folder carpet"
    assert make("data", ["data=folder", "data.category=2024"], root=str(root / "carpet")).category == "2024"


def test_fingerprint_follows_the_bytes(root, tmp_path):
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    before = module(tmp_path / "copy").fingerprint
    assert before == module(root).fingerprint
    Image.linear_gradient("L").save(tmp_path / "copy/carpet/train/good/0.png")
    assert module(tmp_path / "copy").fingerprint != before


def refused(**options) -> str:
    """The error of a module with the configuration's defaults and these options."""
    with initialize_config_dir(CONF, version_base="1.3"):
        defaults = OmegaConf.to_container(compose("config", ["data.root=null"]).data, resolve=True)
    del defaults["_target_"]
    with pytest.raises(ParameterError) as error:
        TextureDataModule(**{**defaults, **options})
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mvtek"}, "source=mvtek: expected one of auto, mvtec, folder, embedded"),
        ({"source": "mvtec"}, "root=None: no folder was given, and mvtec needs"),
        ({"source": "folder"}, "root=None: no folder was given, and folder needs"),
        ({"source": "auto", "root": "/nowhere"}, "root=/nowhere: no such folder"),
        ({"source": "embedded", "category": "wod"}, "category=wod: did you mean wood?"),
        ({"source": "embedded", "category": None}, "category=None: embedded data has carpet"),
        ({"size": 31}, "size=31: expected an integer from 32 to 8192"),
        ({"size": 64.5}, "size=64.5: expected an integer"),
        ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
        ({"eval_batch_size": True}, "eval_batch_size=True: expected an integer of at least 1"),
        ({"calibration_fraction": 1.0}, "calibration_fraction=1.0: expected a number above 0 and at most 0.9"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"cache_mb": -1}, "cache_mb=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    assert refused(**options).startswith(message)


def test_an_unknown_category_names_what_there_is(root):
    found = refused(source="mvtec", root=str(root), category="carpett")
    assert found == f"category=carpett: did you mean carpet? {root} holds carpet"


def test_the_choices_of_data_share_their_defaults():
    with initialize_config_dir(CONF, version_base="1.3"):
        found = {c: compose("config", [f"data={c}"]).data for c in ("auto", "mvtec", "folder", "embedded")}
    for choice, data in found.items():
        assert data.source == choice and data.keys() == found["auto"].keys()
        assert all(data[k] == found["auto"][k] for k in data if k not in ("source", "root", "category"))
