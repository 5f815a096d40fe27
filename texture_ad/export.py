"""`python -m texture_ad.export detector=DETECTOR.pt format=onnx`: write a detector as one graph for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main
from texture_ad.parameters import check
from texture_ad.predict import DECISION

if TYPE_CHECKING:
    from torch import Tensor

    from texture_ad.methods.base import AnomalyDetector

MAX_PHOTOGRAPHS = 64  # that the graph is compared on; reading and scoring more takes long


@hydra_main("export")
def main(config: DictConfig) -> None:
    """Write the graph of the detector that the configuration names, and print what it takes, returns and promises."""
    from texture_ad.deploy.export import check_request, example_photographs, export
    from texture_ad.deploy.runtimes import FORMATS, FormatName
    from texture_ad.methods.registry import load

    check("format", config.format, FormatName)
    target = Path(config.output or Path(config.detector).with_suffix(FORMATS[config.format].suffix))
    check_request(target, config.format, config.precision)  # before the detector and photographs are read
    detector = load(config.detector, allow=config.allow)
    photographs = _photographs(detector, Path(config.images)) if config.images else example_photographs(detector)
    decision = detector.decision(**{name: config[name] for name in DECISION if name in config})
    written = export(detector, target, config.format, photographs, config.precision, decision)
    loss = "" if written.loss is None else f", AUROC lower by {written.loss:.4f}, {written.others} labels differ"
    print(
        f"{config.format} {config.precision} {target}: images uint8 (B, 3, H, W) to {', '.join(written.outputs)}; on "
        f"{written.photographs} photographs, half of them with synthetic defects, within {written.difference:.1e} of "
        f"the detector's range of scores{loss}"
    )
    pixels = "" if decision.pixel_threshold is None else f", pixel threshold {decision.pixel_threshold:.4g}"
    print(f"decision threshold {decision.threshold:.4g}{pixels}; {decision.promise()}")


def _photographs(detector: "AnomalyDetector", folder: Path) -> list["Tensor"]:
    """Return the first MAX_PHOTOGRAPHS photographs below a folder, as the detector reads them, uint8 (3, H, W)."""
    import torch

    from texture_ad.data.images import read_image
    from texture_ad.deploy.scorer import require_images

    found = require_images(folder, None, "images")
    for sentence in found.left_out(folder):
        print(f"note     {sentence}", flush=True)
    images = [torch.from_numpy(read_image(path, detector.reading)) for path in found.images[:MAX_PHOTOGRAPHS]]
    # Of more than 8 bits they are floats in 0..255; the graph takes bytes.
    return [image.round().to(torch.uint8).permute(2, 0, 1) for image in images]


if __name__ == "__main__":
    main()
