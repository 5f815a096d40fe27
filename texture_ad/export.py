"""`python -m texture_ad.export detector=DETECTOR.pt format=onnx`: write a detector as one graph for other runtimes."""

from pathlib import Path

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main
from texture_ad.parameters import check


@hydra_main("export")
def main(config: DictConfig) -> None:
    """Write the graph of the detector that the configuration names, and print what it takes and returns."""
    from texture_ad.deploy.export import FORMATS, FormatName, export
    from texture_ad.methods.registry import load

    check("format", config.format, FormatName)
    detector = load(config.detector)
    target = Path(config.output or Path(config.detector).with_suffix(FORMATS[config.format].suffix))
    written = export(detector, target, config.format)
    height, width = detector.geometry.size
    print(
        f"{config.format} {target}: images uint8 (B, 3, {height}, {width}) to "
        f"{' and '.join(written.outputs)}, within {written.difference:.1e} of the detector"
    )


if __name__ == "__main__":
    main()
