"""Commands in processes of their own that need not import the libraries: each is forked from one that has.

A start of Python with torch, Lightning and timm costs seconds, more than most of the commands that tests run.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from unittest import mock

LIBRARIES = (
    "lightning",
    "timm",
    "torchvision",
    "torchmetrics",
    "hydra",
    "spams",
    "skimage.measure",
    "sklearn.manifold",
)


class Forked:
    """Run `python -m MODULE ARGUMENTS` beside this process, with the methods of subprocess.Popen that tests use.

    It leads a process group of its own.

    Args:
        module: with its package.
        arguments: of the command line.
        env: all of its environment.
        cwd: its working folder, None for this process's.
    """

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(LIBRARIES))
        with mock.patch.dict(os.environ, env):  # a library reads some of it when it is imported
            multiprocessing.forkserver.ensure_running()
        self.args = [sys.executable, "-m", module, *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "err")]
        call = (module, arguments, dict(env), cwd or Path.cwd(), *self._outputs)
        self._process = context.Process(target=_run, args=call)
        self._process.start()
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def pid(self) -> int:
        """Return the number of the process, which is that of its group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code, -N after signal N, None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def lines(self) -> Iterator[str]:
        """Yield the lines that it writes to stdout, as they come."""
        with open(self._outputs[0], encoding="utf-8", errors="replace") as output:
            while True:
                ended = self.poll() is not None
                line = output.readline()
                if line:
                    yield line
                elif ended:
                    return
                else:
                    time.sleep(0.01)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what it wrote to stdout and stderr."""
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run_module(
    module: str, *arguments: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess:
    """Run `python -m MODULE ARGUMENTS`, and return its outcome; where nothing can be forked, by a new Python.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        call = [sys.executable, "-m", module, *arguments]
        return subprocess.run(call, capture_output=True, text=True, env=dict(env), cwd=cwd, timeout=timeout)
    process = Forked(module, *arguments, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _run(module: str, arguments: tuple[str, ...], env: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    """Become the command: its group, its folder, its environment, its output in files."""
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    sys.path[:] = [str(cwd), *(p for p in sys.path if p)]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process ends without
