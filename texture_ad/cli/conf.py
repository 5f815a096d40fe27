"""Where conf/ is, and which choices its groups have. Imports nothing heavy."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = str(next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir()))


def choices_of(group: str) -> list[str]:
    """Return the choices of a group of conf/, none of a group that it doesn't have."""
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")) if group else []


def has_default(group: str) -> bool:
    """Return whether a run has a choice of a group without being given one."""
    return f"\n  - {group}:" in Path(CONF, "config.yaml").read_text(encoding="utf-8")


def is_list(key: str) -> bool:
    """Return whether conf/ gives a setting a list: a key below a group, or one of the top."""
    group, dot, _ = key.partition(".")
    line = re.compile(rf"^\s*{re.escape(key.rpartition('.')[2])}: *\[", re.MULTILINE)
    folder = Path(CONF, group) if dot else Path(CONF)
    return any(line.search(path.read_text(encoding="utf-8")) for path in folder.glob("*.yaml"))
