"""One experiment, from configuration to results, in five steps: read this page first.

`run` prepares the data, fits the detector, calibrates it on normal images that it has not learnt, evaluates it on the
test images and reports. Each step is a function below; what they share is a `Run`. The images that calibrate are held
out of the fit; where there are few, all are fitted and all calibrate: `cross_fit`.
"""

import inspect
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import lightning as L
import torch
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.drift import brightness, training_statistics
from texture_ad.data.geometry import Shape
from texture_ad.data.images import header
from texture_ad.data.layouts import Sample, copies, listed
from texture_ad.environment import available_memory, versions
from texture_ad.errors import DivergenceError, ParameterError, UserError, did_you_mean
from texture_ad.evaluation.calibration import FalseAlarmRate, images_needed
from texture_ad.evaluation.embedding import embed
from texture_ad.evaluation.metrics import Predictions, image_metrics, prediction_metrics
from texture_ad.files import csv_text, write_atomic, write_text
from texture_ad.methods.base import AnomalyDetector, Measurement, Provenance
from texture_ad.methods.evaluation import Evaluation
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.explain import atom_crops, sample_features
from texture_ad.methods.registry import method_class
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import NonNegativeInt, Range, check, takes_text
from texture_ad.reporting import charts, panels
from texture_ad.reporting.cards import Card, Facts, data_card, markdown, model_card
from texture_ad.reporting.loggers import log_results, log_settings, open_loggers
from texture_ad.reporting.results import write_results
from texture_ad.reporting.tables import metrics_table
from texture_ad.training.cache import Cache, digest
from texture_ad.training.checkpoints import AtomicCheckpoints
from texture_ad.training.distributed import check_processes, gather, is_rank_zero
from texture_ad.training.resources import collect_garbage, compute_in_float32, peak_memory, reset_peak_memory
from texture_ad.training.run_folder import check_fingerprint, holds_run, prepared_folder, read_metrics

if TYPE_CHECKING:
    from optuna.trial import Trial

MUCH = 2**30  # bytes of statistics from which on they are told beforehand
MOMENT_TILES = 400  # training tiles, at most, that teach a detector the moments of tiles


def make(group: str, options: Mapping[str, Any], **arguments: Any) -> Any:
    """Return the object that a group of the configuration describes; raises what `factory` and its call do."""
    return factory(group, options, **arguments)()


def factory(group: str, options: Mapping[str, Any], **arguments: Any) -> Callable[[], Any]:
    """Return what makes the object that a group describes; a number for what takes a text is one.

    Args:
        group: its name, for errors.
        options: the group; its `_target_` is called with its other keys.
        arguments: beside those.

    Raises:
        ParameterError: a target that can't be imported, a key that it doesn't have or that is given twice; in the
            call, a value out of its range.
        UserError: a key that it needs is not there.
    """
    options = dict(options)
    path = options.pop("_target_")
    try:
        target = get_object(path)
    except Exception as error:  # a module of the user's own may raise anything
        raise ParameterError(f"{group}._target_", path, f"can't be imported ({error.__cause__ or error})") from error
    known = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for name in options.keys() - known.keys():
            others = [parameter for parameter in known if parameter not in arguments]
            problem = f"no such parameter; {did_you_mean(name, others)}expected one of {', '.join(others)}"
            raise ParameterError(f"{group}.{name}", options[name], problem)
    for name in options.keys() & arguments.keys():
        problem = "is made by the run itself; leave it out"
        if isinstance(arguments[name], str | int | float):  # a setting of another group
            problem = f"{arguments[name]} is given for it elsewhere; give one of the two"
        raise ParameterError(f"{group}.{name}", options[name], problem)
    for name, parameter in known.items():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and name not in options and name not in arguments:
            raise UserError(f"{group}.{name}: not configured, and {path} needs it; give +{group}.{name}=VALUE")
        if takes_text(parameter.annotation) and isinstance(options.get(name), int | float):
            options[name] = str(options[name])  # a command line's 2024 is a number

    def call() -> Any:
        try:
            return target(**options, **arguments)
        except (ParameterError, DivergenceError) as error:
            raise error.within(group) from error

    return call


