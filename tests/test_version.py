"""One version: of the package, and of what is cited."""

import re
from pathlib import Path

import texture_ad

ROOT = Path(__file__).parents[1]


def test_the_citation_names_the_packages_version():
    found = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert found and found[1] == texture_ad.__version__


def test_the_changelog_and_the_licence_are_there():
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
