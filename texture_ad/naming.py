"""What runs and sweeps are called: the resolvers that conf/config.yaml uses. Imports nothing heavy."""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

# Say where and how a sweep runs, not what it compares.
_MEANS = ("hydra.", "hydra/", "logger", "cache", "pictures", "trainer.enable_progress_bar")


def slug(text: str, longest: int = 100) -> str:
    """`text` as the name of one file: odd characters become _, and what is too long ends in a digest of the whole."""
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII).strip("_.") or "_"
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9]}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def data_name(source: str, root: str | None, category: str | None) -> str:
    """A run's name, which tells where its images come from: embedded-carpet, mvtec-wood, folder-photographs.

    Example:
        >>> data_name("auto", None, "carpet"), data_name("folder", "/data/my photographs", None)
        ('embedded-carpet', 'folder-my_photographs')
    """
    if source == "auto":
        source = "mvtec" if root else "embedded"
    return slug(f"{source}-{category or (Path(root).expanduser().resolve().name if root else None)}")


def sweep_name(arguments: Sequence[str]) -> str:
    """A sweep's folder from its command line: the same command comes back to it and does only what is missing.

    Example:
        >>> sweep_name(["-m", "+experiment=wood", "seed=0,1", "hydra/launcher=joblib"])
        'experiment=wood+seed=0,1'
    """
    told = [a.lstrip("+") for a in arguments if "=" in a and not a.lstrip("+~").startswith(_MEANS)]
    return slug("+".join(sorted(told)))


def job_name(arguments: Sequence[str], overrides: Sequence[str]) -> str:
    """A job's folder in its sweep: the swept values, so that it stays the same when the sweep grows.

    Args:
        arguments: the sweep's command line.
        overrides: the job's, each "key=value".
    """
    parser, fixed = OverridesParser.create(), set()
    for argument in arguments:
        if "=" in argument and not argument.startswith("-"):
            try:
                override = parser.parse_override(argument)
            except HydraException:
                continue
            if not override.is_sweep_override():
                fixed.add(argument.partition("=")[0])
    swept = [o for o in overrides if o.partition("=")[0] not in fixed and not o.startswith("hydra")]
    return slug(",".join(swept)) if swept else "run"


def register() -> None:
    """Makes the resolvers known to OmegaConf, in the processes of launchers too."""
    # Cached: Hydra hands the cache to every job, whose own process has another command line.
    OmegaConf.register_new_resolver("command", lambda: list(sys.argv[1:]), use_cache=True, replace=True)
    for function in (data_name, sweep_name, job_name):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)


register()
