"""A run's settings by their full keys, and what a difference in them means. Imports nothing heavy."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from texture_ad.errors import UserError

# May differ between the runs that share a folder: they change no result.
FREE = (
    "run_dir",
    "name",
    "pictures",
    "cache",
    "cache_gb",
    "logger",
    "data.root",
    "data.num_workers",
    "data.cache_mb",
    "dictionary.threads",
    "dictionary.memory_mb",
    "trainer.enable_progress_bar",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
)


def flatten(config: object, key: str = "") -> dict[str, object]:
    """A nested configuration as one dict of full keys, such as "flow.blocks", to values."""
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, dict):
        return {key: config}
    return {k: v for name, value in config.items() for k, v in flatten(value, f"{key}.{name}".lstrip(".")).items()}


def among(key: str, names: tuple[str, ...]) -> bool:
    """Whether `key` is one of the names or lies below one."""
    return any(key == name or key.startswith(name + ".") for name in names)


def check_same(folder: Path, config: DictConfig) -> None:
    """Checks that a run folder's config.yaml has the settings of the run that resumes in it.

    Raises:
        UserError: a setting that is not FREE differs, or config.yaml is damaged.
    """
    try:
        before = flatten(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:
        raise UserError(f"{folder / 'config.yaml'}: damaged; remove {folder} or give another run_dir") from error
    now = flatten(config)
    for key in sorted(before.keys() | now.keys()):
        if not among(key, FREE) and before.get(key) != now.get(key):
            raise UserError(
                f"run_dir={folder}: holds a run with {key}={before.get(key)}, not {now.get(key)}; give "
                "another run_dir, or remove this one to train anew"
            )
