"""What runs share: never stale, made once, at most as large as it may be, and never in a run's way."""

import copy
import multiprocessing
import os
import signal
import time

import pytest
import torch
from helpers import tiny_backbone, untrained_fusion
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from texture_ad.cli.entry import CONF
from texture_ad.cli.settings import INFLUENCES, flatten, influence, stage1_settings
from texture_ad.errors import UserError
from texture_ad.training.cache import Cache, FeatureCache, digest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTURE_AD_CACHE", str(tmp_path))
    return Cache(20)


with initialize_config_dir(CONF, version_base="1.3"):
    COMPOSED = compose("config", ["run_dir=runs/one", "data.root=/nowhere", "logger=wandb"])
STATE = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(1)}


def config():
    return copy.deepcopy(COMPOSED)


def address(config, state, fingerprint):
    """What the pipeline files stage 1's result under."""
    return digest("stage 1", stage1_settings(config), state, fingerprint)


@pytest.mark.parametrize("key", flatten(COMPOSED))
def test_every_setting_that_is_not_listed_changes_the_address(key):
    one = config()
    other = config()
    OmegaConf.update(other, key, "something else", force_add=True)
    same = address(one, STATE, "f") == address(other, STATE, "f")
    assert same == (not influence(key).stage1)


def test_a_setting_that_is_yet_to_come_changes_the_address():
    other = config()
    OmegaConf.update(other, "flow.patience", 3, force_add=True)
    assert address(config(), STATE, "f") != address(other, STATE, "f")


def test_settings_with_an_influence_of_their_own_exist():
    assert all(OmegaConf.select(config(), key, default="none") != "none" for key in INFLUENCES)


def test_the_longest_key_tells_what_a_setting_influences():
    assert influence("detection.threads") != influence("detection.epochs") == influence("detection")
    assert influence("flow.blocks") == (True, True, True) and influence("logger.csv.name") == (False, False, False)
    assert influence("name_of_another") == (True, True, True)


def test_weights_images_threads_and_source_change_the_address(monkeypatch):
    c = config()
    threads = torch.get_num_threads()
    weights = STATE | {"weight": STATE["weight"] + 1e-7}
    shape = STATE | {"weight": STATE["weight"].view(3, 2)}
    dtype = STATE | {"count": torch.tensor(1, dtype=torch.int32)}
    found = [address(c, state, "f") for state in (STATE, weights, shape, dtype)]
    found.append(address(c, STATE, "g"))
    try:
        torch.set_num_threads(threads + 1)
        found.append(address(c, STATE, "f"))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("texture_ad.training.cache.machine_and_source", lambda: ("another source",))
    found.append(address(c, STATE, "f"))
    assert len(set(found)) == len(found)


def test_an_entry_is_made_once_and_counts_its_time_again(cache):
    made = []

    def make():
        made.append(1)
        time.sleep(0.2)
        return {"state": STATE}

    start = cache.clock()
    for _ in range(3):
        assert torch.equal(cache.get_or_create("a", make)["state"]["weight"], STATE["weight"])
    assert len(made) == 1 and cache.clock() - start >= 0.6


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_entry_is_made_anew(cache, content):
    cache.get_or_create("a", lambda: {"value": 1})
    path = cache.root / "a.pt"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    assert cache.get_or_create("a", lambda: {"value": 2}) == {"value": 2}
    assert cache.get_or_create("a", lambda: {"value": 3}) == {"value": 2}


def test_what_was_not_used_for_longest_goes_first(cache, tmp_path):
    tensors = {"value": torch.zeros(1000)}
    for age, name in enumerate("abc"):
        cache.get_or_create(name, lambda: tensors)
        os.utime(cache.root / f"{name}.pt", (time.time() - 100 + age,) * 2)
    cache.get_or_create("a", lambda: tensors)  # used again
    cache.limit = 3.5 * (cache.root / "a.pt").stat().st_size
    cache.get_or_create("d", lambda: tensors)
    assert {p.stem for p in cache.root.glob("*.pt")} == {"a", "c", "d"}
    cache.limit = 1
    cache.get_or_create("e", lambda: tensors)
    assert {p.stem for p in cache.root.glob("*.pt")} == {"e"}


