"""Sweeps: what a failed and a finished job mean, and the comparison of all jobs at the end.

A sweep's folder holds one folder a job, named by the swept values, and report.html, jobs.csv, comparison.csv, .md, .png
and .svg.
Imports nothing heavy.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from functools import cache
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from texture_ad.cli.entry import in_sweep, note_folder
from texture_ad.cli.explain import explain, fail
from texture_ad.cli.naming import key_of, swept
from texture_ad.cli.settings import check_same
from texture_ad.errors import UserError
from texture_ad.evaluation.spread import Spread, mean_ranks, spread
from texture_ad.reporting.metrics import COMPARED
from texture_ad.reporting.tables import cell, markdown_table, mean_and_deviation
from texture_ad.training.run_folder import check_fingerprint, read_metrics

NOTE = (
    "Mean ± sample standard deviation over seeds. Times and memory are those of a run that shares nothing; of "
    "a job that was killed and resumed, the training time is not known, and the memory is that of its last part."
)

RANK = "mean rank"
OBJECTIVE = "synthetic_auroc"  # what a search maximises: it needs no label
DATA = (
    "experiment",
    "data.category",
    "data.root",
)  # keys whose values are textures, over which a setting has a mean and a rank


def finished(folder: Path, config: DictConfig) -> bool:
    """Return whether the job of this folder has nothing left to do.

    Raises:
        UserError: it was run with other settings.
    """
    if not (folder / "metrics.json").is_file():
        return False
    check_same(folder, config)
    return True


def check_images(folder: Path, config: DictConfig) -> None:
    """Check that the images of a finished job are those that its folder was made from.

    Raises:
        UserError: they changed.
    """
    check_fingerprint(folder, _fingerprint(json.dumps(OmegaConf.to_container(config.data, resolve=True))))


@cache
def _fingerprint(settings: str) -> str:
    """Return the fingerprint of the images of a group data, as JSON; once for all jobs that have the same."""
    from texture_ad.pipeline import make

    data = make("data", json.loads(settings) | {"cache_mb": 0})
    data.setup()
    return data.fingerprint


def read_jobs(folder: Path, overrides: Sequence[str]) -> list[dict]:
    """Return a sweep's jobs, by the names of their folders.

    Args:
        folder: the sweep's.
        overrides: the sweep's, each "key=value".

    Returns:
        For each job `folder`, `swept` (key to value), its whole `setting` (overrides but the seed), `metrics` (empty
        where it is not finished), when it was `finished` (nanoseconds), `error`, and when it `failed` (seconds).
    """
    jobs = []
    for told in sorted(folder.glob("*/hydra/overrides.yaml")):
        job_folder = told.parents[1]
        own = [str(o) for o in OmegaConf.load(told)]
        values = {key_of(o): o.partition("=")[2] for o in swept(overrides, own)}
        error = job_folder / "error.txt"
        metrics = job_folder / "metrics.json"
        jobs.append(
            {
                "folder": job_folder,
                "swept": values,
                "setting": frozenset(o for o in own if key_of(o) != "seed"),
                # Those of a run with other settings, where this job was refused.
                "metrics": {} if error.is_file() else read_metrics(job_folder),
                "finished": metrics.stat().st_mtime_ns if metrics.is_file() else 0,
                "error": error.read_text("utf-8").partition("\n")[0] if error.is_file() else None,
                "failed": error.stat().st_mtime if error.is_file() else 0.0,
            }
        )
    return jobs


def compare(jobs: Sequence[dict]) -> tuple[list[str], list[dict]]:
    """Bring the seeds of each setting together.

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
        for name in COMPARED:
            if job["metrics"].get(name) is not None:
                row.setdefault(name, []).append(job["metrics"][name])
    return keys, sorted(settings.values(), key=lambda row: [_order(row[key]) for key in keys])


