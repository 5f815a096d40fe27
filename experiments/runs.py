"""Many runs by the real command line: in parallel, each in a folder of its own, none of them twice.

A run is finished when its folder holds `finished.json`, which is written after everything else.
"""

import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from texture_ad.cli.compose import compose
from texture_ad.cli.conf import choices_of
from texture_ad.cli.entry import known_keys
from texture_ad.cli.explain import explain, fail
from texture_ad.cli.naming import data_name, key_of
from texture_ad.cli.quoting import quote_paths
from texture_ad.cli.sweep import check_images
from texture_ad.data.embedded import TEXTURES
from texture_ad.errors import UserError, did_you_mean
from texture_ad.files import atomic_path, write_text
from texture_ad.reporting.tables import markdown_table
from texture_ad.training.run_folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from texture_ad.data.datamodule import TextureDataModule
    from texture_ad.data.layouts.samples import Sample
    from texture_ad.methods.fusion.detector import FusionDetector
    from texture_ad.pipeline import Run

MVTEC = "MVTEC_AD_ROOT"  # environment variable of MVTec AD's folder
QUIET = ("pictures=false", "logger=none", "trainer.enable_progress_bar=false")
SHOWN = ("image_auroc", "pixel_auroc", "aupro")  # on a finished run's line
KEPT = ("data_source", "data_fingerprint", *SHOWN, "synthetic_auroc", "fit_seconds")  # in a table's JSON

Key = TypeVar("Key", bound=Hashable)
Metrics = dict[str, Any]  # what metrics.json holds; `fit_seconds` is None if the run was resumed


class Job(NamedTuple):
    """State a run that is to be made: its folder, the overrides of its configuration, and the program that makes it."""

    folder: Path
    overrides: list[str]
    module: str = "texture_ad.run"


@dataclass(frozen=True)
class Study:
    """Hold what a study's command line asks for; `study["seeds"]` is the list of values of its own key `seeds`.

    Attributes:
        own: the study's own keys, each with a list of values.
        overrides: all other pairs, for every run.
    """

    own: dict[str, list[str]]
    overrides: list[str]

    def __getitem__(self, key: str) -> list[str]:
        return self.own[key]

    def numbers(self, key: str, kind: type[int] | type[float] = int, least: float = 0) -> list[Any]:
        """Return the values of an own key as numbers.

        Raises:
            UserError: one is none, or too small.
        """
        try:
            found = [kind(value) for value in self[key]]
        except ValueError as error:
            raise UserError(f"{key}={','.join(self[key])}: expected numbers ({error})") from error
        if min(found, default=least) < least:
            raise UserError(f"{key}={','.join(self[key])}: expected numbers of at least {least:g}")
        return found

    def single(self, key: str) -> str:
        """Return the value of an own key that takes one.

        Raises:
            UserError: it has several.
        """
        if len(self[key]) != 1:
            raise UserError(f"{key}={','.join(self[key])}: expected one value")
        return self[key][0]

    def number(self, key: str, kind: type[int] | type[float] = int, least: float = 0) -> Any:
        """Return the value of an own key that takes one, as a number; raises what `single` and `numbers` do."""
        self.single(key)
        return self.numbers(key, kind, least)[0]

    def job(self, folder: Path, own: Sequence[str]) -> Job:
        """Return a run with the study's own overrides for it, and then those of the command line.

        Raises:
            UserError: the command line gives what the study sets itself: the run would be another than it is called.
        """
        keys = {"run_dir", *map(key_of, own)}
        for override in self.overrides:
            if key_of(override) in keys and override not in own:
                names = ", ".join(self.own)
                raise UserError(f"{override}: the study sets {key_of(override)} itself; its own keys are {names}")
        return Job(folder, [*own, *self.overrides])

    @property
    def root(self) -> Path:
        """Return the folder of the photographs.

        Raises:
            UserError: none is given.
        """
        if not (given := self.single("root")):
            raise UserError("root=: no folder is given; give root=FOLDER, as the script's first lines say")
        return Path(given).expanduser()

    @property
    def runs(self) -> Path:
        """Return the folder of the runs."""
        return Path(self.single("runs"))

    @property
    def output(self) -> Path:
        """Return the path of what is written, without its suffix."""
        return Path(self.single("output"))

    @property
    def workers(self) -> int:
        """Return how many runs are made at a time."""
        return int(self.number("workers", least=1))


