"""Train the two stages of our method in a Trainer of your own: `python examples/own_trainer.py FOLDER`.

The parts come from the configuration, as in a run. What a run adds (callbacks that resume and repeat, loggers, the run
folder) is left to you.
"""

import sys
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from texture_ad.cli.compose import as_overrides, compose
from texture_ad.methods.base import AnomalyDetector
from texture_ad.methods.evaluation import Evaluation
from texture_ad.pipeline import Run, build, calibrate


def train(photographs: Path, folder: Path, *overrides: str, **options: object) -> AnomalyDetector:
    """Return a fitted and calibrated detector; its file is `folder`/detector.pt.

    Args:
        photographs: folder with `train/good`.
        folder: for the results.
        overrides: of the configuration, such as "flow.blocks=4".
        options: of every lightning.Trainer.
    """
    # Folds, which calibrate where photographs are few, would be fitted as a run's are, not as here.
    settings = {"data": "folder", "data.root": photographs, "run_dir": folder, "cross_fit": False}
    config = compose([*as_overrides(settings), *overrides])
    L.seed_everything(config.seed, workers=True)
    run = Run(config, folder)
    run.data = data = run.make("data")  # a LightningDataModule
    data.setup()

    detector = build(run)
    features = run.make("features", detector=detector)

    # Stage 1: the flow, and the head by CutPaste. Any callback and logger of yours fits.
    density = run.make("density", detector=detector, features=features)
    trainer = L.Trainer(max_epochs=4, callbacks=[EarlyStopping("val/nll", patience=2)], **options)
    trained, watched = density.prepare(data, trainer.strategy.root_device, config.seed)
    trainer.fit(density, trained, watched)
    detector.set_trust(len(data.train_samples))

    # Stage 2: the dictionary.
    detection = run.make("detection", detector=detector, features=features)
    trainer = L.Trainer(max_epochs=detection.epochs, limit_val_batches=0, **options)
    trainer.fit(detection, data.normal_dataloader())

    detector.to(trainer.strategy.root_device)
    calibrate(run, detector)
    if data.test_samples:
        L.Trainer(**options).test(Evaluation(detector), datamodule=data)
    return detector


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path("runs/own_trainer"))
    print("detector runs/own_trainer/detector.pt")