def test_entries_that_come_and_go_leave_few_locks_behind(cache):
    cache.limit = 1
    for number in range(20):
        cache.get_or_create(f"features-abc{number}", lambda: {"value": 1})
    assert [path.name for path in cache.root.glob("*.lock")] == ["features-abc.lock"]


def test_an_entry_may_be_made_of_others_of_another_kind(cache):
    def stage1():
        return cache.get_or_create("features-abc1", lambda: {"value": 1})

    assert cache.get_or_create("stage1-abc1", stage1) == {"value": 1}


def _hold(root, name, begun, seconds):
    os.environ["TEXTURE_AD_CACHE"] = str(root)

    def make():
        begun.set()
        time.sleep(seconds)
        return {"value": 1}

    Cache(20).get_or_create(name, make)


def test_waiting_for_another_entry_is_no_time_of_this_one(cache, tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, "a-abc1", begun, 1.0))
    other.start()
    assert begun.wait(60)
    start, clock = time.perf_counter(), cache.clock()
    cache.get_or_create("a-abc2", lambda: {"value": 2})
    assert time.perf_counter() - start > 0.5 and cache.clock() - clock < 0.5
    other.join()


def test_a_cache_that_cannot_be_written_is_told_once_and_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEXTURE_AD_CACHE", str(tmp_path / "file"))
    cache = Cache(20)
    assert [cache.get_or_create("a", lambda: {"value": 1}) for _ in range(2)] == [{"value": 1}] * 2
    assert capsys.readouterr().err.count("warning: ") == 1


def test_an_error_in_making_leaves_no_entry_and_no_lock(cache):
    def fails():
        raise UserError("no")

    with pytest.raises(UserError):
        cache.get_or_create("a", fails)
    assert Cache(20).get_or_create("a", lambda: {"value": 1}) == {"value": 1}


@pytest.mark.parametrize("size", [0, -1, "much"])
def test_the_size_is_checked(size):
    with pytest.raises(UserError, match="cache_gb"):
        Cache(size)


def _append(root, started):
    os.environ["TEXTURE_AD_CACHE"] = str(root)

    def make():
        with open(root / "made", "ab") as sink:
            sink.write(b"x")
        started.set()
        time.sleep(0.5)
        return {"value": 1}

    assert Cache(20).get_or_create("a", make) == {"value": 1}


def test_processes_make_an_entry_once_and_a_killed_one_frees_it(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    killed = context.Process(target=_append, args=(tmp_path, started))
    killed.start()
    assert started.wait(60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    others = [context.Process(target=_append, args=(tmp_path, started)) for _ in range(4)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [p.exitcode for p in others] == [0] * 4
    assert (tmp_path / "made").read_bytes() == b"xx"  # the killed one's and one more


def test_patch_features_are_extracted_once_for_the_same_weights_settings_and_images(cache):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)

    def look_up(images, change=0.0, min_size=0):
        torch.manual_seed(0)
        backbone = tiny_backbone("resnet18", ["layer1"], min_size=min_size).eval().requires_grad_(False)
        next(backbone.network.parameters()).add_(change)
        detector = untrained_fusion(backbone, 32)
        expected = detector.patch_features(images)
        detector.feature_cache = FeatureCache(cache, backbone, quarters=False)
        for _ in range(2):
            assert torch.equal(detector.patch_features(images), expected)
        return len(list(cache.root.glob("features-*.pt")))

    assert [look_up(images) for _ in range(2)] == [1, 1]
    assert look_up(images + 1) == 2
    assert look_up(images, change=0.01) == 3
    assert look_up(images, min_size=1) == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert look_up(images) == 5


def test_digests_of_like_values_differ():
    assert len({digest(1), digest("1"), digest([1]), digest(None), digest({"": 1}, 2), digest({"": 2}, 1)}) == 6
