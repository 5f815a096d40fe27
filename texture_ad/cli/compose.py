"""Compose a run's configuration from Python as the command line does, and leave Hydra's global state as it was.

Imports nothing heavy.
"""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath

from hydra import compose as compose_config
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from texture_ad.cli.conf import CONF
from texture_ad.cli.entry import check_config
from texture_ad.cli.naming import SWEPT, key_of
from texture_ad.cli.plugins import register
from texture_ad.cli.quoting import PLAIN, check_arguments, quoted
from texture_ad.errors import UserError


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a run, checked as the command line checks it.

    Args:
        overrides: as on the command line, each "key=value".

    Raises:
        UserError: an unknown key, one that is taken away (~KEY), what only a sweep tries, or a class that neither conf/
            nor `allow` names.
    """
    check_arguments(overrides)
    for override in overrides:
        if key_of(override) in SWEPT:
            raise UserError(f"{override}: says what a sweep tries, and this is a single run; leave it out")
    # Who calls may be a program of Hydra's itself.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        register()
        with initialize_config_dir(CONF, version_base="1.3"):
            config = compose_config("config", list(overrides))
    finally:
        GlobalHydra.instance().hydra = outer
    check_config(config, "config")
    return config


def as_overrides(settings: Mapping[str, object], key: str = "") -> Iterator[str]:
    """Yield the overrides that a nested dict of settings stands for.

    Examples:
        >>> list(as_overrides({"backbone": "resnet18", "flow": {"blocks": 4}, "data": {"root": "my photographs"}}))
        ['backbone=resnet18', 'flow.blocks=4', "data.root='my photographs'"]
    """
    for name, value in settings.items():
        full_key = f"{key}.{name}" if key else name
        if isinstance(value, Mapping):
            yield from as_overrides(value, full_key)
        else:
            yield f"{full_key}={quote(value)}"


def quote(value: object) -> str:
    """Return a value as Hydra's grammar reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quote, value))}]"
    if not isinstance(value, str):
        return str(value)
    if PLAIN.fullmatch(value):
        return value
    return quoted(value).replace("${", "\\${")  # to the letter, no interpolation
