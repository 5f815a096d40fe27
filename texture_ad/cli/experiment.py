"""One experiment as the command line runs it: its folder, its share of the machine, its cache, and then the pipeline.

Imports nothing heavy before it is sure that there is something to run.
"""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from texture_ad.cli.entry import in_sweep
from texture_ad.cli.naming import SWEPT, key_of
from texture_ad.cli.settings import check_same, stage1_settings, unused
from texture_ad.cli.sweep import OBJECTIVE, check_images, finished, is_search
from texture_ad.errors import UserError
from texture_ad.parameters import Positive, check
from texture_ad.training.run_folder import holds_run, read_metrics


def run_experiment(config: DictConfig) -> float:
    """Run the experiment of a configuration that Hydra's main program has composed; return its OBJECTIVE.

    Raises:
        UserError: input that can't be worked with.
    """
    # Hydra's: in a sweep the job's own, in DDP's further processes that of rank zero.
    folder = Path(HydraConfig.get().runtime.output_dir)
    config.run_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    if in_sweep() and finished(folder, config):
        prepare_process()
        check_images(folder, config)
        print(f"skipped  {config.run_dir}: finished before", flush=True)
        return read_objective(folder)
    check_start(config)
    prepare_process()
    note_overrides(folder)
    start(config, HydraConfig.get().overrides.task, in_sweep())
    return read_objective(folder)


def note_overrides(folder: Path) -> None:
    """Write into a run's folder, which is its own by now, what the command line gave, and Hydra's own settings."""
    from texture_ad.files import write_text

    own = folder / "hydra"
    own.mkdir(parents=True, exist_ok=True)
    write_text(own / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))
    write_text(own / "hydra.yaml", OmegaConf.to_yaml({"hydra": HydraConfig.get()}))


def read_objective(folder: Path) -> float:
    """Return the OBJECTIVE of a finished run's folder; NaN in DDP's further processes, which may be ahead of it."""
    return read_metrics(folder).get(OBJECTIVE, float("nan"))


def check_start(config: DictConfig) -> None:
    """Check that an experiment can start in its folder, or resume there.

    Raises:
        UserError: its folder holds a run of other settings, the cache's are out of range, there is nothing to prune, or
            it is a single run and was given what a sweep is to try, of which it would try nothing.
    """
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for group in SWEPT:
        if group in choices and not in_sweep():
            raise UserError(f"{group}={choices[group]}: says what a sweep tries, and this is a single run; add -m")
    check("cache", config.cache, Literal["sweep", "always", "never"])
    check("cache_gb", config.cache_gb, Positive)
    searching = in_sweep() and is_search(HydraConfig.get().sweeper)
    if config.get("pruning") and not (searching and config.method.name == "fusion"):
        raise UserError("pruning: cuts trials of a search of method=fusion short, and this is none; use pruning=none")
    folder = Path(config.run_dir)
    if holds_run(folder):
        check_same(folder, config)


def start(config: DictConfig, overrides: Iterable[str], swept: bool = False) -> None:
    """Run an experiment in its folder, or resume it there.

    Args:
        config: composed.
        overrides: that it was composed with, each "key=value".
        swept: whether it is one job of a sweep.

    Raises:
        UserError: input that can't be worked with.
    """
    with hushed_libraries():
        from texture_ad.pipeline import Run, run
        from texture_ad.training.cache import Cache

        shared = config.cache == "always" or (config.cache == "sweep" and swept)
        cache = Cache(config.cache_gb) if shared else None
        trial = None
        if config.get("pruning"):
            from texture_ad.cli.search import running_trial

            trial = running_trial(HydraConfig.get().sweeper, list(overrides))
        for why, keys in unused(config, [key_of(override) for override in overrides]).items():
            verb = "change" if len(keys) > 1 else "changes"
            print(f"warning: {', '.join(keys)} {verb} nothing with {why}", flush=True)
        folder = Path(config.run_dir)
        run(Run(config, folder, repeat_command(overrides), cache, stage1_settings(config), swept, trial))


def prepare_process() -> None:
    """Take this process's share of the machine, and keep what no user can act on from the output."""
    from texture_ad.training.resources import keep_freed_memory, take_share

    if in_sweep():
        launcher = HydraConfig.get().launcher
        take_share(launcher._target_, launcher.get("cpus_per_task"))
    keep_freed_memory()
    from texture_ad.training.distributed import is_rank_zero

    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end of the process


@contextmanager
def hushed_libraries() -> Iterator[None]:
    """Keep advice for Lightning's developers and libraries' deprecations from the output: no user can act on it."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics)\b")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def repeat_command(overrides: Iterable[str]) -> str:
    """Return the command for the shell that repeats a run with these overrides, but for its folder."""
    kept = [override for override in overrides if not override.startswith("run_dir=")]
    return shlex.join(["python", "-m", "texture_ad.run", *kept])
