"""The layers of the package: contracts of import-linter in pyproject.toml, checked with the tests as well."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_no_layer_imports_a_higher_one():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_modules_that_only_name_things_import_nothing_heavy():
    light = "texture_ad, texture_ad.parameters, texture_ad.errors, texture_ad.cli.settings, texture_ad.cli.naming"
    script = f"import sys, {light}\nassert not {{'torch', 'lightning', 'matplotlib'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
