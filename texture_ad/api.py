"""Train a detector in Python: the run of the command line, with its settings, its folder and its digits."""

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import ListConfig

from texture_ad.cli.compose import as_overrides, compose
from texture_ad.cli.experiment import check_start, start
from texture_ad.cli.explain import explain
from texture_ad.cli.quoting import quote_paths
from texture_ad.deploy.detector import Detector, load
from texture_ad.errors import ParameterError, UserError
from texture_ad.training.resources import keep_freed_memory


def fit(
    photographs: str | PathLike | None = None,
    /,
    *,
    method: str | Mapping[str, Any] | None = None,
    backbone: str | Mapping[str, Any] | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
    **settings: Any,
) -> Detector:
    """Train, calibrate and evaluate a detector, as `texture-ad run` does: same code, same folder, same digits.

    Args:
        photographs: folder with `train/good` and, where there are test images, `test`, or in another layout that a run
            knows; None for the data that the settings name.
        method: "fusion" (ours, the default), "patchcore", "padim" or another choice of the group.
        backbone: "efficientnet_lite0" (the default), "resnet18" or another choice of the group.
        seed: of the run.
        overrides: as on the command line, such as "flow.blocks=4" or "+experiment=wood"; they win.
        progress: print what the command line prints; False prints nothing, and makes its warnings Python's.
        settings: further keys of the configuration; a dict holds the keys of a group, as in `flow={"blocks": 4}`.

    Returns:
        The trained detector, on the CPU; its `folder` is that of the run.

    Raises:
        UserError: input that can't be worked with.

    Examples:
        >>> detector = fit("photographs/", backbone="resnet18", data={"size": 512})  # doctest: +SKIP
        >>> results = detector.predict("new/")  # doctest: +SKIP
    """
    given: dict[str, Any] = {"method": method, "backbone": backbone, "seed": seed}
    named = {key: value for key, value in given.items() if value is not None}
    if isinstance(overrides, str):
        raise ParameterError("overrides", overrides, f"expected a list of texts, [{overrides!r}]")
    data = settings.get("data")
    if photographs is not None and isinstance(data, Mapping) and "root" in data:
        raise ParameterError("data.root", data["root"], f"stands beside the photographs {photographs}; leave one out")
    found = [] if photographs is None else ["data=folder", *as_overrides({"data.root": photographs})]
    quiet = [] if progress else ["trainer.enable_progress_bar=false"]
    all_overrides = [*found, *as_overrides(named | settings), *quiet, *quote_paths(list(overrides))]
    try:
        config = compose(all_overrides)
        devices = config.trainer.devices
        if (len(devices) if isinstance(devices, ListConfig) else devices) != 1:
            problem = "expected 1: fit has one process; texture-ad run takes more"
            raise ParameterError("trainer.devices", devices, problem)
        config.run_dir = str(config.run_dir)  # the time in it is that of now
        check_start(config)
        keep_freed_memory()
        with isolate_rng(), _kept_seed(), _shown(progress):
            start(config, all_overrides)
            return load(Path(config.run_dir) / "detector.pt", allow=list(config.allow))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(line) from error


@contextmanager
def _kept_seed() -> Iterator[None]:
    """Leave the seed that Lightning keeps for its processes as the caller had it."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _shown(progress: bool) -> Iterator[None]:
    """Show what a run prints, or nothing of it but its warnings, as Python's."""
    if progress:
        yield
        return
    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        if line.startswith("warning: "):
            warnings.warn(line.removeprefix("warning: "), UserWarning, stacklevel=4)
