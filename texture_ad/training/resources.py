"""What a run takes of its machine, and the share of the machine that a sweep's job may take.

Each system has a part of what is asked for here. What it lacks is left out, and one line on stderr says so.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread

STOPPING = (signal.SIGINT, signal.SIGTERM)  # signals that end a run
_MIB = 2**20
_TRIM_THRESHOLD = -1  # glibc's malloc.h
_MMAP_THRESHOLD = -3
_PROCESS = Path("/proc/self")  # Linux's account of this process


@cache
def _say_once(line: str) -> None:
    """Print a line on stderr, once in a process."""
    print(line, file=sys.stderr, flush=True)


def collect_garbage() -> None:
    """Free objects that hold each other, such as Lightning's trainers and what they fitted.

    A signal waits until the end: a Ctrl-C in the callback of an object that goes would be printed and forgotten.
    """
    if current_thread() is not main_thread():  # which alone is told of signals
        gc.collect()
        return
    waiting: list[int] = []
    # A handler that is not Python's own is None, and couldn't be put back.
    ours = [number for number in STOPPING if signal.getsignal(number) is not None]
    handlers = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in ours}
    try:
        gc.collect()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for caught in dict.fromkeys(waiting):
        signal.raise_signal(caught)


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GiB of freed memory for the next allocation; other C libraries stay as they are.

    By default every large tensor is mapped anew and given back at once, and the kernel clears its pages each time. On a
    CPU this can take half of a convolution's time.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library without a name
        _say_once("note: freed memory is not kept for reuse: this system's C library is not glibc")


def compute_in_float32() -> None:
    """Let convolutions on a GPU compute in single precision, where cuDNN would round to TF32's ten bits.

    A threshold that was set on one device then holds on the other: scores differ in the last digits alone.
    """
    import torch  # not at the top: a process takes its share of cores before

    torch.backends.cudnn.allow_tf32 = False


def take_share(launcher: str, cpus: int | None = None) -> None:
    """Keep the jobs that a launcher runs side by side from competing; call it before torch is first used.

    Joblib gives each of its processes cores / n_jobs threads by itself; here each gets one of the visible GPUs in turn.
    Submitit's jobs get `cpus` threads, 1 where none are asked for, as under Slurm.

    Args:
        launcher: name of the launcher's class.
        cpus: cores that the launcher asks for a job.
    """
    if "submitit" in launcher:
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus or 1))
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    if worker:
        _take_one_gpu(int(worker[1]) - 1)


def _take_one_gpu(worker: int) -> None:
    """Show the worker of this index one of the visible GPUs, in turn; with a single GPU change nothing."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory` anew, of the GPU's memory and, on Linux, of the process's own."""
    import torch

    with suppress(OSError):  # without this file the process's peak counts from its start
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Return the most memory that was held at once, in MiB.

    Returns:
        `peak_memory_mb` of this process, where the system counts it, and `peak_gpu_memory_mb` of its tensors, where a
        GPU is in use.
    """
    import torch

    found = {}
    own = _peak_by_proc() or _peak_by_getrusage()
    if own is None:
        _say_once("note: peak_memory_mb is left out: this system does not count a process's peak memory")
    else:
        found["peak_memory_mb"] = own / _MIB
    if torch.cuda.is_initialized():
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / _MIB
    return found


def _peak_by_proc() -> int | None:
    """Return this process's peak memory in bytes as Linux counts it, or None on another system."""
    try:
        peak = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(peak[1]) * 1024 if peak else None


def _peak_by_getrusage() -> int | None:
    """Return this process's peak memory in bytes as POSIX counts it, or None on Windows.

    It is the second choice, because it remembers the peak of the process that this one was forked from.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
