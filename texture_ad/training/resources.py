"""What a run takes of its machine, and the share of the machine that a sweep's job may take."""

import multiprocessing
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

_MIB = 2**20


def take_share(launcher: DictConfig) -> None:
    """Keeps the jobs that a launcher runs side by side from fighting; call it before torch is first used.

    Joblib gives each of its processes cores / n_jobs threads by itself; here each gets one of the visible GPUs, in
    turn. Submitit's get `cpus_per_task` threads, 1 where it is not set, as under Slurm.
    """
    if "submitit" in launcher._target_:
        os.environ.setdefault("OMP_NUM_THREADS", str(launcher.cpus_per_task or 1))
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    if worker:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        if len(gpus) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[(int(worker[1]) - 1) % len(gpus)]


def reset_peak_memory() -> None:
    """Starts the measurement of `peak_memory` anew; on Linux of the process's own memory too."""
    import torch

    with suppress(OSError):  # where there is no such file, the process's peak counts from its start
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """The most that was held at once, in MiB: `peak_memory_mb` of this process, `peak_gpu_memory_mb` of its tensors."""
    import torch

    try:
        # Not getrusage: it remembers the peak of the process that this one was forked from.
        kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    found = {"peak_memory_mb": kib * 1024 / _MIB}
    if torch.cuda.is_initialized():
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / _MIB
    return found