def read_study(name: str, **own: Sequence[str]) -> Study:
    """Return what the command line asks for, whose keys `seeds`, `workers`, `runs` and `output` are the study's own.

    Args:
        name: of the study, and of what it writes.
        own: further own keys, or other defaults of those; see `read_keys`.

    Raises:
        UserError: an argument that is no pair, or a value of the common keys that can't be used.
    """
    common = {
        "seeds": ["0", "1", "2"],
        "workers": ["1"],
        "runs": [f"runs/experiments/{name}"],
        "output": [f"experiments/results/{name}"],
    }
    study = read_keys(common | own)
    # Asked for late, in part: before photographs are linked and runs are made.
    _ = study.numbers("seeds"), study.workers, study.runs, study.output
    return study


def read_keys(own: Mapping[str, Sequence[str]]) -> Study:
    """Return what the command line asks for, in pairs key=value.

    Args:
        own: the study's own keys with their defaults. Values are split at commas.

    Returns:
        The study. Where it has no `root` of its own, the root in MVTEC_AD_ROOT is one of the overrides, so that a
        finished run is not taken for one on other data.

    Raises:
        UserError: an argument that is no pair, or whose key neither the study nor a run has.
    """
    found = {key: list(values) for key, values in own.items()}
    overrides = []
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: expected key=value; own keys are {', '.join(found)}, others go to every run")
        if key in found:
            found[key] = value.split(",")
        else:
            _check_key(key_of(argument), list(found))
            overrides.append(argument)
    given = any(override.startswith(("data=", "data.root=")) for override in overrides)
    if MVTEC in os.environ and "root" not in found and not given:
        overrides.append(f"data.root={os.environ[MVTEC]}")
    return Study(found, overrides)


def _check_key(key: str, own: Sequence[str]) -> None:
    """Check that a run has a key that is none of the study's own; those below a group are left to each run.

    Raises:
        UserError: it has not. A run would say so too, but knows no key of the study's that may be meant.
    """
    known = known_keys("config")
    if key.isidentifier() and key not in known and not choices_of(key):
        meant = did_you_mean(key, [*own, *known])
        keys = f"the study's own keys are {', '.join(own)}, those of every run {', '.join(sorted(known))}"
        raise UserError(f"{key}: no such key; {meant}{keys}")


def read_photograph_study(name: str, **own: Sequence[str]) -> Study:
    """Return `read_study`, where a data.root without a `data` is a folder of photographs, unless it is MVTec AD's.

    Args:
        name: of the study.
        own: further own keys.

    Raises:
        UserError: an argument that is no pair.
    """
    study = read_study(name, **own)
    given = dict(override.split("=", 1) for override in study.overrides)
    photographs = "data.root" in given and given["data.root"] != os.environ.get(MVTEC)
    return Study(study.own, [*study.overrides, "data=folder"]) if photographs and "data" not in given else study


def data_of_overrides(overrides: Sequence[str]) -> str:
    """Return the part of a run folder's name that tells the data."""
    given = dict(override.split("=", 1) for override in overrides)
    root = given.get("data.root")
    category = given.get("data.category", None if root else "carpet")
    return data_name(given.get("data", "auto"), root, category, given.get("data.table"))


def run_once(job: Job) -> Metrics:
    """Make one run in a process of its own, unless it is finished, and return its metrics.

    Raises:
        UserError: the folder holds a run with other overrides, or the run failed; the end of its log says why.
    """
    if not _is_finished(job):
        _call(job)
        write_text(job.folder / "finished.json", json.dumps({"overrides": job.overrides}))
    return read_metrics(job.folder)


def _is_finished(job: Job) -> bool:
    """Return whether a run has been made.

    Raises:
        UserError: its folder holds a run with other overrides.
    """
    made = _made_with(job)
    if made not in (None, job.overrides):
        raise UserError(f"{job.folder}: holds a run with other overrides; give another folder by runs=FOLDER")
    return made is not None


def _made_with(job: Job) -> list[str] | None:
    """Return the overrides of the finished run in a run's folder, None where there is none."""
    finished = job.folder / "finished.json"
    return json.loads(finished.read_text(encoding="utf-8"))["overrides"] if finished.is_file() else None


def _call(job: Job) -> None:
    """Make a run by the command line, its output in log.txt."""
    job.folder.mkdir(parents=True, exist_ok=True)
    call = [sys.executable, "-m", job.module, f"run_dir={job.folder}", *QUIET, *job.overrides]
    path = job.folder / "log.txt"
    with open(path, "wb") as log:
        code = subprocess.run(call, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"{job.folder}: {lines[-1] if lines else f'exit code {code}'}; the rest is in its log.txt")


def read_run(job: Job) -> Metrics | None:
    """Return the metrics of a finished run, None where its folder holds none or one with other overrides."""
    return read_metrics(job.folder) if _made_with(job) == job.overrides else None


