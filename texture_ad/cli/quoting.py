"""Take paths and names on the command line to the letter: quote them as Hydra's grammar asks before it parses them.

Imports nothing heavy.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from texture_ad.cli.conf import choices_of, is_list
from texture_ad.errors import UserError

# Keys whose values are paths, or texts with characters that the grammar has meanings for.
PATH_KEYS = frozenset(
    {
        "backbone.weights",
        "data.group",
        "data.root",
        "data.table",
        "detector",
        "images",
        "input",
        "mqtt",
        "output",
        "run_dir",
        "token",
        "webhook",
    }
)
# Those in whose values ~ is the user's home, which not every shell puts there; those of `data` do so themselves.
HOME_KEYS = frozenset({"backbone.weights", "detector", "images", "input", "output", "run_dir"})
# Keys whose values may also be lists, of paths or of numbers; a number alone is none.
LIST_KEYS = frozenset({"data.anomalous", "data.masks", "data.normal", "data.roi"})
# Keys whose values are names, or lists of them: the grammar would read 2024_01 as 202401, and 1.10 as 1.1.
_LOGGERS = {
    "csv": ("name", "version"),
    "tensorboard": ("name", "version"),
    "mlflow": ("experiment_name", "run_name", "tracking_uri"),
    "wandb": ("project", "entity", "group", "job_type", "name", "tags", "registry", "aliases"),
}
NAME_KEYS = frozenset(
    {"name", "data.category"} | {f"logger.{kind}.{key}" for kind in _LOGGERS for key in _LOGGERS[kind]}
)
MULTIRUN = ("-m", "--multirun")
# Texts that the grammar reads as they are: no words of its own, and no numbers such as .5.
PLAIN = re.compile(r"(?!(true|false|nan|inf|null)$|\.[0-9])[A-Za-z_./][A-Za-z0-9_./-]*", re.IGNORECASE | re.ASCII)

_PARTS = re.compile(r"""(?<![^,])\s*('[^']*'|"[^"]*"|[^,]+)\s*(?=,|$)""")  # between commas that are in no quotes
_INTEGER = re.compile(r"-?[0-9]+")  # whose text is the one that was typed
_NO_NAME = re.compile(r"null|true|false|nan|inf|-?[0-9.]+", re.IGNORECASE)  # which Hydra ends at with a traceback
_DASHED = re.compile(r"--?(?!(cfg|info|package|c[dnp])=)\w[\w.]+=")  # Hydra's other options have a dash inside
_WORD = re.compile(r"--(?!(help|version|cfg|resolve|package|run|multirun|info)$)(\w[\w.]+)")  # without a value
_EMPTY = ("", "''", '""')  # the latter from Python
_FUNCTION = re.compile(r"\w+\(.*\)")


def quote_paths(arguments: list[str]) -> list[str]:
    """Return the arguments of a command line with the values of keys that are paths or names in quotes.

    Left as they are: null, interpolations (${...}), values in quotes, and in a sweep (-m) functions such as
    choice(a,b). Of a list each part is quoted, and so is each value of a sweep, unless they are together the name of
    something that exists. Where a run is written does not vary within a sweep.

    Examples:
        >>> quote_paths(["data.root=photos (1)", "data.normal=[OK (1),good]", "data.category=2024_01", "seed=0,1"])
        ["data.root='photos (1)'", "data.normal=['OK (1)',good]", "data.category='2024_01'", 'seed=0,1']
    """
    sweep = any(argument in MULTIRUN for argument in arguments)
    return [_quoted(argument, sweep) for argument in arguments]


