"""`python -m texture_ad.run +experiment=carpet`: one experiment from configuration to results."""

import os
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main, in_sweep
from texture_ad.cli.sweep import finished
from texture_ad.errors import UserError
from texture_ad.training.resources import keep_freed_memory, take_share

KEYS = {
    "backbone",
    "cache",
    "cache_gb",
    "cutpaste",
    "data",
    "dictionary",
    "flow",
    "logger",
    "method",
    "name",
    "pictures",
    "quantile",
    "representation",
    "run_dir",
    "seed",
    "trainer",
    "whitening",
}


@hydra_main("config", KEYS)
def main(config: DictConfig) -> None:
    import logging
    import warnings

    # Hydra's: in a sweep the job's own, in a further process of DDP the first process's.
    folder = Path(HydraConfig.get().runtime.output_dir)
    config.run_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    if config.cache not in ("sweep", "always", "never"):
        raise UserError(f"cache={config.cache}: expected one of sweep, always, never")
    if in_sweep():
        if finished(folder, config):
            print(f"skipped  {config.run_dir}: finished before", flush=True)
            return
        launcher = HydraConfig.get().launcher
        take_share(launcher._target_, launcher.get("cpus_per_task"))

    # Advice for Lightning's developers and deprecations inside libraries: nothing that a user can act on.
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics)\b")
    from texture_ad.pipeline import run
    from texture_ad.training.cache import Cache
    from texture_ad.training.distributed import is_rank_zero

    keep_freed_memory()
    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end of the process

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    shared = config.cache == "always" or (config.cache == "sweep" and in_sweep())
    run(config, Cache(config.cache_gb) if shared else None)


if __name__ == "__main__":
    main()
