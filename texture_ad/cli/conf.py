"""Where conf/ is, and which choices its groups have. Imports nothing heavy."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = str(next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir()))


def choices_of(group: str) -> list[str]:
    """Return the choices of a group of conf/, none of a group that it doesn't have."""
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")) if group else []
