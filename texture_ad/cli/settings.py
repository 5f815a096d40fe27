"""What each setting influences, said once: results, stage 1 (which runs share), a sweep's folder's name; or nothing.

Imports nothing heavy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from texture_ad.errors import ParameterError, UserError


class Influence(NamedTuple):
    """Say what a setting influences.

    Attributes:
        result: a run's results; it must not change when a run is resumed.
        stage1: stage 1 of a fit; runs in which it differs can't share one.
        name: what a sweep compares, and so the name of its folder.
    """

    result: bool = True
    stage1: bool = True
    name: bool = True


# Of keys and whole groups; the longest that fits counts. A setting that is not here influences everything.
INFLUENCES = {
    "run_dir": Influence(result=False, stage1=False, name=False),
    "logger": Influence(result=False, stage1=False, name=False),
    "allow": Influence(result=False, stage1=False, name=False),
    "pictures": Influence(result=False, stage1=False, name=False),
    "examples": Influence(stage1=False, name=False),
    "cache": Influence(result=False, stage1=False, name=False),
    "cache_gb": Influence(result=False, stage1=False, name=False),
    "trainer.enable_progress_bar": Influence(result=False, stage1=False, name=False),
    "name": Influence(result=False, stage1=False),
    "data.root": Influence(result=False, stage1=False),  # the images' fingerprint stands for it
    "data.table": Influence(result=False, stage1=False),  # likewise
    "data.masks": Influence(stage1=False),
    "data.num_workers": Influence(result=False, stage1=False),
    "data.strict": Influence(result=False, stage1=False),
    "data.cache_mb": Influence(result=False, stage1=False),
    "features.memory_mb": Influence(result=False, stage1=False),
    "detection.threads": Influence(result=False, stage1=False),
    "trainer.accelerator": Influence(result=False),
    "trainer.devices": Influence(result=False),
    "trainer.strategy": Influence(result=False),
    "false_alarm_rate": Influence(stage1=False),
    "pixel_false_alarm_rate": Influence(stage1=False),
    "pruning": Influence(stage1=False),
    "cross_fit": Influence(stage1=False),
    "dictionary": Influence(stage1=False),
    "detection": Influence(stage1=False),
    # head_weight decides what stage 1 trains; top and min_distance validate a backbone that learns.
    "score.gaussian_weight": Influence(stage1=False),
    "score.flow_weight": Influence(stage1=False),
    "score.flow_centred": Influence(stage1=False),
    "score.dictionary_weight": Influence(stage1=False),
    "score.trust": Influence(stage1=False),
    "score.sigma": Influence(stage1=False),
    "score.raise_areas": Influence(stage1=False),
}


# What a baseline doesn't use: parts of the fusion, and Lightning's settings where it has its own or doesn't train.
_OF_FUSION = (
    *("cutpaste", "whitening", "head", "flow", "representation", "density", "features", "dictionary", "detection"),
    *("score", "trainer.max_epochs", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches"),
)
_OF_TILES = ("data.overlap", "data.max_tiles")
_OF_COPIES = tuple(f"augmentation.{name}" for name in ("brightness", "gamma", "gradient", "flips", "turns"))
_JOINING = ("backbone.neighborhood", "backbone.scale", "backbone.grid")  # of layers
_UNUSED: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("padim", "patchcore", "one_nn", "oc_svm"), (*_OF_FUSION, *_JOINING, "backbone.frozen", "data.batch_size")
)
_UNUSED |= dict.fromkeys(("dsebm", "ganomaly", "patch_svdd"), (*_OF_FUSION, "backbone"))
_UNUSED |= {
    "cutpaste": (*_OF_FUSION, *_JOINING),
    "sparse_coding": (*_OF_FUSION, "backbone", "data.batch_size"),
}


def unused(config: DictConfig, keys: Iterable[str]) -> dict[str, list[str]]:
    """Return which settings change nothing in a run, by what makes them so; of a plugin's method none are known.

    Args:
        config: composed.
        keys: full ones, such as "flow.blocks", or those of groups.
    """
    method = config.method.name
    without: dict[str, tuple[str, ...]] = {f"method={method}": _UNUSED.get(method, ())}
    if method == "fusion":
        task = config.cutpaste.task
        if task != "none":
            without[f"cutpaste={task}"] = ("density", "head")
        else:
            without["cutpaste=none"] = ("representation", "backbone.frozen", "data.batch_size", "cutpaste.patch_weight")
            if not config.score.head_weight:
                without["score.head_weight=0"] = ("head", "density.pasted_images")
        if not config.score.dictionary_weight:
            without["score.dictionary_weight=0"] = ("dictionary", "detection")
        if (mode := config.whitening.get("mode")) in ("channel", "none"):
            without[f"whitening.mode={mode}"] = ("whitening.components",)
    if "tile" in config.data:
        tile = config.data.tile
        without |= {"data.tile=null": _OF_TILES} if tile is None else {f"data.tile={tile}": ("data.size",)}
    if config.augmentation.get("copies") == 0:
        without["augmentation.copies=0"] = _OF_COPIES
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        for why, parts in without.items():
            if any(f"{key}.".startswith(f"{part}.") for part in parts):
                found.setdefault(why, []).append(key)
    return found


def influence(key: str) -> Influence:
    """Return what the setting of a full key, such as "flow.blocks", influences."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        found = INFLUENCES.get(".".join(parts[:end]))
        if found is not None:
            return found
    return Influence()


def flatten(config: object, key: str = "") -> dict[str, object]:
    """Return a nested configuration as one dict of full keys, such as "flow.blocks", to values."""
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, dict):
        return {key: config}
    return {k: v for name, value in config.items() for k, v in flatten(value, f"{key}.{name}".lstrip(".")).items()}


def stage1_settings(config: DictConfig) -> dict[str, object]:
    """Return the settings that stage 1 depends on, full key to value."""
    return {key: value for key, value in flatten(config).items() if influence(key).stage1}


def check_same(folder: Path, config: DictConfig) -> None:
    """Check that a run folder's config.yaml has the settings of the run that resumes in it.

    Raises:
        UserError: a setting that influences results differs, or config.yaml is damaged.
    """
    try:
        before = flatten(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:
        raise UserError(f"{folder / 'config.yaml'}: damaged; remove {folder} or give another run_dir") from error
    now = flatten(config)
    # A name first: it chooses what the other settings of its group are.
    for key in sorted(before.keys() | now.keys(), key=lambda key: (not key.endswith(".name"), key)):
        if influence(key).result and before.get(key) != now.get(key):
            problem = f"holds a run with {key}={before.get(key)}, not {now.get(key)}"
            advice = "give another run_dir, or remove this one to train anew"
            raise ParameterError("run_dir", folder, f"{problem}; {advice}")
