"""What both command lines share: where conf/ is, and how an error is told. Imports nothing heavy."""

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from texture_ad.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = str(next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir()))


def hydra_main(config_name: str, known: set[str]) -> Callable:
    """A Hydra entry point: unknown keys and bad input end in one line on stderr and exit code 2."""

    def wrap(function: Callable[[DictConfig], object]) -> Callable:
        def guarded(config: DictConfig) -> None:
            try:
                unknown = sorted(set(config) - known)
                if unknown:
                    raise UserError(f"{unknown[0]}: no such key; expected one of {', '.join(sorted(known))}")
                function(config)
            except (UserError, OmegaConfBaseException, hydra.errors.InstantiationException) as error:
                cause = error
                while not isinstance(cause, UserError) and cause.__cause__ is not None:
                    cause = cause.__cause__
                print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)
                sys.exit(2)

        guarded.__module__, guarded.__doc__ = function.__module__, function.__doc__
        return hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(guarded)

    return wrap
