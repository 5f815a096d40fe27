"""Fixtures of all tests: the command lines, in this process and in one of their own."""

import importlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from forked import run_module
from helpers import environment


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function for `python -m texture_ad.MODULE ARGUMENTS` in this process: exit code, stdout, stderr."""

    def call(module: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it; here it is taken back
        monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
        monkeypatch.setattr(sys, "argv", [f"texture_ad.{module}", *arguments])
        capsys.readouterr()
        try:
            importlib.import_module(f"texture_ad.{module}").main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function for `python -m texture_ad.MODULE ARGUMENTS` in a process of its own."""

    def call(module: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return run_module(f"texture_ad.{module}", *arguments, env=environment(**env))

    return call
