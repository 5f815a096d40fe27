"""Measure how fast we are beside baselines.

    make bench                                       # all rows, about 17 minutes on 2 quiet cores
    python -m benchmarks.bench --quick               # fewer repetitions and files
    python -m benchmarks.bench --only startup coders # some rows, which replace theirs in the results
    python -m benchmarks.bench --only compiled       # torch.compile, which takes minutes

Both sides of a ratio are measured in one call, most by turns, so that load falls on both alike.

Writes benchmarks/results/bench.json and bench.md, says which goals fall short, and which rows are slower than in the
results that were there, beyond the noise. TEXTURE_AD_REAL_DATA may name a
folder of photographs for the rows that compare accuracy; without it they use embedded data. Rows of another machine or
other versions are left out of the results.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import codes, detecting, fitting, others, results
from benchmarks.comparison import Row
from texture_ad.cli.experiment import prepare_process

GROUPS: tuple[Callable[[bool], list[Row]], ...] = (
    others.startup,
    others.embedded_data,
    codes.coders,
    fitting.fit_to_objective,
    fitting.fit_streaming,
    detecting.scoring,
    detecting.end_to_end,
    detecting.folder,
    others.pixel_metric,
    fitting.memory,
    detecting.compiled,
)
ROWS = {group.__name__: group for group in GROUPS}


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and files")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[name for name in ROWS if name != "compiled"])
    parser.add_argument("--output", type=Path, default=results.RESULTS)
    return parser.parse_args()


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Measure a group of rows and print them; return them with the load average at their start."""
    load = round(os.getloadavg()[0], 2)
    start = time.perf_counter()
    rows = [asdict(row) for row in ROWS[name](quick)]
    for row in rows:
        numbers = f"{row['ratio']:8.3g}  goal {row['goal'] or 0:5.3g}"
        print(f"{numbers}  {row['work']} | {row['beside']}  {row['note']}", flush=True)
    print(f"          {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return {"load_average": load, "rows": rows}


def print_goals(found: dict[str, Any], path: Path) -> None:
    """Print which goals fall short."""
    short = [row for group in found["groups"].values() for row in group["rows"] if row["met"] is False]
    print(f"\n{path}: " + (f"{len(short)} goals fall short:" if short else "all goals are met"))
    for row in short:
        print(f"  {row['work']}, beside {row['beside']}: {row['ratio']:.3g}, goal {row['goal']:.3g} {row['note']}")


def print_regressions(before: dict[str, Any], found: dict[str, Any], names: Sequence[str]) -> None:
    """Print which rows of the measured groups are slower than in the results that were there, beyond the noise."""
    measured = {"groups": {name: found["groups"][name] for name in names}}
    slower = results.regressions(before, measured)
    where = "" if before["machine"] in (None, found["machine"]) else " of another machine or other versions"
    print(f"beside the earlier results{where}: {len(slower)} rows are slower beyond the noise")
    for line in slower:
        print(f"  {line}")


def main() -> None:
    """Measure groups of rows, and write the results after each."""
    args = arguments()
    prepare_process()
    torch.manual_seed(0)
    before = results.committed(args.output)
    found = results.read(args.output)
    for name in args.only:
        found["groups"][name] = measure(name, args.quick)
        found["groups"] = {key: found["groups"][key] for key in ROWS if key in found["groups"]}
        results.write(args.output, found)
    print_goals(found, args.output / "bench.md")
    print_regressions(before, found, args.only)


if __name__ == "__main__":
    main()
