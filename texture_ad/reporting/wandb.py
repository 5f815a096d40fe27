"""Weights & Biases, online where a key is set and offline otherwise: never a prompt."""

import netrc
import os
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(save_dir: str, project: str, group: str, name: str) -> WandbLogger:
    """A WandbLogger; without a key it writes below `save_dir` and prints the command that uploads it."""
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    offline = not _has_key()
    if offline:
        print(f"wandb    offline, no API key; upload later: wandb sync {save_dir}/wandb/offline-run-*")
    return WandbLogger(save_dir=save_dir, project=project, group=group, name=name, offline=offline)
