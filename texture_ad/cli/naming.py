"""What runs, sweeps and their jobs are called: the resolvers that conf/config.yaml uses. Imports nothing heavy."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from texture_ad.cli.settings import influence

SWEPT = ("ablation", "search")  # groups that say what a sweep tries
LONGEST = 100  # characters of a name that stands for settings


def slug(text: str) -> str:
    """Return `text` as a file's name: odd characters become _, and a long name ends in a digest of the full text."""
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII).strip("_.") or "_"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def data_name(source: str, root: str | None, category: str | None, table: str | None = None) -> str:
    """Return a run's name, which tells where its images come from.

    Examples:
        >>> data_name("auto", None, "carpet"), data_name("auto", "/data/VisA", "candle")
        ('embedded-carpet', 'VisA-candle')
        >>> data_name("folder", "/data/my photographs", None), data_name("folder", None, None, "lists/cloth.csv")
        ('folder-my_photographs', 'folder-lists')
    """
    root = root or (str(Path(table).parent) if table else None)
    folder = Path(root).expanduser().resolve().name if root else None
    if source == "auto":
        source = folder or "embedded"
    return slug(f"{source}-{category or folder}")


def key_of(override: str) -> str:
    """Return the key of "key=value", without Hydra's + or ~."""
    return override.partition("=")[0].lstrip("+~")


def sweep_dir(overrides: Sequence[str], run_dir: str) -> str:
    """Return a sweep's folder: `run_dir` where it was given, else named by what is swept.

    The same command so comes back to its folder, and does only what is missing there.

    Args:
        overrides: the sweep's, each "key=value".
        run_dir: the configuration's.

    Examples:
        >>> sweep_dir(["+experiment=wood", "seed=0,1", "logger=none"], "runs/now")
        'runs/sweeps/experiment=wood+seed=0,1'
    """
    if any(key_of(o) == "run_dir" for o in overrides):
        return run_dir
    # What only says how a sweep runs is left out: the folder is the same with and without it.
    kept = sorted(override.lstrip("+") for override in overrides if influence(key_of(override)).name)
    return "runs/sweeps/" + slug("+".join(kept))


def swept(overrides: Sequence[str], job: Sequence[str]) -> list[str]:
    """Return the job's overrides that its sweep leaves open: those of sweeps (a=1,2) and of +ablation's parameters.

    Examples:
        >>> swept(["+experiment=wood", "seed=0,1"], ["+experiment=wood", "seed=1", "flow.blocks=4"])
        ['seed=1', 'flow.blocks=4']
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed, open_ = (
        {key_of(o.input_line or "") for o in parsed if o.is_sweep_override() == way} for way in (False, True)
    )
    fixed -= open_  # given both ways, a key is swept
    return [o for o in job if key_of(o) not in fixed]


def job_name(overrides: Sequence[str], job: Sequence[str]) -> str:
    """Return a job's folder in its sweep: the swept values, so that it stays the same when the sweep grows."""
    return slug(",".join(swept(overrides, job)) or "run")


# Cached where the job's configuration must give what its sweep's gave: Hydra hands the cache on.
OmegaConf.register_new_resolver("once", lambda value: list(value), use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)
OmegaConf.register_new_resolver("data_name", data_name, replace=True)
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
