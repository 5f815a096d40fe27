"""`python -m texture_ad.predict detector=DETECTOR.pt input=FILE_OR_FOLDER`: scores images with a saved detector."""

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main

KEYS = {"detector", "input", "output", "device", "batch_size", "pictures", "watch", "interval"}


@hydra_main("predict", KEYS)
def main(config: DictConfig) -> None:
    from pathlib import Path

    from texture_ad.data.images import IMAGE_SUFFIXES
    from texture_ad.deploy.scorer import Scorer, find_images, predict, watch
    from texture_ad.errors import UserError, check_number
    from texture_ad.methods.saved import load_detector
    from texture_ad.training.resources import keep_freed_memory

    check_number("batch_size", config.batch_size, 1, whole=True)
    check_number("interval", config.interval, 0, above=True)
    source = Path(config.input)
    output = Path(config.output)
    if not source.exists():
        raise UserError(f"input={source}: no such file or folder")
    if config.watch and not source.is_dir():
        raise UserError(f"input={source}: not a folder; watch=true needs one")
    paths = [] if config.watch else find_images(source, output)
    if not paths and not config.watch:
        raise UserError(f"input={source}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    keep_freed_memory()
    detector = load_detector(config.detector, config.device)
    output.mkdir(parents=True, exist_ok=True)
    scorer = Scorer(detector, source if source.is_dir() else source.parent, output if config.pictures else None)
    if config.watch:
        watch(scorer, source, output, config.batch_size, config.interval)
    else:
        predict(scorer, paths, output, config.batch_size)


if __name__ == "__main__":
    main()
