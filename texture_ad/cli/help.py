"""What --help says of each key: the comments that stand beside it in conf/. Imports nothing heavy."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import OmegaConf

_LINE = re.compile(r"^( *)(\w+):([^#\n]*)(?:# *(.*))?$", re.M)


def _keys(text: str, group: str = "") -> Iterator[tuple[re.Match[str], str]]:
    """Yield the lines of YAML that have a key, each with its full key, such as "flow.blocks"."""
    parents = {0: group}
    for line in _LINE.finditer(text):
        depth = len(line[1])
        key = f"{parents.get(depth, group)}{line[2]}"
        parents[depth + 2] = f"{key}."
        yield line, key


def _with_bases(file: Path) -> list[Path]:
    """Return a file of conf/ and those that its defaults name."""
    config = OmegaConf.load(file)
    defaults = config.defaults if "defaults" in config else []
    bases = [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return [file, *(other for base in bases for other in _with_bases(file.with_name(f"{base}.yaml")))]


def comments(conf: Path, config_name: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Return the comment of each full key, such as "flow.blocks".

    Args:
        conf: the folder of the configuration.
        config_name: of the file in it.
        choices: a group to the name of its chosen file.
    """
    files = [(file, "") for file in _with_bases(conf / f"{config_name}.yaml")]
    for group, choice in choices.items():
        file = conf / group / f"{choice}.yaml"
        files += [(one, f"{group}.") for one in (_with_bases(file) if file.is_file() else [])]
    found: dict[str, str] = {}
    for file, group in files:
        for line, key in _keys(file.read_text(encoding="utf-8"), group):
            if line[4]:
                found.setdefault(key, line[4])
    return found


def explained(text: str, found: Mapping[str, str]) -> str:
    """Return a help text whose keys have their comments beside them, and which says of "???" that it is required."""
    parts = []
    end = 0
    for line, key in _keys(text):
        comment = ("required: " if line[3].strip() == "???" else "") + found.get(key, "")
        parts += [text[end : line.end()], f"  # {comment}" if comment else ""]
        end = line.end()
    return "".join([*parts, text[end:]])
