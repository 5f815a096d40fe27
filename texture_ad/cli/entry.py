"""What the command lines share: which keys and classes conf/ may name, and how a run of Hydra begins.

Imports nothing heavy.
"""

import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import wraps
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from texture_ad.cli import naming  # noqa: F401, makes conf/'s resolvers known
from texture_ad.cli.conf import CONF
from texture_ad.cli.explain import fail
from texture_ad.cli.help import comments, explained
from texture_ad.cli.plugins import register
from texture_ad.cli.quoting import PATH_KEYS, check_arguments, multirun_first, quote_paths
from texture_ad.environment import is_allowed
from texture_ad.errors import ParameterError, UserError, did_you_mean
from texture_ad.files import missing_folders
from texture_ad.training.run_folder import holds_run, remove_refused

RUN = "config"  # configuration of the command that resumes
_missing: list[Path] = []  # folders that Hydra is about to make for a run, the innermost first


def known_keys(config_name: str) -> set[str]:
    """Return the keys that a configuration has at its top: its own, and the groups of its defaults."""
    config = OmegaConf.load(Path(CONF) / f"{config_name}.yaml")
    defaults = config.defaults if "defaults" in config else []
    groups = {str(group) for entry in defaults if OmegaConf.is_dict(entry) for group in entry if " " not in str(group)}
    others = [known_keys(entry) for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return ({str(key) for key in config} | groups).union(*others) - {"hydra", "defaults"}


def _targets(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every `_target_` in a configuration with its key."""
    if isinstance(config, dict):
        for name, value in config.items():
            full_key = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield full_key, value
            yield from _targets(value, full_key)
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _targets(value, f"{key}[{i}]")


def check_targets(config: DictConfig | ListConfig, allow: Sequence[str] = ()) -> None:
    """Check that only what conf/ names, or what the user allows, is ever called, whatever asks for something else.

    Args:
        config: to check.
        allow: modules, or single names in them, whose code the user trusts.

    Raises:
        UserError: another `_target_`.
    """
    files = sorted(Path(CONF).rglob("*.yaml"))
    known = {t for f in files for t in re.findall(r"^\s*_target_:\s*(\S+)", f.read_text(encoding="utf-8"), re.M)}
    for key, target in _targets(OmegaConf.to_container(config, resolve=True)):
        if target not in known and not is_allowed(str(target), allow):
            module = str(target).rpartition(".")[0] or target
            problem = f"not a class that conf/ names ({', '.join(sorted(known))})"
            raise UserError(f"{key}={target}: {problem}; if you trust its code, add allow=[{module}]")


def check_config(config: DictConfig, config_name: str) -> None:
    """Check that a configuration holds only keys that conf/ names, and targets that conf/ names or `allow` permits.

    Raises:
        UserError: another key or `_target_`, no name for a run, or null for a path that is needed.
    """
    known = known_keys(config_name)
    unknown = sorted(set(map(str, config)) - known)
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UserError(f"{unknown[0]}: no such key; {hint}expected one of {', '.join(sorted(known))}")
    allow = config.get("allow", [])
    if not (isinstance(allow, list | ListConfig) and all(isinstance(name, str) for name in allow)):
        raise ParameterError("allow", allow, "expected names of modules, such as [my_package.my_module]")
    check_targets(config, allow)
    if "name" in config and config.name in (None, ""):  # run folders are called by it
        raise ParameterError("name", "null" if config.name is None else "", "expected a name")
    _check_paths(config, config_name)


def _check_paths(config: DictConfig, config_name: str) -> None:
    """Check that no path is null which a command needs: one that conf/ leaves to be given, or gives.

    Raises:
        ParameterError: one is.
    """
    defaults = OmegaConf.to_container(OmegaConf.load(Path(CONF) / f"{config_name}.yaml"))
    assert isinstance(defaults, dict)
    for key in sorted(PATH_KEYS & defaults.keys()):
        default = defaults[key]  # "???" where it is to be given
        needed = default is not None and not default.startswith("${")
        if needed and key in config and not OmegaConf.is_missing(config, key) and config[key] is None:
            raise ParameterError(key, "null", "expected a path")


def check_given(config: DictConfig, config_name: str) -> None:
    """Check that all keys are given which conf/ leaves to be given.

    Raises:
        UserError: one is not.
    """
    missing = [str(key) for key in config if OmegaConf.is_missing(config, key)]
    if missing:
        what = comments(Path(CONF), config_name, {}).get(missing[0], "a value")
        raise UserError(f"{missing[0]}: not given ({what}); give {missing[0]}=VALUE")


def in_sweep() -> bool:
    """Return whether Hydra runs this as one job of a multirun, in whatever process."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _run_checked(function: Callable[[DictConfig], object], config: DictConfig, config_name: str) -> object:
    """Check a configuration, call a function with it and return what it returns."""
    try:
        check_config(config, config_name)
        check_given(config, config_name)
        if config.get("allow") and not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # where `python -m` looks, too
        return function(config)
    except Exception as error:
        _end_if_unread(error)
        if not in_sweep():  # where sweep.Comparison tells it, and the other jobs continue
            _remove_bare_folder()
            fail(error, resumes=config_name == RUN)
        raise
    except KeyboardInterrupt:
        if config_name == RUN and not in_sweep() and holds_run(Path(HydraConfig.get().runtime.output_dir)):
            _stopped("Ctrl-C", 130)
        raise
    except SystemExit as stop:
        # Lightning's, after it has shut down.
        if type(stop).__name__ == "SIGTERMException":  # its own exit code would be that of success
            _stopped("SIGTERM", 143)
        if isinstance(stop.__context__, KeyboardInterrupt):
            _stopped("Ctrl-C", 130)
        raise


def note_folder(folder: str) -> None:
    """Note which folders Hydra makes for a run: where it is refused, those that are there already stay."""
    _missing[:] = missing_folders(Path(os.path.abspath(folder)))


def _remove_bare_folder() -> None:
    """Remove the folders that a run made and was refused in before it trained."""
    if Path(HydraConfig.get().runtime.output_dir) in _missing[:1] and remove_refused(_missing):
        for handler in logging.root.handlers[:]:
            if isinstance(handler, logging.FileHandler):  # Hydra's, which would open its file there
                logging.root.removeHandler(handler)


def _stopped(what: str, code: int) -> NoReturn:
    """Say that a run was stopped, and how to go on; exit with this code."""
    advice = "the same command with the same run_dir resumes from the last checkpoint"
    print(
        f"error: stopped by {what}; {'the same command does what is missing' if in_sweep() else advice}",
        file=sys.stderr,
    )
    sys.exit(code)


def _run_entry(entry: Callable[[], object], config_name: str) -> None:
    """Call Hydra's entry point, and report what it raises in this program's own form."""
    if sys.stdout is None:  # whoever called has closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, until the process ends
    # A name that isn't Unicode is printed with its bytes escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Hydra then raises what it would else print in a form of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        register()
        check_arguments(sys.argv[1:])
        sys.argv[1:] = multirun_first(quote_paths(sys.argv[1:]))
        if {"--help", "-h"} & set(sys.argv[1:]):
            shown = StringIO()
            try:
                with redirect_stdout(shown):
                    entry()
            finally:  # Hydra ends the process
                choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
                sys.stdout.write(explained(shown.getvalue(), comments(Path(CONF), config_name, choices)))
        else:
            entry()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end_if_unread(error)
        fail(error, resumes=config_name == RUN)
        raise


def _reader_is_gone() -> bool:
    """Return whether nobody reads stdout any more: another pipe, to a service say, may have broken instead."""
    if not hasattr(select, "poll"):  # on Windows, where a broken pipe is another error
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are told unasked
    return bool(output.poll(0))


def _end_if_unread(error: Exception) -> None:
    """End where an error says that whoever read the output, `head` say, has seen enough; the rest goes nowhere."""
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], object]], Callable[[], None]]:
    """Make a function a Hydra entry point: unknown keys and bad input end in one line on stderr and exit code 2.

    Args:
        config_name: of the file in conf/.
    """

    def wrap(function: Callable[[DictConfig], object]) -> Callable[[], None]:
        @wraps(function)
        def guarded(config: DictConfig) -> object:
            return _run_checked(function, config, config_name)

        entry = hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(guarded)

        @wraps(function)
        def main() -> None:
            _run_entry(entry, config_name)

        return main

    return wrap