Measured = list[tuple[Measurement, Shape]]  # by `AnomalyDetector.measure_all`


class HeldOut(NamedTuple):
    """Hold what was measured of normal images, each by a detector that was fitted without its fold.

    Attributes:
        normal: of the images as they are.
        damaged: of the same images with synthetic defects.
    """

    normal: Measured
    damaged: Measured


@dataclass
class Run:
    """Hold what the steps of one experiment share; a method's `fit` sees it as `Fitting`.

    Attributes:
        config: composed by Hydra.
        folder: of the run.
        command: for the shell, repeats the run.
        cache: shared between runs, None for none.
        stage1_settings: full key to value of the settings that stage 1 depends on.
        in_sweep: whether the run is one job of a sweep.
        trial: of a search, whose training may be pruned, None for none.
        data: set up by the first step.
        folds: of the normal images, each of which one fit more is to hold out; none where the data's own calibration
            images are held out.
        stage1_epochs: how many epochs of stage 1 are to be trained, None where calibration images tell.
        loggers: open ones.
        metrics: what metrics.json will hold.
        copies: how many test images are copies of training images.
        resumed: whether the folder held a run already.
    """

    config: DictConfig
    folder: Path
    command: str = ""
    cache: Cache | None = None
    stage1_settings: Mapping[str, object] = field(default_factory=dict)
    in_sweep: bool = False
    trial: "Trial | None" = None
    data: TextureDataModule = field(init=False)
    folds: list[list[Sample]] = field(default_factory=list)
    stage1_epochs: int | None = None
    loggers: list[Logger] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    copies: int = 0
    resumed: bool = False

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.config.seed

    def options(self, group: str) -> dict[str, Any]:
        """Return a group of the configuration as plain values."""
        return OmegaConf.to_container(self.config[group], resolve=True)  # type: ignore[return-value]

    def make(self, part: str, **arguments: Any) -> Any:
        """Return the object that the group `part` describes; see `make`."""
        return make(part, self.options(part), **arguments)

    def logger_factories(self) -> list[Callable[[], Logger]]:
        """Return what makes each logger, and may open its run; raises what `factory` does."""
        chosen = self.options("logger") if "logger" in self.config else {}  # logger=[] leaves no such key
        return [factory(f"logger.{name}", options) for name, options in chosen.items()]

    def pretrained_backbone(self) -> Backbone | None:
        """Return the backbone as it was before stage 1, None where it had no weights."""
        return None if self.config.backbone.weights == "none" else self.make("backbone")

    def trainer(self, stage: str, callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
        """Return a trainer whose checkpoints lie in the stage's folder.

        Args:
            stage: "stage1", "stage2" or "test".
            callbacks: of the stage.
            options: instead of, or beside, those of the group `trainer`.
        """
        trainer = make(
            "trainer",
            self.options("trainer") | options,
            folder=self.folder / stage,
            seed=self.seed,
            loggers=self.loggers,
            callbacks=callbacks,
        )
        check_processes(trainer, self.config.trainer.strategy, self.in_sweep)
        name = self.config.method.name
        if trainer.world_size > 1 and not method_class(name).several_processes:
            raise ParameterError("method", name, "fitted by one process alone; use trainer.devices=1")
        return trainer

    def clock(self) -> float:
        """Return seconds, as if this run made everything that it found in the cache."""
        return self.cache.clock() if self.cache else time.perf_counter()

    def get_or_create_stage1(self, state: Mapping[str, Tensor], create: Callable[[], dict]) -> dict:
        """Return stage 1's result for the untrained modules' `state`, from the cache where it is there."""
        if self.cache is None or self.trial is not None:  # pruned, it is no other run's
            return create()
        address = digest("stage 1", self.stage1_settings, self.stage1_epochs, state, self.data.fingerprint)
        return self.cache.get_or_create(f"stage1-{address}", create)


def run(run: Run) -> None:
    """Run one experiment and fill its run folder.

    Times and peaks of memory are those of a run that shares nothing, also where it finds stage 1 in the cache. One that
    is resumed does not know what its fit took: None, or what the finished run in its folder took.

    Raises:
        UserError: input that can't be worked with.
    """
    reset_peak_memory()
    check_settings(run.config)
    run.resumed = holds_run(run.folder)
    factories = run.logger_factories()
    folder = prepared_folder(run.folder) if is_rank_zero() else nullcontext()
    with folder, open_loggers(factories) as run.loggers:
        prepare_data(run)
        held_out = cross_fit(run) if run.folds else None
        detector = fit(run)
        calibrate(run, detector, held_out)
        predictions = evaluate(run, detector)
        if is_rank_zero():
            report(run, detector, predictions)


def check_settings(config: DictConfig) -> None:
    """Check the settings that belong to no group.

    Raises:
        ParameterError: one is out of its range, or doesn't go with another.
    """
    check("seed", config.seed, Annotated[int, Range(0, 2**32 - 1)])
    for name in ("false_alarm_rate", "pixel_false_alarm_rate"):
        check(name, config[name], FalseAlarmRate)
    check("examples", config.examples, NonNegativeInt)
    check("pictures", config.pictures, bool)
    if config.cross_fit != "auto" and not isinstance(config.cross_fit, bool):
        raise ParameterError("cross_fit", config.cross_fit, "expected auto, true or false")
    if config.cross_fit is True and config.get("pruning"):
        raise ParameterError("cross_fit", True, "trials are pruned by held-out images; use false, or pruning=none")


def prepare_data(run: Run) -> None:
    """Find and split the images, and record what is known of the run before it starts (step 1)."""
    run.data = run.make("data", augmentation=run.make("augmentation"))
    try:
        run.data.setup()
    except ParameterError as error:
        raise error.within("data") from error.__cause__
    check_fingerprint(run.folder, run.data.fingerprint)
    if cross_fits(run.config, run.data):
        run.folds = run.data.folds()
        run.data = run.data.with_calibration([])
        run.stage1_settings = {**run.stage1_settings, "fold": "none"}
    data = run.data
    pixels = "{1} x {0} px".format(*data.geometry.size)
    tiles = f" ({data.num_originals} tiles)" if data.geometry.tiled else ""
    layout = f", layout {data.layout.name}" if data.source == "folder" else ""
    print(
        f"data     {data.source_name}{layout}: {len(data.training_pictures)} training{tiles}, "
        f"{len(data.calibration_samples)} calibration, {len(data.test_samples)} test images, {pixels}"
    )
    if data.reading.levels is not None:
        print("levels   black is {:g}, white {:g} in images of more than 8 bits".format(*data.reading.levels))
    print(f"run      {run.folder}", flush=True)
    if run.folds:
        print(f"cross-fit {_cross_fit_told(run)}", flush=True)
    if is_rank_zero():
        for warning in data.warnings:
            print(f"warning: {warning}", flush=True)
        _warn_of_copies(run)
        write_text(run.folder / "config.yaml", OmegaConf.to_yaml(run.config, resolve=True))
    settings = OmegaConf.to_container(run.config, resolve=True)
    log_settings(run.loggers, {**settings, "data_source": data.source_name})  # type: ignore[dict-item]
    run.metrics |= {
        "method": run.config.method.name,
        "data_source": data.source_name,
        "category": data.category,
        "data_fingerprint": data.fingerprint,
        "test_images_drawn": data.draws_test,
        "seed": run.seed,
    }


def _cross_fit_told(run: Run) -> str:
    """Return how many normal images calibrate and what that takes, and with `cross_fit=auto` why."""
    told = f"all {len(run.data.normal_samples)} normal images train and calibrate, and "
    told += f"{len(run.folds)} more fits come first"
    if run.config.cross_fit != "auto":
        return told
    few = f"{len(run.folds[0])} held-out images are too few for the false-alarm rates"
    return f"{few}: {told}; cross_fit=false fits once, and promises less"


def _warn_of_copies(run: Run) -> None:
    tested = {sample.path for sample in run.data.layout.test}
    calibrating = {sample.path for fold in (run.data.calibration_samples, *run.folds) for sample in fold}
    found = []
    doubled = []
    for group in copies(sample.path for sample in run.data.layout.samples):
        normal = [path for path in group if path not in tested]
        doubled += [path for path in normal if path in calibrating and normal[1:]]
        found += [(normal[0], path) for path in group if normal and path in tested]
    if doubled:
        print(
            f"warning: {len(doubled)} calibration images are copies of each other or of training images: "
            f"{listed(doubled)}; more new images than promised will be above the threshold; remove the copies",
            flush=True,
        )
    run.copies = len(found)
    if found:
        train, test = found[0]
        print(
            f"warning: {len(found)} test images are copies of training images, all listed in copies.csv, such as "
            f"{test} of {train}; the metrics are too good",
            flush=True,
        )
        write_atomic(run.folder / "copies.csv", csv_text([("train", "test"), *found]))
    else:  # since the part of the run before it was resumed
        (run.folder / "copies.csv").unlink(missing_ok=True)


def fit(run: Run) -> AnomalyDetector:
    """Build and fit the detector (step 2)."""
    start = run.clock()
    L.seed_everything(run.seed, workers=True, verbose=False)
    detector = build(run)
    run.metrics |= detector.fit(run)
    if detector.geometry.tiled:
        _learn_tile_moments(run, detector)
    run.metrics["fit_seconds"] = run.metrics.get("fit_seconds", 0) + run.clock() - start
    return detector


def build(run: Run) -> AnomalyDetector:
    """Build the untrained detector, and say what its statistics will take where that is much.

    Raises:
        UserError: a setting that it can't have with these images, or more memory than there is.
    """
    compute_in_float32()
    detector = run.make("method", make=run.make, geometry=run.data.geometry)
    detector.reading = run.data.reading
    detector.roi = run.data.interest
    precision = run.config.trainer.precision
    if precision != "32-true" and not detector.mixed_precision:
        raise ParameterError("trainer.precision", precision, f"expected 32-true with method={detector.name}")
    _tell_memory(detector)
    return detector


def _tell_memory(detector: AnomalyDetector) -> None:
    """Say what statistics of single positions will take, where that is much.

    Raises:
        UserError: more than there is.
    """
    kept, most = detector.fit_memory()
    free = available_memory()
    line = (
        f"statistics of every position of {detector.geometry.size[1]} x {detector.geometry.size[0]} px take "
        f"{kept / 2**30:.1f} GiB in the detector and up to {most / 2**30:.1f} GiB while they are fitted"
    )
    if free is not None and most > free:
        raise UserError(
            f"{line}, {free / 2**30:.1f} GiB are free; use whitening.mode=global (method=fusion), a smaller data.size, "
            "or data.tile"
        )
    if most > MUCH:
        print(f"memory   {line}", flush=True)


def cross_fit(run: Run) -> HeldOut:
    """Measure every normal image by a detector that was fitted without its fold, before the one that is fitted to all.

    What one process measured stays in the run's folder, so that the same command again fits no fold twice.
    """
    start = run.clock()
    files = AtomicCheckpoints()
    alone = run.trainer("stage1").world_size == 1
    found: list[dict[str, Any]] = []
    for number, fold in enumerate(run.folds, 1):
        folder = run.folder / "folds" / str(number)
        path = folder.with_suffix(".pt")
        kept = files.load_checkpoint(path, map_location="cpu") if path.is_file() and alone else {}
        if "images" in kept:
            run.data.load_state_dict(kept["images"])
        else:
            print(f"fold     {number} of {len(run.folds)}: {len(fold)} of the normal images are held out", flush=True)
            kept = _measure_fold(run, number, fold, folder)
            collect_garbage()
            if alone:
                files.save_checkpoint(kept, path)
        if is_rank_zero():
            shutil.rmtree(folder, ignore_errors=True)  # a baseline has none
        found.append(kept)
    print(f"fit      on all {len(run.data.normal_samples)} normal images", flush=True)
    names = [name for name in found[0]["metrics"] if name == "stage1_epochs" or name.startswith("val_")]
    run.metrics |= {name: mean(kept["metrics"][name] for kept in found) for name in names}
    if "stage1_epochs" in names:
        run.metrics["stage1_epochs"] = run.stage1_epochs = round(run.metrics["stage1_epochs"])
    run.metrics["fit_seconds"] = run.clock() - start
    return HeldOut(*([one for kept in found for one in kept[name]] for name in HeldOut._fields))


def _measure_fold(run: Run, number: int, fold: list[Sample], folder: Path) -> dict[str, Any]:
    """Return what a file keeps of a detector that is fitted without a fold, in a folder of its own.

    That are the fields of `HeldOut` as plain values on the CPU, the fit's metrics, and of which images all this is.
    """
    other = replace(
        run,
        folder=folder,
        stage1_settings={**run.stage1_settings, "fold": number},
        folds=[],
        loggers=[],
        metrics={},
    )
    other.data = run.data.with_calibration(fold)
    detector = fit(other)
    loaders = {"normal": other.data.picture_dataloader(), "damaged": other.data.synthetic_dataloader()}
    plain = {
        name: [(tuple(one), tuple(size)) for one, size in _moved(_measure(detector, loader), "cpu")]
        for name, loader in loaders.items()
    }
    return {**plain, "metrics": other.metrics, "images": run.data.state_dict()}


@torch.no_grad()
def _measure(detector: AnomalyDetector, batches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Measurement, Shape]]:
    """Yield what a detector measures of the images of all batches."""
    for batch in batches:
        yield from detector.measure_all(batch["image"])