def distinct(jobs: Sequence[dict]) -> list[dict]:
    """Return the jobs, of finished ones that repeat a setting and its seed the last to finish."""
    found = {}
    for job in sorted(jobs, key=lambda job: job["finished"]):
        metrics = job["metrics"]
        found[(job["setting"], metrics["data_fingerprint"], metrics["seed"]) if metrics else job["folder"]] = job
    return sorted(found.values(), key=lambda job: job["folder"])


def means_over_textures(keys: Sequence[str], settings: Sequence[dict]) -> list[dict]:
    """Return a row for each setting that was run on several textures: its means over them, and its mean rank.

    Only textures on which every setting was run count. Each weighs the same, however many seeds it has. Rank 1 has the
    highest image AUROC; equal ones share the mean of their ranks.

    Args:
        keys: from `compare`.
        settings: from `compare`.
    """
    textures = [key for key in keys if key in DATA]
    others = [key for key in keys if key not in DATA]
    groups: dict[tuple, dict[tuple, dict]] = {}
    for row in settings:
        texture = (*(row[key] for key in textures), row["data"])
        groups.setdefault(tuple(row[key] for key in others), {})[texture] = row
    complete = [t for t in next(iter(groups.values()), {}) if all(t in group for group in groups.values())]
    if not textures or len(complete) < 2:
        return []
    rows = []
    for setting, group in groups.items():
        means = {
            name: [fmean(fmean(group[t][name]) for t in complete)]
            for name in COMPARED
            if all(name in group[t] for t in complete)
        }
        about = {key: f"mean of {len(complete)}" for key in textures} | {"data": f"{len(complete)} textures"}
        rows.append(dict(zip(others, setting, strict=True)) | about | means)
    aurocs = [[fmean(group[t].get("image_auroc", [nan])) for group in groups.values()] for t in complete]
    for row, rank in zip(rows, mean_ranks(aurocs), strict=True):
        row[RANK] = None if isnan(rank) else rank
    return rows


def best_setting(keys: Sequence[str], settings: Sequence[dict]) -> list[str]:
    """Return a line that names the setting of the highest OBJECTIVE, over all textures where there are several.

    Settings on different images are not compared.
    """
    textures = any(key in DATA for key in keys)
    rows = [row for row in settings if OBJECTIVE in row and (RANK in row or not textures)]
    if len(rows) < 2 or len({row["data"] for row in rows}) > 1:
        return []
    best = max(rows, key=lambda row: fmean(row[OBJECTIVE]))
    setting = ", ".join(f"{key}={best[key]}" for key in keys if key not in DATA)
    value = fmean(best[OBJECTIVE])
    alike = sum(fmean(row[OBJECTIVE]) == value for row in rows)
    return [
        f"Best: {setting}{f', first of {alike} alike' if alike > 1 else ''}, by its {COMPARED[OBJECTIVE].title} "
        f"{value:.3f}. That needs no label: no test metric chose it."
    ]


def _order(value: str | None) -> tuple:
    try:
        return 0, float(value or ""), ""
    except ValueError:
        return 1, 0.0, str(value)


def write_comparison(folder: Path, jobs: Sequence[dict]) -> str:
    """Write jobs.csv, report.html and the comparison as CSV, Markdown and chart; return the Markdown table.

    Args:
        folder: of the sweep.
        jobs: from `read_jobs`.
    """
    from texture_ad.files import csv_text, write_atomic, write_text
    from texture_ad.reporting.charts import comparison

    counted = distinct(jobs)
    keys, settings = compare(counted)
    settings = settings + means_over_textures(keys, settings)
    names = [name for name in COMPARED if any(job["metrics"].get(name) is not None for job in jobs)]
    spreads = [{name: spread(row[name]) for name in names if name in row} for row in settings]
    lines = [_markdown_row(keys, row) for row in settings]
    text = markdown_table(lines) if lines else "No job has finished."
    remarks = best_setting(keys, settings)
    repeated = len(jobs) - len(counted)
    if repeated:
        remarks.append(f"{repeated} jobs repeat the setting and seed of one that finished later, which alone counts.")
    pruned = sum("pruned_epoch" in job["metrics"] for job in jobs)
    if pruned:
        remarks.append(
            f"{pruned} of {len(jobs)} trials {'was' if pruned == 1 else 'were'} pruned, so trained for less."
        )
    remarks += [f"Failed: {job['folder'].name}: {job['error']}" for job in jobs if job["error"]]
    write_atomic(folder / "jobs.csv", csv_text(_job_rows(jobs, names)))
    write_atomic(folder / "comparison.csv", csv_text(_comparison_rows(keys, settings, spreads, names)))
    write_text(folder / "comparison.md", "\n\n".join([text, NOTE, *remarks]) + "\n")
    if settings:
        drawn = [row | found for row, found in zip(settings, spreads, strict=True) if RANK not in row]
        comparison(keys, drawn, folder / "comparison.png")
    _write_report(folder, jobs, keys, settings, spreads, remarks)
    return text