def check_overrides(jobs: Iterable[Job]) -> None:
    """Check that a configuration can be composed of the overrides of each run.

    Raises:
        UserError: one can't, which every run would tell one after the other; in the line that a single run has for it.
    """
    # What runs have in common is composed once; a study has read its seeds.
    for overrides in dict.fromkeys(tuple(o for o in job.overrides if key_of(o) != "seed") for job in jobs):
        try:
            compose(quote_paths(list(overrides)))
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            raise UserError(line) from error


def grouped(rows: Iterable[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Return dicts by the values that they have under some keys, in the order of their first appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def kept_runs(jobs: Mapping[tuple, Job], names: Sequence[str], more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what a table's JSON keeps of each finished run.

    Args:
        jobs: by what tells a run from the others.
        names: of the parts of that.
        more: metrics beside KEPT.
    """
    return [
        dict(zip(names, key, strict=True)) | {metric: found.get(metric) for metric in (*KEPT, *more)}
        for key, job in jobs.items()
        if (found := read_run(job))
    ]


def read_scores(folder: Path) -> list[dict[str, str]]:
    """Return a row for each test image of a run, as its scores.csv has it."""
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_of(folder: Path) -> "Run":
    """Return a run as its folder's settings make it."""
    from omegaconf import DictConfig, OmegaConf

    from texture_ad.pipeline import Run

    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)  # as every run writes it
    return Run(config, folder)


def data_of(folder: Path) -> "TextureDataModule":
    """Return the data of a run, set up."""
    data: TextureDataModule = run_of(folder).make("data")
    data.setup()
    return data


def load_fusion(folder: Path, device: str = "cpu") -> "FusionDetector":
    """Return the detector of a run of the fusion.

    Raises:
        UserError: the run is of another method.
    """
    from texture_ad.methods.fusion.detector import FusionDetector
    from texture_ad.methods.registry import load

    detector = load(folder / "detector.pt", device)
    if not isinstance(detector, FusionDetector):
        raise UserError(f"{folder}: holds a detector of method={detector.name}; this experiment is of method=fusion")
    return detector


def link_all(files: Mapping[Path, Path], folder: Path) -> None:
    """Link files from their places below a folder, which holds no other links; those that are there stay.

    Raises:
        UserError: it holds links to other files, which runs have been made from.
    """
    there = {place for place in folder.rglob("*") if place.is_symlink()}
    for place in there:
        if place not in files or os.readlink(place) != str(files[place].resolve()):
            raise UserError(f"{folder}: links other photographs than are drawn now; give another folder by runs=FOLDER")
    for place in files.keys() - there:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(files[place].resolve(), place)


def draw(samples: "Sequence[Sample]", count: int, seed: int) -> "tuple[list[Sample], list[Sample]]":
    """Return `count` photographs drawn at random, and the others, both in their order."""
    import numpy as np

    ranks = np.random.default_rng(seed).permutation(len(samples))
    drawn = [sample for sample, rank in zip(samples, ranks, strict=True) if rank < count]
    return drawn, [sample for sample, rank in zip(samples, ranks, strict=True) if rank >= count]


def link_samples(samples: "Iterable[Sample]", texture: Path, folder: Path) -> None:
    """Link photographs of a texture and their masks from a folder, as they lie in the texture; see `link_all`."""
    paths = [path for sample in samples for path in (sample.path, sample.mask) if path]
    link_all({folder / path.relative_to(texture): path for path in paths}, folder)


def run_all(jobs: Mapping[Key, Job], workers: int, done: Callable[[], object] = lambda: None) -> dict[Key, Metrics]:
    """Make all runs, print a line for each, and return their metrics.

    Args:
        jobs: the runs, by what tells each from the others.
        workers: how many run at a time.
        done: called after each run that is made now.

    Raises:
        UserError: before any runs, if an override can't be used, a folder holds a run with other overrides, or images
            changed since a run finished; after all others have run, if some failed: the first one's reason.
    """
    results = {key: read_metrics(job.folder) for key, job in jobs.items() if _is_finished(job)}
    missing = [key for key in jobs if key not in results]
    check_overrides(jobs[key] for key in missing)
    for key, found in results.items():
        if missing:  # else nothing new comes beside it, and its images may be gone
            check_images(jobs[key].folder, run_of(jobs[key].folder).config)
        print(_line(jobs[key], found), flush=True)
    failures: list[UserError] = []
    writing = threading.Lock()

    def one(key: Key) -> None:
        try:
            results[key] = run_once(jobs[key])
        except UserError as error:
            failures.append(error)
            print(f"failed   {error}", flush=True)
            return
        print(_line(jobs[key], results[key]), flush=True)
        with writing:  # one table is written by one thread at a time
            done()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, missing))
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} runs failed, first: {failures[0]}")
    return {key: results[key] for key in jobs}


