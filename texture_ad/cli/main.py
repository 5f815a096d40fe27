"""The console command `texture-ad COMMAND ...`, which `python -m texture_ad` is as well.

A command is a module that can be run with `python -m`; this one only chooses it. Imports nothing heavy.
"""

import runpy
import sys
from typing import NamedTuple

from texture_ad import __version__
from texture_ad.errors import UserError, did_you_mean


class Command(NamedTuple):
    """Say which module a command runs, and what for.

    Attributes:
        module: has a main program.
        purpose: one line for the list of commands.
    """

    module: str
    purpose: str


COMMANDS = {
    "run": Command("texture_ad.run", "train, calibrate and evaluate a detector: texture-ad run +experiment=carpet"),
    "check": Command("texture_ad.check", "say what a run would use for what, and what is wrong with its images"),
    "predict": Command("texture_ad.predict", "score an image, a folder, or a watched folder with a saved detector"),
    "serve": Command("texture_ad.serve", "a web service and a page for people over a saved detector"),
    "update": Command("texture_ad.update", "add good photographs to a saved detector, without those of its fit"),
    "export": Command("texture_ad.export", "write a saved detector as one graph: ONNX, OpenVINO or torch.export"),
    "import": Command("texture_ad.data.importing", "list a folder's images in a table, or unpack MVTec AD's archive"),
    "workspace": Command("texture_ad.reporting.workspace", "make a W&B workspace and report that compare runs"),
}


def overview() -> str:
    """Return the list of commands, one line each."""
    lines = [f"  {name:<10} {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Finds defects on textures from defect-free photographs alone.",
            "",
            "usage: texture-ad COMMAND [ARGUMENTS]",
            "",
            *lines,
            "",
            "texture-ad COMMAND --help describes a command, texture-ad --version names the version.",
        ]
    )


def unknown(name: str) -> str:
    """Return what is wrong with the name of a command that there is none of."""
    return f"{name}: no such command; {did_you_mean(name, COMMANDS)}expected one of {', '.join(COMMANDS)}"


def start(command: Command, arguments: list[str]) -> None:
    """Run a command's module in this process as `python -m` would.

    Its further processes (of DDP, of a sweep, of data loaders) start it by the same name.
    """
    sys.argv = [command.module, *arguments]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Run the command that the command line names, or list the commands.

    Raises:
        SystemExit: with code 2 after an unknown command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"texture_ad {__version__}")
    elif name in COMMANDS:
        start(COMMANDS[name], arguments)
    else:
        _fail(unknown(name))


def _fail(problem: str) -> None:
    """Print a user's error as every command does."""
    from texture_ad.cli.explain import fail

    fail(UserError(problem))
