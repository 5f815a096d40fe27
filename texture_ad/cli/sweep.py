"""Sweeps: what a failed and a finished job mean, and the comparison of all jobs at the end.

A sweep's folder holds one folder a job, named by the swept values, and report.html, jobs.csv, comparison.csv, .md, .png
and .svg.
Imports nothing heavy.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from texture_ad.cli.entry import explain, fail, in_sweep
from texture_ad.cli.naming import key_of, swept
from texture_ad.cli.settings import check_same
from texture_ad.errors import UserError

METRICS = ("image_auroc", "image_ap", "image_f1", "pixel_auroc", "aupro", "synthetic_auroc")
# Name in metrics.json to what a table calls it, the scale and the digits there.
COSTS = {
    "fit_seconds": ("training, s", 1, 1),
    "test_seconds_per_image": ("test, ms an image", 1000, 1),
    "peak_memory_mb": ("peak memory, MiB", 1, 0),
    "peak_gpu_memory_mb": ("peak GPU memory, MiB", 1, 0),
    "threads": ("threads", 1, 0),
}


def finished(folder: Path, config: DictConfig) -> bool:
    """Whether the job of this folder has nothing left to do.

    Raises:
        UserError: it was run with other settings.
    """
    if not (folder / "metrics.json").is_file():
        return False
    check_same(folder, config)
    return True


def read_jobs(folder: Path, overrides: Sequence[str]) -> list[dict]:
    """A sweep's jobs, by the names of their folders.

    Args:
        folder: the sweep's.
        overrides: the sweep's, each "key=value".

    Returns:
        For each job `folder`, `swept` (key to value), `metrics` (empty where it is not finished) and `error`.
    """
    jobs = []
    for told in sorted(folder.glob("*/hydra/overrides.yaml")):
        place = told.parents[1]
        values = {key_of(o): o.partition("=")[2] for o in swept(overrides, OmegaConf.load(told))}
        error = place / "error.txt"
        metrics = place / "metrics.json"
        jobs.append(
            {
                "folder": place,
                "swept": values,
                "metrics": json.loads(metrics.read_text("utf-8")) if metrics.is_file() else {},
                "error": error.read_text("utf-8").partition("\n")[0] if error.is_file() else None,
            }
        )
    return jobs


def compare(jobs: Sequence[dict]) -> tuple[list[str], list[dict]]:
    """Brings the seeds of each setting together.

    Returns:
        The swept keys but `seed` that have more than one value, the one with the most values first; without any, the
        first of the others. And for each setting, in the order of its values, numbers by size, a dict of these keys,
        `data`, and for every metric and cost the list of its values, one for each seed.
    """
    values = {key: {job["swept"].get(key) for job in jobs} for job in jobs for key in job["swept"]}
    values.pop("seed", None)
    keys = sorted((k for k in values if len(values[k]) > 1), key=lambda k: -len(values[k])) or list(values)[:1]
    settings: dict[tuple, dict] = {}
    for job in jobs:
        if not job["metrics"]:
            continue
        setting = tuple(job["swept"].get(key) for key in keys)
        row = settings.setdefault(
            (setting, job["metrics"]["data_source"]),
            {
                **dict(zip(keys, setting, strict=True)),
                "data": job["metrics"]["data_source"],
            },
        )
        for name in (*METRICS, *COSTS):
            if job["metrics"].get(name) is not None:
                row.setdefault(name, []).append(job["metrics"][name])
    return keys, sorted(settings.values(), key=lambda row: [_order(row[key]) for key in keys])


def _order(value: str | None) -> tuple:
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write_comparison(folder: Path, jobs: Sequence[dict]) -> str:
    """Writes jobs.csv, report.html and the comparison as CSV, Markdown and picture; returns the Markdown table."""
    from texture_ad.files import csv_text, write_atomic, write_text
    from texture_ad.reporting.figures import comparison
    from texture_ad.reporting.report import sweep_report
    from texture_ad.reporting.tables import METRIC_NAMES, markdown_table

    columns = list(dict.fromkeys(key for job in jobs for key in job["swept"]))
    names = [n for n in (*METRICS, *COSTS) if any(job["metrics"].get(n) is not None for job in jobs)]
    rows = [(*columns, *names, "data", "error", "folder")]
    for job in jobs:
        found = job["metrics"]
        rows.append(
            (
                *(job["swept"].get(c) for c in columns),
                *(found.get(n) for n in names),
                found.get("data_source"),
                job["error"],
                job["folder"].name,
            )
        )
    write_atomic(folder / "jobs.csv", csv_text(rows))

    keys, settings = compare(jobs)
    rows = [(*keys, "data", *(f"{n}_{part}" for n in names for part in ("mean", "std", "runs")))]
    table = []
    for row in settings:
        numbers = [row.get(n, []) for n in names]
        rows.append(
            (
                *(row[k] for k in keys),
                row["data"],
                *(part for v in numbers for part in (fmean(v) if v else "", stdev(v) if len(v) > 1 else "", len(v))),
            )
        )
        line = {key: row[key] for key in keys}
        for name in (n for n in names if n in row):
            title, scale, digits = COSTS.get(name) or (METRIC_NAMES.get(name, name), 1, 3)
            line[title] = _spread([scale * value for value in row[name]], digits)
        line |= {"runs": max(map(len, numbers)), "data": row["data"]}
        table.append(line)
    write_atomic(folder / "comparison.csv", csv_text(rows))
    text = markdown_table(table) if table else "No job has finished."
    note = (
        "Mean ± sample standard deviation over seeds. Times and memory are those of a run that shares nothing; of "
        "a job that was killed and resumed, those of its last part."
    )
    failures = [f"Failed: {job['folder'].name}: {job['error']}" for job in jobs if job["error"]]
    write_text(folder / "comparison.md", "\n\n".join([text, note, *failures]) + "\n")
    if settings:
        comparison(keys, settings, folder / "comparison.png")
    told = [f"{sum(bool(job['metrics']) for job in jobs)} of {len(jobs)} jobs have finished.", note, *failures]
    reports = {job["folder"].name: job["folder"] / "report.html" for job in jobs}
    reports = {name: path for name, path in reports.items() if path.is_file()}
    sweep_report(
        folder,
        table,
        [folder / "comparison.png"] if settings else [],
        "; ".join(dict.fromkeys(row["data"] for row in settings)),
        reports,
        told,
    )
    return text


class Comparison(Callback):
    """Hydra's callback: in every job's process it tells a failure, and at the end it compares."""

    before = 0

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        self.before = len(list(Path(config.hydra.sweep.dir).glob("*/metrics.json")))

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        if in_sweep():
            (Path(config.hydra.runtime.output_dir) / "error.txt").unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        if not in_sweep() or job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        folder = Path(config.hydra.runtime.output_dir)
        line = " ".join((explain(error) or f"{type(error).__name__}: {error}").split())
        trace = "" if explain(error) else "".join(traceback.format_exception(error))
        print(f"failed   {folder}: {line}\n{trace}", end="", file=sys.stderr, flush=True)
        (folder / "error.txt").write_text(f"{line}\n{trace}", "utf-8", "backslashreplace")
        # Else Hydra would end here, without on_multirun_end.
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = None

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            jobs = read_jobs(folder, config.hydra.overrides.task)
            done = sum(bool(job["metrics"]) for job in jobs)
            print(
                f"\n{write_comparison(folder, jobs)}\n\nsweep    {folder}: report.html, comparison.md, .csv, .png "
                f"and jobs.csv; {done} of {len(jobs)} jobs finished, {self.before} of them before"
            )
            for what, found in _mixed(jobs).items():
                print(
                    f"warning: the jobs were run with different {what} ({', '.join(found)}); remove the older jobs' "
                    "folders to compare like with like",
                    file=sys.stderr,
                )
            failed = [job for job in jobs if job["error"]]
            for job in failed:
                print(f"failed   {job['folder']}: {job['error']}", file=sys.stderr)
            if failed:
                raise UserError(f"{len(failed)} of {len(jobs)} jobs failed; the same command does what is missing")
        except Exception as error:
            # Hydra would make a warning of it, and exit with 0.
            fail(error)
            traceback.print_exc()
            sys.exit(1)


def _mixed(jobs: Sequence[dict]) -> dict[str, list[str]]:
    """What should be the same in all jobs and is not: versions, and the images of one data source."""
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for package, version in job["metrics"].get("versions", {}).items():
            found.setdefault(f"versions of {package}", {})[str(version)] = None
        if job["metrics"]:
            images = found.setdefault(f"images of {job['metrics']['data_source']}", {})
            images[job["metrics"]["data_fingerprint"]] = None
    return {what: list(values) for what, values in found.items() if len(values) > 1}