def _line(job: Job, metrics: Metrics) -> str:
    """Return the line that is printed of a finished run."""
    shown = ", ".join(f"{key} {metrics[key]:.3f}" for key in SHOWN if metrics.get(key))
    return f"{metrics['data_source']}: {job.folder.name}: {shown}"


def write_table(output: Path, runs: list[dict], rows: list[dict], below: str = "") -> str:
    """Write a comparison of runs as JSON and as Markdown, and return the latter.

    Args:
        output: path without suffix.
        runs: one dict each, for the JSON.
        rows: of the Markdown table.
        below: text that stands below the table.
    """
    text = markdown_table(rows) + ("\n\n" + below.rstrip() if below else "")
    write_text(output.with_name(f"{output.name}.json"), json.dumps(runs, indent=1) + "\n")
    write_text(output.with_name(f"{output.name}.md"), text + "\n")
    return text


def save_chart(figure: "Figure", output: Path) -> None:
    """Write a chart as PNG beside a study's tables, whose path without suffix is `output`."""
    with atomic_path(output.with_name(f"{output.name}.png")) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def paper_job(study: Study, category: str, label: str, seed: int, options: Sequence[str]) -> Job:
    """Return a run of the paper's tables and figures, which they share.

    Args:
        study: whose folder all runs have.
        category: a texture.
        label: of the method with its options.
        seed: of the run.
        options: overrides that belong to the label.
    """
    folder = study.runs / f"{category}-{label}-seed{seed}"
    return study.job(folder, [f"data.category={category}", f"seed={seed}", *options])


def paper_table(name: str, methods: Mapping[str, tuple[list[str], Sequence[float]]]) -> None:
    """Write the image AUROC of methods on the five textures, beside what the paper printed.

    Args:
        name: of the output under experiments/results/.
        methods: for each column's name the overrides, and the paper's figures in the order of TEXTURES.

    Raises:
        UserError: a category of which the paper printed nothing.
    """
    study = read_study(name, categories=TEXTURES, runs=["runs/experiments/paper"])
    others = [category for category in study["categories"] if category not in TEXTURES]
    if others:
        raise UserError(f"categories={','.join(others)}: the paper has figures of {', '.join(TEXTURES)} alone")
    jobs = {
        (category, label, seed): paper_job(study, category, label, seed, options)
        for seed in study.numbers("seeds")
        for category in study["categories"]
        for label, (options, _) in methods.items()
    }
    run_all(jobs, study.workers)
    printed = {label: dict(zip(TEXTURES, figures, strict=True)) for label, (_, figures) in methods.items()}
    runs = kept_runs(jobs, ("category", "method", "seed"))
    print(write_table(study.output, runs, paper_rows(study["categories"], printed, runs)))


def paper_rows(
    categories: Sequence[str], printed: Mapping[str, Mapping[str, float]], runs: list[dict]
) -> list[dict[str, Any]]:
    """Return a row for each texture, then the means: of each method what the paper printed, and ours.

    Args:
        categories: the textures.
        printed: what the paper printed, by method and texture.
        runs: finished ones, of every texture and method.
    """
    rows = [_paper_row(category, printed, runs) for category in categories]
    values = {key: [row[key] for row in rows] for key in rows[0] if key not in ("category", "data")}
    means = {key: fmean(fmean(v) if isinstance(v, list) else v for v in column) for key, column in values.items()}
    return [*rows, {"category": f"mean of {len(rows)}"} | means]


def _paper_row(category: str, printed: Mapping[str, Mapping[str, float]], runs: list[dict]) -> dict:
    """Return the row of a texture: for each method what the paper printed, and ours as a list over the seeds."""
    row: dict = {"category": category}
    for label, figures in printed.items():
        ours = [run for run in runs if (run["category"], run["method"]) == (category, label)]
        row |= {f"{label}, paper": figures[category], label: [run["image_auroc"] for run in ours]}
        source = ours[0]["data_source"]
    return row | {"data": source}


def figure_run(name: str) -> tuple[Path, Metrics, Path]:
    """Make the run that a figure shows, by the command line.

    Args:
        name: of the picture under experiments/results/.

    Returns:
        The run's folder, its metrics, and the picture's path.
    """
    study = read_keys(
        {
            "category": ["carpet"],
            "seed": ["0"],
            "runs": ["runs/experiments/paper"],
            "output": [f"experiments/results/{name}.png"],
        }
    )
    job = paper_job(study, study.single("category"), "fusion", study.number("seed"), ["method=fusion"])
    return job.folder, run_once(job), study.output


def script(main: Callable[[], None]) -> None:
    """Run a script's main function; end bad input, and what can't be read or written, in one line and exit code 2."""
    try:
        main()
    except Exception as error:
        fail(error, resumes=False)
        raise