def _job_rows(jobs: Sequence[dict], names: Sequence[str]) -> list[tuple]:
    """Return jobs.csv: the swept values and the metrics of every job."""
    columns = list(dict.fromkeys(key for job in jobs for key in job["swept"]))
    rows: list[tuple] = [(*columns, *names, "data", "error", "folder")]
    for job in jobs:
        swept_values = (job["swept"].get(column) for column in columns)
        values = (job["metrics"].get(name) for name in names)
        about = (job["metrics"].get("data_source"), job["error"], job["folder"].name)
        rows.append((*swept_values, *values, *about))
    return rows


def _comparison_rows(
    keys: Sequence[str], settings: Sequence[dict], spreads: Sequence[dict[str, Spread]], names: Sequence[str]
) -> list[tuple]:
    """Return comparison.csv: mean, standard deviation and number of runs of every metric of each setting."""
    ranked = [RANK] if any(RANK in row for row in settings) else []
    parts = (f"{name}_{part}" for name in names for part in ("mean", "std", "runs"))
    rows: list[tuple] = [(*keys, "data", *parts, *ranked)]
    for row, found in zip(settings, spreads, strict=True):
        numbers = (part for name in names for part in found.get(name, ("", None, 0)))
        rows.append((*(row[key] for key in keys), row["data"], *numbers, *(row.get(key, "") for key in ranked)))
    return rows


def _texts(row: dict) -> dict[str, str]:
    """Return a metric's name to its mean and deviation as text, of one setting."""
    return {
        name: mean_and_deviation([about.scale * value for value in row[name]], about.digits)
        for name, about in COMPARED.items()
        if name in row
    }


def _markdown_row(keys: Sequence[str], row: dict) -> dict[str, object]:
    texts = {COMPARED[name].heading: text for name, text in _texts(row).items()}
    rank = {RANK: row[RANK]} if RANK in row else {}
    return {key: row[key] for key in keys} | texts | rank | {"runs": _runs(row), "data": row["data"]}


def _runs(row: dict) -> int:
    return max((len(row[name]) for name in COMPARED if name in row), default=0)


def _write_report(
    folder: Path,
    jobs: Sequence[dict],
    keys: Sequence[str],
    settings: Sequence[dict],
    spreads: Sequence[dict[str, Spread]],
    remarks: Sequence[str],
) -> None:
    """Write the sweep's report.html, with remarks below its table."""
    from texture_ad.reporting.report import Cell, sweep_report

    rows = []
    for row, found in zip(settings, spreads, strict=True):
        cells = {key: Cell(cell(row[key]), row[key] or "") for key in keys}
        cells |= {COMPARED[name].heading: Cell(text, found[name].mean) for name, text in _texts(row).items()}
        if RANK in row:
            cells[RANK] = Cell(cell(row[RANK]), row[RANK] or "")
        runs = _runs(row)
        rows.append(cells | {"runs": Cell(str(runs), runs), "data": Cell(row["data"], row["data"])})
    plots = [folder / "comparison.png"] if settings else []
    sources = "; ".join(dict.fromkeys(row["data"] for row in settings))
    reports = {job["folder"].name: job["folder"] / "report.html" for job in jobs}
    told = [f"{sum(bool(job['metrics']) for job in jobs)} of {len(jobs)} jobs have finished.", NOTE, *remarks]
    sweep_report(folder, rows, plots, sources, {name: path for name, path in reports.items() if path.is_file()}, told)


