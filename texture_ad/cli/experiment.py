"""One experiment as the command line runs it: its folder, its share of the machine, its cache, and then the pipeline.

Imports nothing heavy before it is sure that there is something to run.
"""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from texture_ad.cli.entry import in_sweep
from texture_ad.cli.settings import check_same, stage1_settings
from texture_ad.cli.sweep import finished
from texture_ad.parameters import check
from texture_ad.training.run_folder import holds_checkpoints


def run_experiment(config: DictConfig) -> None:
    """Run the experiment of a configuration that Hydra has composed.

    Raises:
        UserError: input that can't be worked with.
    """
    # Hydra's: in a sweep the job's own, in DDP's further processes that of rank zero.
    folder = Path(HydraConfig.get().runtime.output_dir)
    config.run_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    check("cache", config.cache, Literal["sweep", "always", "never"])
    if in_sweep() and finished(folder, config):
        print(f"skipped  {config.run_dir}: finished before", flush=True)
        return
    if holds_checkpoints(folder):
        check_same(folder, config)
    prepare_process()
    from texture_ad.pipeline import run
    from texture_ad.training.cache import Cache

    shared = config.cache == "always" or (config.cache == "sweep" and in_sweep())
    cache = Cache(config.cache_gb) if shared else None
    command = repeat_command(HydraConfig.get().overrides.task)
    run(config, command, cache, stage1_settings(config), in_sweep())


def prepare_process() -> None:
    """Take this process's share of the machine, and keep what no user can act on from the output."""
    from texture_ad.training.resources import keep_freed_memory, take_share

    if in_sweep():
        launcher = HydraConfig.get().launcher
        take_share(launcher._target_, launcher.get("cpus_per_task"))
    # Advice for Lightning's developers and deprecations inside libraries: nothing that a user can act on.
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics)\b")
    keep_freed_memory()
    from texture_ad.training.distributed import is_rank_zero

    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end of the process
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def repeat_command(overrides: Iterable[str]) -> str:
    """Return the command for the shell that repeats a run with these overrides, but for its folder."""
    kept = [override for override in overrides if not override.startswith("run_dir=")]
    return shlex.join(["python", "-m", "texture_ad.run", *kept])
