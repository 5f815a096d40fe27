"""What a run would use for what, told before it trains, and all for which it would be refused."""

import sys
from collections import Counter
from pathlib import Path

import torch
from omegaconf import DictConfig

from texture_ad.cli.advice import advised
from texture_ad.cli.experiment import check_start, hushed_libraries
from texture_ad.cli.explain import explain
from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.geometry import typical_shape
from texture_ad.data.images import Reading
from texture_ad.data.inspection import File, can_hash, copy_lines, described, inspect_files
from texture_ad.data.layouts.samples import read_marks
from texture_ad.environment import to_install
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import conformal_threshold, false_alarms, images_needed
from texture_ad.files import check_output_folder
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.stages import make_stages
from texture_ad.methods.registry import method_class
from texture_ad.pipeline import Run, build, check_settings, cross_fit_advice, cross_fits, make
from texture_ad.training.run_folder import check_fingerprint

LARGE = 3.0  # times smaller, or times longer than wide, from which on tiles are advised


def check_data(config: DictConfig) -> list[str]:
    """Print what the images of a configuration are used for, and return why a run would be refused.

    Args:
        config: of a run.

    Raises:
        UserError: nothing can be said of the images, since they can't be listed.
    """
    data = make("data", Run(config, Path(config.run_dir)).options("data") | {"cache_mb": 0})
    refused = _set_up(data)
    # What stopped the set-up may have kept it from finding these.
    reading, roi = getattr(data, "reading", Reading(frames=data.frames)), getattr(data, "interest", None)
    sides = {
        "training": inspect_files(data.training_pictures, reading, True, roi),
        "calibration": inspect_files((sample.picture for sample in data.calibration_samples), reading, True, roi),
        "test": inspect_files((sample.picture for sample in data.layout.test), reading),
    }
    files = [file for side in sides.values() for file in side]
    problems = [file.problem for file in files if file.problem]
    problems += [str(mark) for mark in read_marks(data.layout.test) if isinstance(mark, UserError)]
    # What stopped the set-up tells of the first of these, or of something else.
    problems += [problem for problem in refused if not any(known in problem for known in problems)]
    _print_use(data, sides)
    problems = problems or _not_built(config, data)
    if not problems:
        _print_seen(data, sides["training"], config)
        _print_expected(data, config)
    warnings = [*data.warnings, *copy_lines(sides, data.folder)]
    if not can_hash():
        warnings.append(f"near-duplicates were not looked for; {to_install('check')}")
    for warning in warnings:
        print(f"warning: {warning}")
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if data.unusable == "error" and any(file.problem for file in files):
        print("note     data.unusable=skip leaves images out that can't be used")
    print("refused  a run would be" if problems else "ready    a run would start")
    return problems


def _set_up(data: TextureDataModule) -> list[str]:
    """Set the data up as a run does, and return why that was refused.

    Raises:
        UserError: before the images were listed.
    """
    try:
        data.setup()
    except UserError as error:
        error = error.within("data") if isinstance(error, ParameterError) else error
        if not hasattr(data, "calibration_samples"):
            raise error from error.__cause__
        return [advised(error)]
    return []


def _not_built(config: DictConfig, data: TextureDataModule) -> list[str]:
    """Start as a run does with images that can be read, build all that is trained, and return why that was refused."""
    run = Run(config, Path(config.run_dir))
    run.data = data
    try:
        with hushed_libraries():
            check_output_folder(run.folder, "run_dir")
            check_start(config)
            check_settings(config)
            check_fingerprint(run.folder, data.fingerprint)
            run.logger_factories()  # which open nothing yet
            run.make("augmentation")
            run.trainer("stage1")
            detector = build(run)
            if isinstance(detector, FusionDetector):
                make_stages(detector, run)
    except Exception as error:
        line = explain(error, resumes=False)
        if line is None:
            raise
        return [line]
    return []


def _print_use(data: TextureDataModule, sides: dict[str, list[File]]) -> None:
    """Print what is used for what: a line for each side, for the kinds of defects, and for masks."""
    print(f"data     {data.source_name}: {data.folder}, layout {data.layout_name}")
    for side, files in sides.items():
        print(f"{side:<8} {len(files)} images{': ' if files else ''}{described(files)}")
    kinds = Counter(sample.kind for sample in data.layout.test)
    if kinds:
        print(f"kinds    {', '.join(f'{kind} ({count})' for kind, count in kinds.items())}")
        anomalous = [sample for sample in data.layout.test if sample.label]
        masked = sum(sample.mask is not None for sample in anomalous)
        print(f"masks    of {masked} of {len(anomalous)} anomalous images")


def _print_seen(data: TextureDataModule, files: list[File], config: DictConfig) -> None:
    """Print at which size a typical image is seen where that is another, and when tiles are to be thought of."""
    height, width = typical_shape([file.shape for file in files if file.shape])
    seen = data.geometry.size
    if data.geometry.tiled or seen == (height, width):
        return
    times = min(seen) / min(height, width)
    line = f"{width} x {height} px as {seen[1]} x {seen[0]} px"
    if abs(times - 1) > 0.05:
        line += f", {max(times, 1 / times):.1f} times {'larger' if times > 1 else 'smaller'}"
    if method_class(config.method.name).uses_positions is not True:  # which refuses tiles
        if 1 / times >= LARGE:
            line += "; data.tile=512 looks at parts of it at its own resolution, which small defects need"
        elif max(height, width) >= LARGE * min(height, width):
            line += f"; data.tile={max(64, min(height, width))} cuts strips into tiles, for which memory grows less"
    print(f"seen     {line}")


def _print_expected(data: TextureDataModule, config: DictConfig) -> None:
    """Print which share of normal images the calibration images promise, and what would let more of them calibrate."""
    folds = data.folds() if cross_fits(config, data) else []
    scores = torch.arange(float(len(data.normal_samples if folds else data.calibration_samples)))
    told = false_alarms(scores, conformal_threshold(scores, config.false_alarm_rate))
    line = f"of normal images {told} above the threshold, by {len(scores)} calibration images"
    if folds:
        line += f", cross-fitted by {len(folds)} more fits"
    elif len(scores) < images_needed(config.false_alarm_rate):
        line += f"; {cross_fit_advice(data)}"
    print(f"expected {line}")
