"""Methods of installed packages, as choices of the group `method`: entry points of the group `texture_ad.methods`.

Imports nothing heavy: a plugin's module is imported when its method is asked for.
"""

from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from texture_ad.environment import plugins
from texture_ad.errors import UserError


def register() -> None:
    """Make the methods of installed packages known to Hydra, each with the settings that stand beside its module."""
    for point in plugins():
        target = {"_target_": "texture_ad.methods.registry.build", "name": point.name}
        ConfigStore.instance().store(group="method", name=point.name, node=settings(point) | target)


def settings(point: EntryPoint) -> dict:
    """Return the defaults of a plugin's method, from NAME.yaml in the folder of its module; without it, none.

    Raises:
        UserError: the file is no YAML of keys and values.
    """
    spec = find_spec(point.module)
    path = Path(spec.origin).with_name(f"{point.name}.yaml") if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected keys and values, one a line")
    return found
