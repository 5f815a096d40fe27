"""`python -m texture_ad.predict detector=DETECTOR.pt input=FILE_OR_FOLDER`: scores images with a saved detector."""

from omegaconf import DictConfig

from texture_ad.cli import hydra_main

KEYS = {"detector", "input", "output", "device", "batch_size", "pictures"}


@hydra_main("predict", KEYS)
def main(config: DictConfig) -> None:
    import csv
    import os
    from pathlib import Path

    import torch

    from texture_ad.data.images import IMAGE_SUFFIXES, read_image, resize
    from texture_ad.errors import UserError
    from texture_ad.evaluation.localization import region_mask
    from texture_ad.models.detector import Detector
    from texture_ad.reporting.figures import localization_panel

    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: expected at least 1")
    source = Path(config.input)
    if not source.exists():
        raise UserError(f"input={source}: no such file or folder")
    root = source if source.is_dir() else source.parent
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"input={source}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    detector = Detector.load(config.detector, config.device)
    size, threshold = detector.settings["size"], float(detector.threshold)
    trained_on = detector.meta.get("data_source", "unknown data")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for start in range(0, len(paths), config.batch_size):
        chunk, images = [], []
        for path in paths[start : start + config.batch_size]:
            try:
                images.append(resize(read_image(path), size))
                chunk.append(path)
            except UserError as error:
                failed.append(str(error))
        if not chunk:
            continue
        batch = torch.stack(images).to(config.device)
        scores, maps, locations = (t.cpu() for t in detector(batch))
        grid = detector.patch_features(batch[:1])[1]
        for i, path in enumerate(chunk):
            name, score = path.relative_to(root), float(scores[i])
            rows.append((name, f"{score:.8g}", f"{threshold:.8g}", int(score > threshold)))
            if config.pictures:
                target = output / "overlays" / name.with_suffix(".png")
                target.parent.mkdir(parents=True, exist_ok=True)
                region = region_mask(locations[i].numpy(), grid, (size, size))
                localization_panel(images[i].permute(1, 2, 0).numpy(), maps[i].numpy(), region, None, score, threshold,
                                   None, target, 0.0, max(2 * threshold, 1.0), f"detector of {trained_on}")  # fmt: skip
    with open(output / "scores.csv.partial", "w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([("path", "score", "threshold", "anomalous"), *rows])
    os.replace(output / "scores.csv.partial", output / "scores.csv")
    print(
        f"detector of {trained_on}: {sum(r[3] for r in rows)} of {len(rows)} images above the threshold {threshold:.4g}"
    )
    print(f"scores   {output / 'scores.csv'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} images could not be scored, first: {failed[0]}")


if __name__ == "__main__":
    main()
