"""What the command lines share: where conf/ is, which classes it may name, and how an error is told.

Imports nothing heavy.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from texture_ad.cli import naming  # noqa: F401, makes conf/'s resolvers known
from texture_ad.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = str(next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir()))

_DISK = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a folder that can be written",
    errno.EPERM: "give a folder that can be written",
    errno.ENOTDIR: "give another path, a file is in the way",
    errno.EISDIR: "give another path, a folder is in the way",
    errno.EEXIST: "give another path, a file is in the way",
    errno.ENOENT: "give a folder that can be written",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "raise the limit on open files",
}


def _targets(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every `_target_` in a configuration with its key."""
    if isinstance(config, dict):
        for name, value in config.items():
            place = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield place, value
            yield from _targets(value, place)
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _targets(value, f"{key}[{i}]")


def check_targets(config: DictConfig | ListConfig) -> None:
    """Only classes that conf/ itself names are ever instantiated, whatever file or override asks for others.

    Raises:
        UserError: another `_target_`.
    """
    files = sorted(Path(CONF).rglob("*.yaml"))
    known = {t for f in files for t in re.findall(r"^\s*_target_:\s*(\S+)", f.read_text(encoding="utf-8"), re.M)}
    for key, target in _targets(OmegaConf.to_container(config, resolve=True)):
        if target not in known:
            raise UserError(f"{key}={target}: not a class that conf/ names; expected one of {', '.join(sorted(known))}")


def explain(error: BaseException) -> str | None:
    """The line that tells a user about an error, or None for a fault of the program, which keeps its traceback."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
    for cause in chain:
        # By name: this module must not import torch.
        if type(cause).__name__ == "OutOfMemoryError":
            return (
                f"the GPU's memory is full ({str(cause).split('. ')[0]}); lower data.batch_size, "
                "data.eval_batch_size or data.size (predict: batch_size), free the GPU of other processes, or "
                "use trainer.accelerator=cpu (predict: device=cpu)"
            )
        if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
            return (
                f"the memory is full ({cause}); lower data.batch_size, data.eval_batch_size, data.cache_mb or data.size"
            )
        if isinstance(cause, OSError) and cause.errno in _DISK:
            where = f"{cause.filename}: " if cause.filename is not None else ""
            return (
                f"{where}can't be written or read ({os.strerror(cause.errno)}); {_DISK[cause.errno]}, then give "
                "the same command again: it resumes from its last checkpoint"
            )
        if type(cause).__name__ == "MisconfigurationException":
            return f"trainer: {cause}"
        if type(cause).__name__ in ("TerminatedWorkerError", "FailedJobError", "UncompletedJobError"):
            return (
                "a job's process ended without a result, killed or out of memory; run fewer jobs side by side "
                "(hydra.launcher.n_jobs), then give the same command again: it does what is missing"
            )
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        # The innermost says what is wrong with which key.
        return f"{error} ({chain[-1]})" if len(chain) > 1 and str(chain[-1]) not in str(error) else str(error)
    return None


def fail(error: BaseException) -> None:
    """Prints a user's error in one printable line and exits with code 2; returns for any other error."""
    line = explain(error)
    if line is not None:
        line = " ".join(line.split())
        print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
        sys.exit(2)


def in_sweep() -> bool:
    """Whether Hydra runs this as one job of a multirun, in whatever process."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def hydra_main(config_name: str, known: set[str]) -> Callable:
    """A Hydra entry point: unknown keys and bad input end in one line on stderr and exit code 2."""

    def wrap(function: Callable[[DictConfig], object]) -> Callable:
        @wraps(function)
        def guarded(config: DictConfig) -> None:
            try:
                unknown = sorted(set(config) - known)
                if unknown:
                    raise UserError(f"{unknown[0]}: no such key; expected one of {', '.join(sorted(known))}")
                check_targets(config)
                function(config)
            except Exception as error:
                if not in_sweep():  # where sweep.Comparison tells it, and the other jobs go on
                    fail(error)
                raise
            except SystemExit as stop:
                # Lightning's, after it has shut down; its own exit code would be that of success.
                if type(stop).__name__ == "SIGTERMException":
                    print(
                        "error: stopped by SIGTERM; the same command with the same run_dir resumes from the last "
                        "checkpoint",
                        file=sys.stderr,
                    )
                    sys.exit(143)
                raise

        entry = hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(guarded)

        @wraps(function)
        def main() -> None:
            # A name that isn't Unicode is printed with its bytes escaped.
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="backslashreplace")
            # Hydra then raises what it would else print in a form of its own.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                entry()
                sys.stdout.flush()
            except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            except Exception as error:
                fail(error)
                raise

        return main

    return wrap
