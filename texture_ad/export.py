"""`python -m texture_ad.export detector=DETECTOR.pt format=onnx`: the detector as one graph, for other runtimes.

The graph takes `images`, uint8 (B, 3, size, size) RGB, and gives `scores` (B,) and `anomaly_maps` (B, size, size).
"""

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main

KEYS = {"detector", "format", "output"}
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4  # of scores and maps, relative to their own size where that is above 1


@hydra_main("export", KEYS)
def main(config: DictConfig) -> None:
    from pathlib import Path

    from texture_ad.errors import UserError
    from texture_ad.methods.fusion.detector import Detector
    from texture_ad.methods.saved import load_detector

    if config.format not in FORMATS:
        raise UserError(f"format={config.format}: expected one of {', '.join(FORMATS)}")
    detector = load_detector(config.detector, coder="torch")
    if not isinstance(detector, Detector):
        raise UserError(f"detector={config.detector}: of method {detector.name}; only the fusion's can be exported")
    target = Path(config.output or Path(config.detector).with_suffix(FORMATS[config.format]))
    target.parent.mkdir(parents=True, exist_ok=True)
    difference = export(detector, target, config.format)
    print(
        f"{config.format} {target}: images uint8 (B, 3, {detector.settings['size']}, {detector.settings['size']}) to "
        f"scores and anomaly_maps, within {difference:.1e} of the detector"
    )


def export(detector, target, format: str) -> float:
    """Writes the graph whole or not at all, after comparing it with the detector on random images.

    Args:
        detector: on the CPU, with the torch coder.
        target: a Path.
        format: one of FORMATS.

    Returns:
        The largest difference of scores and maps.

    Raises:
        UserError: a package is missing, or the graph differs by more than TOLERANCE.
    """
    import contextlib
    import io
    import os

    import torch

    from texture_ad.errors import UserError

    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = detector

        def forward(self, images):
            return self.detector.scores_and_maps(images)[:2]

    graph = Graph().eval()
    size = detector.settings["size"]
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = detector(images)[:2]
    partial = target.with_name(f"{target.stem}.partial{FORMATS[format]}")
    try:
        with torch.no_grad():
            # Not by 1: a batch of one would be taken for a constant.
            program = torch.export.export(
                graph, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},)
            )
        if format == "onnx":
            try:
                import onnxruntime
                import onnxscript  # noqa: F401, torch's exporter needs it
            except ImportError as error:
                raise UserError(
                    f"format=onnx: {error.name} is not installed; pip install texture_ad[export]"
                ) from error
            with contextlib.redirect_stdout(io.StringIO()):
                torch.onnx.export(
                    program,
                    f=str(partial),
                    dynamo=True,
                    input_names=["images"],
                    output_names=["scores", "anomaly_maps"],
                    external_data=False,
                )
            session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
            found = [torch.from_numpy(v) for v in session.run(None, {"images": images.numpy()})]
        else:
            torch.export.save(program, partial)
            found = torch.export.load(partial).module()(images)
        differences = [((a - b).abs() / b.abs().clamp(min=1)).max() for a, b in zip(found, expected, strict=True)]
        difference = float(torch.stack(differences).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"format={format}: the graph differs from the detector by {difference:.1e}, more than "
                f"{TOLERANCE}; nothing was written"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return difference


if __name__ == "__main__":
    main()
