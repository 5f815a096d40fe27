"""The one line that tells a user about an error, with the configuration's keys and the command that mends it.

Imports nothing heavy.
"""

import errno
import re
import sys
from collections.abc import Iterable

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from texture_ad.cli.advice import advised
from texture_ad.cli.conf import choices_of, has_default
from texture_ad.cli.quoting import several, unreadable
from texture_ad.environment import to_install
from texture_ad.errors import UserError, did_you_mean
from texture_ad.files import reason

_DISK = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a folder that can be written",
    errno.EPERM: "give a folder that can be written",
    errno.ENOTDIR: "give another path",
    errno.EISDIR: "give another path, a folder is in the way",
    errno.EEXIST: "give another path",
    errno.ENOENT: "give a folder that can be written",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "raise the limit on open files",
}
_NO_TRIAL = "no trial of the search has finished; why, stands above and in error.txt of each"
_OF_LIBRARIES = {  # words of Hydra's, joblib's and Optuna's errors
    "n_jobs == 0 in Parallel": "hydra.launcher.n_jobs=0: expected at least 1, or -1 for a job on each core",
    "Only one of --run, --multirun": "--multirun, --cfg and --info exclude each other; give one of them",
    "No trials are completed yet": _NO_TRIAL,  # a study in memory says so
    "Record does not exist": _NO_TRIAL,  # and one in a database so
    "does not support dynamic value space": "the study holds trials of another search; give another run_dir",
}
# Hydra's words.
_SEVERAL = re.compile(r"Ambiguous value for argument '(.*)'\n1\.", re.DOTALL)
_TWICE = re.compile(r"Multiple values for (\S+)\. |(\S+) appears more than once in the final defaults list")
_NO_DEFAULT = re.compile(r"Could not override '([^'@]+)(@[^']*)?'\..* use (\+\S+)", re.DOTALL)
_PLUGINS = {"hydra/sweeper/optuna": "search", "hydra/launcher/joblib": "sweep", "hydra/launcher/submitit": "sweep"}


def explain(error: BaseException, resumes: bool = True) -> str | None:
    """Return the line that tells a user about an error, or None for a fault of the program (it keeps its traceback).

    Args:
        error: that was raised.
        resumes: whether the command is a run, which resumes from its last checkpoint.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    for cause in chain:
        if isinstance(cause, UserError):
            return advised(cause)
    for cause in chain:
        line = _explain_cause(cause, resumes)
        if line is not None:
            return line
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        # The innermost says what is wrong with which key.
        line = f"{error} ({chain[-1]})" if len(chain) > 1 and str(chain[-1]) not in str(error) else str(error)
        extras = {extra for plugin, extra in _PLUGINS.items() if plugin in line}
        return "; ".join([_explain_setting(chain[-1]) or line, *(to_install(extra) for extra in extras)])
    return None


def _explain_setting(error: BaseException) -> str | None:
    """Return the line about a setting that is missing, or that conf/ doesn't have; None for any other error."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: not given; give {error.full_key}=VALUE"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = error.options or choices_of(group)  # Hydra names none for one of a list, such as logger=[csv,wandb]
        told = f"; {_meant(choice, options)}" if options else ""
        return f"{group}={choice}: no such choice{told}" if group else None
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        return _explain_key(str(error.full_key), error.parent_node)
    if found := _SEVERAL.match(str(error)):
        return several(found[1])
    if (found := _NO_DEFAULT.match(str(error))) and choices_of(found[1]):
        group, place, added = found.groups()
        told = f"a group has one place; give {group}=CHOICE" if place else f"has no choice yet; give {added}"
        return f"{group}{place or ''}: {told}"
    if found := _TWICE.match(str(error)):
        group = found[1] or found[2]
        if choices_of(group) and not has_default(group):
            return f"{group}: is given twice; give one of them, or both as +{group}=[ONE,OTHER]"
        return f"{group}: has a choice already; change it without a plus: {group}=CHOICE"
    return None


def _explain_key(full_key: str, parent: Container) -> str | None:
    """Return the line about a key that its parent doesn't have, None for one of Hydra's own where that is empty."""
    above, _, key = full_key.rpartition(".")
    if above == "logger" and key in choices_of(above):
        return f"{full_key}: this logger is not chosen; give logger=[{','.join([*map(str, parent), key])}]"
    if set(parent) == {"_target_"}:  # as Hydra's own launcher
        return f"{full_key}: no such key, {above} has none; choose another by {above.replace('.', '/')}=CHOICE"
    if parent:
        line = f"{full_key}: no such key; {_meant(key, map(str, parent))}"
        # A group's class may take more, as Lightning's Trainer does.
        return f"{line}; or add one that its class takes with +{full_key}=" if above else line
    # OmegaConf has made room for the key where a single value was.
    return (
        None if above.startswith("hydra") else f"{full_key}: no such key; did you mean {above}? it has a single value"
    )


def _meant(name: str, known: Iterable[str]) -> str:
    """Return what a name may have been meant for, and all names that there are."""
    names = sorted(set(known) - {"hydra", "_target_"})
    return f"{did_you_mean(name, names)}expected one of {', '.join(names)}"


def _explain_cause(cause: BaseException, resumes: bool) -> str | None:
    """Return the line about one error of a chain, or None where it is none that a user can act on."""
    # By name: this module must not import torch.
    if type(cause).__name__ == "OutOfMemoryError":
        return (
            f"the GPU's memory is full ({str(cause).split('. ')[0]}); lower data.batch_size, "
            "data.eval_batch_size or data.size (predict: batch_size), free the GPU of other processes, or "
            "use trainer.accelerator=cpu (predict: device=cpu)"
        )
    if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
        return f"the memory is full ({cause}); lower data.batch_size, data.eval_batch_size, data.cache_mb or data.size"
    if isinstance(cause, OSError) and cause.errno in _DISK:
        where = f"{cause.filename}: " if cause.filename is not None else ""
        line = f"{where}can't be written or read ({reason(cause)}); {_DISK[cause.errno]}"
        return f"{line}, then give the same command again{'; a run resumes from its last checkpoint' * resumes}"
    if type(cause).__name__ == "MisconfigurationException":
        return f"trainer: {cause}"
    if type(cause).__name__ in ("TerminatedWorkerError", "FailedJobError", "UncompletedJobError"):
        return (
            "a job's process ended without a result, killed or out of memory; run fewer jobs side by side "
            "(hydra.launcher.n_jobs), then give the same command again: it does what is missing"
        )
    for words, line in _OF_LIBRARIES.items():
        if words in str(cause):
            return line
    return None


def fail(error: BaseException, resumes: bool = True) -> None:
    """Print a user's error, as `explain` has it, in one printable line and exit with code 2; return for any other."""
    line = explain(error, resumes)
    if line is not None:
        line = " ".join(line.split())
        print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
        sys.exit(2)
