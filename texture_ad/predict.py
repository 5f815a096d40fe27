"""`python -m texture_ad.predict detector=DETECTOR.pt input=FILE_OR_FOLDER`: score images with a saved detector."""

from pathlib import Path

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main
from texture_ad.errors import ParameterError
from texture_ad.parameters import Count, NonNegative, Positive, check

# Arguments of `AnomalyDetector.decision`, which `serve` and `export` take as well.
DECISION = ("false_alarm_rate", "pixel_false_alarm_rate", "threshold", "pixel_threshold", "min_area")
OF_MAPS = ("masks", "maps", "regions", "submission")  # which a method without maps has not
OF_WATCH = ("webhook", "mqtt")


@hydra_main("predict")
def main(config: DictConfig) -> None:
    """Score the file or folder that the configuration names, once or as new files arrive."""
    from texture_ad.deploy.engines import FEW, EngineName, leave_cores, use_engine
    from texture_ad.deploy.notify import notifier
    from texture_ad.deploy.outputs import Wanted, check_distinct, check_unwatched
    from texture_ad.deploy.scorer import Found, Scorer, predict, require_images
    from texture_ad.deploy.watch import check_endless, check_folder, watch
    from texture_ad.files import check_output_folder
    from texture_ad.methods.registry import load
    from texture_ad.training.resources import keep_freed_memory

    # Before the detector is read, which takes seconds.
    check("batch_size", config.batch_size, Count)
    check("interval", config.interval, Positive)
    check("settle", config.settle, NonNegative)
    check("report", config.report, Positive | None)
    check("engine", config.engine, EngineName)
    for name in (*Wanted._fields, "watch", "unsure"):
        check(name, config[name], bool)
    for name in OF_WATCH:
        if config[name] is not None and not config.watch:
            raise ParameterError(name, "URL", "tells of a watched folder; add watch=true")  # it may hold a password
    wanted = Wanted(**{name: config[name] for name in Wanted._fields})
    source = Path(config.input)
    output = Path(config.output)
    found = Found([], [], []) if config.watch else require_images(source, output)
    paths = found.images
    for sentence in found.left_out(source):
        print(f"note     {sentence}", flush=True)
    if config.submission:
        check_distinct(paths)
    if config.watch:
        check_folder(source)
        check_endless(wanted)
    else:
        check_unwatched(output)
    check_output_folder(output)
    notify = notifier(config.webhook, config.mqtt)
    keep_freed_memory()
    detector = load(config.detector, config.device, config.allow)
    for name in OF_MAPS:
        if config[name] and not len(detector.calibration_maxima):
            raise ParameterError(name, config[name], f"method {detector.name} has no anomaly map")
    decision = detector.decision(**{name: config[name] for name in DECISION})
    # A watched folder begins at once: by itself it uses an engine's file, and makes none.
    count = FEW if config.watch else len(paths)
    engine = use_engine(detector, Path(config.detector), config.engine, count)
    print(f"engine   {engine}", flush=True)
    scorer = Scorer(detector, source, output, decision, wanted, unsure=config.unsure)
    leave_cores(detector)
    if config.watch:
        with notify as tell:
            watch(scorer, source, output, config.batch_size, config.interval, config.report, tell, config.settle)
    else:
        predict(scorer, paths, output, config.batch_size)


if __name__ == "__main__":
    main()
