"""The results of the benchmarks on disk: bench.json, and the same as a Markdown table, bench.md."""

import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from texture_ad.files import write_text

RESULTS = Path(__file__).parent / "results"
NOISE = 0.1  # of a ratio, between two calls of the benchmarks
NOISE_OF_ONE = 0.25  # the same where nothing was repeated
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "spams-bin", "scikit-learn", "numpy", "scipy")


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, system and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.is_file() else None
    return {
        "processor": named[1] if named else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }


def read(folder: Path) -> dict[str, Any]:
    """Return the results of this machine with these versions, without any group of rows if there are none."""
    path = folder / "bench.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if found.get("machine") == machine() else {"machine": machine(), "groups": {}}


def committed(folder: Path) -> dict[str, Any]:
    """Return the results that are there, of whatever machine and versions; without groups if there are none."""
    path = folder / "bench.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": None, "groups": {}}


def regressions(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each row whose ratios all lie below those of earlier results, by more than the noise.

    The noise is the spread over the repetitions, and beyond it NOISE, or where there was one repetition NOISE_OF_ONE.
    Ratios of two pieces of work in one call are compared, so that another machine's say something too.
    """
    earlier = {
        (group, row["work"], row["beside"]): row
        for group, found in before["groups"].items()
        for row in found.get("rows", [])
    }
    lines = []
    for group, found in now["groups"].items():
        for row in found["rows"]:
            old = earlier.get((group, row["work"], row["beside"]))
            noise = NOISE if len(row["ours"]) > 1 else NOISE_OF_ONE
            if old and row["high"] < (1 - noise) * old["low"]:
                lines.append(f"{row['work']}, beside {row['beside']}: {row['ratio']:.3g}, before {old['ratio']:.3g}")
    return lines


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write bench.json and bench.md."""
    write_text(folder / "bench.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "bench.md", markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page: the machine, then one row for each comparison."""
    groups = results["groups"].values()
    lines = [
        "# Benchmarks",
        "",
        _conditions(results["machine"], [group["load_average"] for group in groups]),
        "",
        ", ".join(f"{k} {v}" for k, v in results["machine"]["versions"].items()) + ".",
        "",
        "Median (lowest–highest) of the repetitions, ours and the baseline in one call, most by turns; the ratio says "
        "how many times as fast ours is. Written by `make bench`.",
        "",
        "| work | beside | ours | baseline | repetitions | ratio | goal | |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for group in groups for row in group["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _conditions(machine: dict[str, Any], loads: list[float]) -> str:
    """Return a line that says under which conditions the figures were measured."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch with {machine['threads']} threads, SPAMS with all in "
        f"codes and beside scikit-learn, else with 1 in fits; load average {min(loads)} to {max(loads)} at the start "
        f"of a group of rows; {machine['system']}. No GPU was measured."
    )


def _line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    verdict = {True: "met", False: "**missed**", None: ""}[row["met"]]
    spread = f" ({row['low']:.3g}–{row['high']:.3g})" if len(row["ours"]) > 1 else ""
    cells = [
        row["work"],
        row["beside"],
        _value(row["ours"], row["unit"]),
        _value(row["baseline"], row["unit"]),
        str(len(row["ours"])),
        f"{row['ratio']:.3g}{spread}",
        "" if row["goal"] is None else f"≥ {row['goal']:.3g}",
        "; ".join(filter(None, (verdict, row["note"]))),
    ]
    return f"| {' | '.join(cells)} |"


def _value(values: list[float], unit: str) -> str:
    """Return the median and, of several values, the range, in milliseconds below one second."""
    scale = 1
    if unit == "s" and median(values) < 1:
        scale = 1000
        unit = "ms"
    spread = f" ({scale * min(values):.3g}–{scale * max(values):.3g})" if len(values) > 1 else ""
    return f"{scale * median(values):.3g}{spread} {unit}"