def _moved(
    measured: Iterable[tuple[Measurement, Shape]], device: torch.device | str
) -> Iterator[tuple[Measurement, Shape]]:
    """Yield measurements, or what a file keeps of them, on a device."""
    for one, size in measured:
        yield Measurement(*(None if value is None else value.to(device) for value in one)), size


@torch.no_grad()
def calibrate(run: Run, detector: AnomalyDetector, held_out: HeldOut | None = None) -> None:
    """Standardise the scores and set the threshold on normal images, then save the detector (step 3).

    Calibration images pass the backbone once. Beside synthetic defects they give the run's AUROC without a label.

    Args:
        run: the run.
        detector: fitted.
        held_out: what `cross_fit` measured, None where the run's own calibration images are to be measured.
    """
    start = run.clock()
    device = detector.device
    normal = _moved(held_out.normal, device) if held_out else _measure(detector, run.data.picture_dataloader())
    detector.calibrate_on(list(normal), run.config.false_alarm_rate, run.config.pixel_false_alarm_rate, gather)
    run.metrics["fit_seconds"] = run.metrics.get("fit_seconds", 0) + run.clock() - start
    if run.resumed:
        earlier = read_metrics(run.folder)
        run.metrics |= {key: earlier.get(key) for key in ("fit_seconds", "stage1_seconds") if key in run.metrics}
    damaged = _moved(held_out.damaged, device) if held_out else _measure(detector, run.data.synthetic_dataloader())
    defects = gather(torch.cat([detector.conclude(*one).scores for one in damaged]))
    scores = torch.cat((detector.calibration_scores, defects))
    labels = [0] * len(detector.calibration_scores) + [1] * len(defects)
    synthetic = image_metrics(scores.cpu().numpy(), labels, float(detector.threshold))
    detector.provenance = _provenance(run, device)
    detector.examples = _examples(run)
    decision = detector.decision()
    run.metrics |= {
        "synthetic_auroc": synthetic["image_auroc"],
        "threshold_origin": f"for a false-alarm rate of {run.config.false_alarm_rate:g}"
        + (", cross-fitted" if run.folds else ""),
        "threshold_promise": decision.promise()
        + ("; cross-fitted scores make the intervals too narrow" if run.folds else ""),
        "expected_false_alarms": decision.false_alarms._asdict(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    if is_rank_zero():
        detector.save(run.folder / "detector.pt")


def _learn_tile_moments(run: Run, detector: AnomalyDetector) -> None:
    """Teach a detector the moments of its tiles by training images.

    Not by calibration images: these would look more normal to it than images to come.
    """
    generator = torch.Generator().manual_seed(run.seed)
    numbers = torch.randperm(run.data.num_originals, generator=generator)[:MOMENT_TILES]
    tiles = (batch["image"].to(detector.device) for batch in run.data.chosen_dataloader(numbers.tolist()))
    measured = [parts for batch in tiles if (parts := detector.measure(batch).parts) is not None]
    if measured:
        detector.learn_tile_moments(measured)


def _examples(run: Run) -> Tensor:
    """Return normal images that the detector's file keeps, held out where some are, uint8 (n, 3, H, W)."""
    count, data = run.config.examples, run.data
    if run.folds:  # behind the originals come their changed copies
        numbers = range(min(count, data.num_originals))
        batches = data.chosen_dataloader(numbers)
    else:
        batches = data.calibration_dataloader()
    kept = list(islice((image for batch in batches for image in batch["image"]), count))
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.uint8)


def _provenance(run: Run, device: torch.device) -> Provenance:
    data = run.data
    grey = [gather(brightness(images.to(device))).cpu() for images in data.training_views()]
    return Provenance(
        data_source=data.source_name,
        category=data.category,
        data_fingerprint=data.fingerprint,
        seed=run.seed,
        false_alarm_rate=float(run.config.false_alarm_rate),
        pixel_false_alarm_rate=float(run.config.pixel_false_alarm_rate),
        versions=versions(),
        training_images=training_statistics([header(*picture) for picture in data.training_pictures], torch.cat(grey)),
    )


def evaluate(run: Run, detector: AnomalyDetector) -> Predictions | None:
    """Score the test images, where there are any, and compute the metrics (step 4)."""
    if not run.data.test_samples:
        return None
    start = run.clock()
    evaluation = Evaluation(detector)
    trainer = run.trainer("test", precision="32-true", enable_checkpointing=False)
    device = detector.device
    trainer.test(evaluation, run.data.test_dataloader(), verbose=False)
    detector.to(device)  # Lightning leaves it on the CPU
    predictions = evaluation.predictions()
    run.metrics["test_seconds_per_image"] = (run.clock() - start) / len(run.data.test_samples)
    run.metrics |= {key: max(value, run.metrics.get(key, 0)) for key, value in peak_memory().items()}
    run.metrics |= prediction_metrics(
        predictions, detector.decision(), run.data.true_masks(predictions["index"]) if run.data.has_masks else None
    )
    told = detector.decision().false_alarms
    normal = run.metrics["normal_images"]
    above = round((run.metrics["false_positive_rate"] or 0) * normal)
    if normal and told.unlikely(above, normal):
        run.metrics["false_alarm_warning"] = (
            f"{above} of {normal} normal test images are above the threshold, where {told} were expected: they are of "
            "another kind than the calibration images, or these are not independent of one another (crops of one "
            "picture, shots of one item; see data.group)"
        )
    return predictions


def report(run: Run, detector: AnomalyDetector, predictions: Predictions | None) -> None:
    """Write scores, pictures, report, cards and metrics, tell the loggers, and print what was found (step 5)."""
    cards = write_cards(run, detector)
    if predictions is None:
        print(f"{run.data.folder} has no test images: no metrics")
    else:
        if run.config.pictures and isinstance(detector, FusionDetector):
            _draw_features(run, detector)
        floor = float(detector.map_floor)
        decision = detector.decision()
        pictures = run.config.pictures
        write_results(predictions, floor, decision, run.metrics, run.data, run.folder, pictures, run.command, cards)
        print(metrics_table(run.metrics, run.data.source_name))
    finished = run.folder / "metrics.json"  # last: a run folder that holds it is finished
    write_text(finished, json.dumps(run.metrics, indent=2, default=float) + "\n")
    try:
        log_results(run.loggers, run.folder, run.metrics)
    except BaseException:  # the same command is to log what is missing
        finished.unlink()
        raise
    print(f"decision {run.metrics['threshold_promise']}")
    if "false_alarm_warning" in run.metrics:
        print(f"warning: {run.metrics['false_alarm_warning']}", flush=True)
    if not run.folds and detector.decision().images_needed:
        print(f"advice   {cross_fit_advice(run.data)}")
    if predictions is not None:
        print(f"report   {run.folder / 'report.html'}")
    print(f"detector {run.folder / 'detector.pt'}")
    detector_file = shlex.quote(str(run.folder / "detector.pt"))
    print(f"next     texture-ad predict detector={detector_file} input=FILE_OR_FOLDER")


def cross_fits(config: DictConfig, data: TextureDataModule) -> bool:
    """Return whether all normal images train and calibrate, the latter by detectors that were fitted without them.

    With `cross_fit=auto` where those held out are too few for the rates that are asked for. Calibration images that
    the data set names are its owner's choice: these alone calibrate. Two images would be scored by each other, which
    tells no more than one score. A trial that may be pruned is watched by held-out images.
    """
    if config.cross_fit != "auto":
        return bool(config.cross_fit)
    if config.get("pruning"):
        return False
    needed = images_needed(min(config.false_alarm_rate, config.pixel_false_alarm_rate))
    return not data.layout.calibration and len(data.normal_samples) > 2 and len(data.calibration_samples) < needed


def cross_fit_advice(data: TextureDataModule) -> str:
    """Return what is told where too few images calibrate for the rate that is asked for."""
    count = len(data.normal_samples)
    if count == 2:
        return "with more photographs without defects all of them calibrate"
    return f"cross_fit=true calibrates on all {count} normal images, and fits longer"


def write_cards(run: Run, detector: AnomalyDetector) -> list[Card]:
    """Write the model card and the data card into the run folder, and return them."""
    facts = Facts(
        metrics=run.metrics | {"threshold": float(detector.threshold)},
        config=OmegaConf.to_container(run.config, resolve=True),  # type: ignore[arg-type]
        cross_fit=bool(run.folds),
        command=run.command,
        train=run.data.training_pictures,
        calibration=run.data.calibration_samples,
        test=run.data.test_samples,
        copies=run.copies,
        division=run.data.division,
        left_out={what: len(files) for what, files in run.data.left_out.items()},
        images=detector.provenance.training_images if detector.provenance else None,
        uses_backbone=detector.uses_backbone,
        uses_spams=detector.uses_spams,
        uses_positions=detector.uses_positions,
    )
    found = [model_card(facts), data_card(facts)]
    for card in found:
        write_text(run.folder / card.file, markdown(card))
    return found


def _draw_features(run: Run, detector: FusionDetector) -> None:
    """Draw what the flow and the dictionary learnt: t-SNE of features, and the most used atoms."""
    source = run.data.source_name
    path = run.folder / "tsne.png"
    try:
        features, labels = sample_features(run.pretrained_backbone(), detector, run.data, run.seed)
        layouts, labels = embed(features, labels, run.seed)
        charts.tsne(layouts, labels, path, source, "patches" if run.data.has_masks else "images")
    except UserError as error:
        print(f"warning: no t-SNE, {path}: {error}", flush=True)
    if detector.weight("dictionary"):
        panels.atoms(*atom_crops(detector, run.data), run.folder / "atoms.png", source)