def is_search(sweeper: DictConfig) -> bool:
    """Return whether a sweep with these settings of its sweeper is a search by Optuna."""
    return "optuna" in sweeper._target_


class Comparison(Callback):
    """Report each job's failure and, at the end, compare all jobs; called by Hydra, also before a single run."""

    before = 0
    begun = 0.0

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Note the run's folder, which Hydra makes next, where it is there already."""
        folder = OmegaConf.select(config, "hydra.run.dir", throw_on_resolution_failure=False)  # which Hydra tells
        note_folder(str(folder))

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Count the jobs that have finished before, and resume a search; exit with an error where it can't be."""
        folder = Path(config.hydra.sweep.dir)
        _fingerprint.cache_clear()
        self.begun = time.time()
        self.before = len(list(folder.glob("*/metrics.json")))
        if not is_search(config.hydra.sweeper):
            return
        logging.getLogger("alembic").setLevel(logging.WARNING)  # which tells of its plug-ins as it is imported
        try:
            from texture_ad.cli.search import check_direction, check_params, check_shared, resume

            check_direction(config.hydra.sweeper)
            check_params(config.hydra.sweeper, config.hydra.overrides.task)
            if config.pruning:
                check_shared(config.hydra.sweeper)
            if config.hydra.sweeper.storage and config.hydra.sweeper.study_name:  # without a name each is a new one
                folder.mkdir(parents=True, exist_ok=True)  # the study's, as a rule
                resume(config.hydra.sweeper)
        except Exception as error:
            _stop(error)

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        """Forget the job's earlier failure, and note what it is of, unless a run before it has."""
        if not in_sweep():
            return
        folder = Path(config.hydra.runtime.output_dir)
        (folder / "error.txt").unlink(missing_ok=True)
        told = folder / "hydra" / "overrides.yaml"
        if not told.is_file():
            told.parent.mkdir(parents=True, exist_ok=True)
            told.write_text(OmegaConf.to_yaml(config.hydra.overrides.task), "utf-8")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        """Report the job's failure; the other jobs continue."""
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
        """Compare the jobs; exit with an error where some failed."""
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
            failed = [job for job in jobs if job["failed"] >= self.begun]  # not those of an earlier command
            for job in failed:
                print(f"failed   {job['folder']}: {job['error']}", file=sys.stderr)
            if failed:
                raise UserError(f"{len(failed)} of {len(jobs)} jobs failed; the same command does what is missing")
        except Exception as error:
            _stop(error)


def _stop(error: Exception) -> NoReturn:
    """Exit with an error that a callback met: Hydra would make a warning of it, and exit with 0."""
    fail(error)
    traceback.print_exception(error)
    sys.exit(1)


def _mixed(jobs: Sequence[dict]) -> dict[str, list[str]]:
    """Return what should be the same in all jobs and is not: versions, and the images of one data source.

    Images that the seed or a swept setting chooses are compared among the jobs that have it in common.
    """
    found: dict[str, dict[str, None]] = {}
    images: dict[tuple, dict[str, None]] = {}
    for job in jobs:
        for package, version in job["metrics"].get("versions", {}).items():
            found.setdefault(f"versions of {package}", {})[str(version)] = None
        if metrics := job["metrics"]:
            chosen = [(key, value) for key, value in job["swept"].items() if key.startswith("data.")]
            seed = metrics["seed"] if metrics.get("test_images_drawn") else None
            same = images.setdefault((metrics["data_source"], seed, *sorted(chosen)), {})
            same[metrics["data_fingerprint"]] = None
    found |= {f"images of {source}": values for (source, *_), values in images.items() if len(values) > 1}
    return {what: list(values) for what, values in found.items() if len(values) > 1}
