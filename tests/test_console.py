"""The console command: by itself, and installed into an environment of its own."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from forked import run_module
from helpers import environment, read_rows

from texture_ad import __version__
from texture_ad.cli.main import COMMANDS, Command, main, start
from texture_ad.data.embedded import ensure

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "lightning", "numpy", "hydra", "matplotlib", "wandb")


def console(monkeypatch, capsys, *args):
    """`texture-ad args` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["texture-ad", *args])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def python(*args, **more):
    """A call of this Python: its outcome."""
    return subprocess.run(
        [sys.executable, *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_one_line_each(monkeypatch, capsys, args):
    code, out, errors = console(monkeypatch, capsys, *args)
    assert code == 0 and errors == ""
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert list(lines) == ["run", "check", "predict", "serve", "update", "export", "import", "workspace"]
    assert all(len(line) <= 100 for line in out.splitlines())


def test_the_version_is_told(monkeypatch, capsys):
    assert console(monkeypatch, capsys, "--version") == (0, f"texture_ad {__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("predcit", "error: predcit: no such command; did you mean predict? expected one of run, check, predict,"),
        ("quantum", "error: quantum: no such command; expected one of run, check, predict,"),
        ("+experiment=carpet", "error: +experiment=carpet: no such command; expected one of run,"),
    ],
)
def test_an_unknown_command_gets_one_line(monkeypatch, capsys, name, message):
    code, out, errors = console(monkeypatch, capsys, name)
    assert code == 2 and out == ""
    assert errors.startswith(message) and errors.count("\n") == 1


def test_the_list_imports_nothing_heavy():
    code = f"import sys\nfrom texture_ad.cli.main import main\nmain()\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help(name):
    done = run_module("texture_ad", name, "--help", env=environment())
    assert done.returncode == 0, done.stderr
    assert f"texture-ad {name} " in done.stdout and "texture-ad COMMAND" not in done.stdout


def test_a_commands_error_is_told_as_its_module_does():
    done = run_module("texture_ad", "predict", "detector=none.pt", "input=/nowhere", env=environment())
    assert done.returncode == 2
    assert done.stderr == "error: input=/nowhere: no such file or folder\n"


def test_a_commands_further_processes_would_start_the_same_module(tmp_path, monkeypatch, capsys):
    """DDP, sweeps and data loaders start `python -m` with the name in the main module's specification."""
    (tmp_path / "door.py").write_text("import sys, __main__\nprint(__name__, __main__.__spec__.name, sys.argv[1:])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["texture-ad"])
    start(Command("door", "of this test"), ["a=1", "-m"])
    assert capsys.readouterr().out == "__main__ door ['a=1', '-m']\n"


# --- installed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of commands of a new environment with this checkout and the packages of the running one."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    commands = venv / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install = ["-m", "pip", "--python", commands / "python", "install", "--quiet", "--no-deps", ROOT]
    subprocess.run([sys.executable, *install], check=True, timeout=300)
    # Its packages come after those of the new environment, its links to checkouts not at all.
    (package,) = venv.rglob("site-packages/texture_ad")
    running = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (package.parent / "running.pth").write_text("\n".join(running))
    return commands


@pytest.fixture
def call(installed, tmp_path):
    def call(name, *args):
        env = environment()
        env.pop("PYTHONPATH", None)
        done = subprocess.run(
            [installed / name, *args],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_installed_package_is_not_the_checkout(call, installed):
    found = Path(call("python", "-c", "import texture_ad; print(texture_ad.__file__)").strip())
    assert found.is_relative_to(installed.parent)
    assert not found.is_relative_to(ROOT)


def test_the_installed_command_runs_and_predicts_from_another_folder(call, tmp_path):
    assert "  predict " in call("texture-ad", "--help")
    assert "Examples:" in call("texture-ad", "run", "--help")
    call(
        "texture-ad",
        "run",
        "data=embedded",
        "run_dir=run",
        "data.size=64",
        "backbone=resnet18",
        "backbone.weights=none",
        "backbone.layers=[layer1]",
        "flow.blocks=2",
        "dictionary.num_atoms=16",
        "detection.iterations=20",
        "density.epoch_steps=3",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "pictures=false",
    )
    assert len(read_rows(tmp_path / "run/scores.csv")) == 68
    image = ensure("carpet") / "test/good/000.png"
    out = call("texture-ad", "predict", "detector=run/detector.pt", f"input={image}", "output=found")
    assert "of 1 images" in out
    assert (tmp_path / "found/scores.csv").is_file() and len(list((tmp_path / "found/overlays").iterdir())) == 1