def multirun_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's -m before all others: between settings argparse refuses what follows it.

    Examples:
        >>> multirun_first(["+experiment=wood", "-m", "seed=0,1"])
        ['-m', '+experiment=wood', 'seed=0,1']
    """
    return sorted(arguments, key=lambda argument: argument not in MULTIRUN)


def _quoted(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if name in LIST_KEYS | NAME_KEYS and value.startswith("["):
        inner = value[1:-1]
        return argument if not value.endswith("]") or "[" in inner else f"{key}=[{_each_quoted(inner)}]"
    if name in {"data.roi"} | NAME_KEYS and _INTEGER.fullmatch(value):
        return argument
    if not equals or name not in PATH_KEYS | LIST_KEYS | NAME_KEYS or _readable(value):
        return argument
    if name in NAME_KEYS and "," in value and not sweep:  # which Hydra asks about: a sweep, as a rule
        return argument
    if sweep and name != "run_dir" and "," in value and not Path(value).expanduser().exists():
        return argument if _FUNCTION.fullmatch(value) else f"{key}={_each_quoted(value)}"
    return f"{key}={quoted(os.path.expanduser(value) if name in HOME_KEYS else value)}"


def _each_quoted(values: str) -> str:
    """Return values with commas between them, each in quotes but for integers, plain paths and what is in quotes."""
    parts = [part.strip() for part in _PARTS.findall(values)]
    return ",".join(part if _readable(part) or _INTEGER.fullmatch(part) else quoted(part) for part in parts)


def _readable(value: str) -> bool:
    """Return whether the grammar reads a value as it is meant: none, an interpolation, in quotes, or a plain path."""
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value in ("", "null", "???") or "${" in value or in_quotes or PLAIN.fullmatch(value) is not None


def quoted(text: str) -> str:
    """Return a text in quotes, as Hydra's grammar reads it."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def check_arguments(arguments: Sequence[str]) -> None:
    """Check that each argument sets something: none takes a setting away, as Hydra's ~KEY does.

    Raises:
        UserError: one has no key, dashes before it, no value where a path belongs, or for a group a value that is no
            name; it sets what has no number in a list; or it takes a setting away.
    """
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        if equals and not key:
            raise UserError(unreadable(argument))
        if _DASHED.match(argument):
            raise UserError(f"{argument}: no such option; a setting has no dashes: {argument.lstrip('-')}")
        if word := _WORD.fullmatch(argument):
            raise UserError(f"{argument}: no such option; a setting has no dashes: {word[2]}=VALUE")
        if equals and value in _EMPTY and key in PATH_KEYS:
            advice = f"give {key}=VALUE, or leave it out (is a variable of the shell empty?)"
            raise UserError(f"{argument}: has no value; {advice}")
        names = map(str.strip, value.strip("[]").split(","))
        if any(map(_NO_NAME.fullmatch, names)) and (choices := choices_of(key.partition("@")[0])):
            raise UserError(f"{argument}: no such choice; expected one of {', '.join(choices)}")
        above, _, last = key.rpartition(".")
        if above and not last.isdecimal() and is_list(above):  # which OmegaConf ends at with a ValueError
            raise UserError(f"{argument}: {above} is a list; give all of it: {above}=[...]")
        if argument.startswith("~") and not argument.startswith("~hydra"):
            problem = "a setting can't be taken away, only changed; give it a value, such as none or a weight of 0"
            raise UserError(f"{argument}: {problem}")


def several(argument: str) -> str:
    """Return how an argument has to be written whose value has commas, outside of a sweep."""
    key, _, value = argument.partition("=")
    text = shlex.quote(f"{key}={quoted(value)}")
    ways = f"add -m to run each of them, or write {key}=[{value}] for a list, {text} for a text"
    return f"{argument}: several values; {ways}"


def unreadable(argument: str) -> str:
    """Return what is wrong with an argument that Hydra's grammar can't read, and how it has to be written."""
    key, equals, value = argument.partition("=")
    if not (key.lstrip("+") and equals):
        return f"{argument}: expected KEY=VALUE"
    written = f"{key}={quoted(value)}"
    return f"{argument}: the value has characters with a meaning of their own; write it {shlex.quote(written)}"
