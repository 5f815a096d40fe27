"""`python -m texture_ad.update detector=DETECTOR.pt images=FOLDER`: add good photographs to a saved detector."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main
from texture_ad.errors import ParameterError
from texture_ad.parameters import check

STEEP = 2.0  # deviations of calibration scores, beyond which a threshold's rise is told


@hydra_main("update")
def main(config: DictConfig) -> None:
    """Write a detector that has learnt from more photographs, and print what changed."""
    from texture_ad.data.layouts import listed
    from texture_ad.deploy.scorer import require_images
    from texture_ad.deploy.update import update
    from texture_ad.files import check_output_file
    from texture_ad.methods.registry import load

    check("overwrite", config.overwrite, bool)
    before = Path(config.detector)
    target = Path(config.output or before.with_name(f"{before.stem}_updated{before.suffix}"))
    if target.exists() and not config.overwrite:
        raise ParameterError("output", target, "exists; give another file, or overwrite=true")
    check_output_file(target)  # not after minutes of work
    source = Path(config.images)
    found = require_images(source, None, "images")
    for sentence in found.left_out(source):
        print(f"note     {sentence}", flush=True)
    detector = load(before, config.device, config.allow)
    rates = (config.false_alarm_rate, config.pixel_false_alarm_rate)
    change = update(detector, source, found.images, config.batch_size, *rates)
    detector.save(target)
    if change.copies:
        print(f"note     {len(change.copies)} photographs are copies of others, left out: {listed(change.copies)}")
    for sentence in change.unlike:
        print(f"warning: {sentence}; from now on they count as like them", file=sys.stderr)
    if change.above_before:
        names = listed(change.above_before)
        print(
            f"warning: look at those that were above the threshold, {names}: a defect among them would be normal from "
            "now on",
            file=sys.stderr,
        )
    if change.rise > STEEP:
        print(
            f"warning: the threshold rose by {change.rise:.1f} deviations of the calibration scores of before; look at "
            "the photographs before you use this detector",
            file=sys.stderr,
        )
    decision = detector.decision()
    print(
        f"update   {before} and {change.images} photographs of {source}\n"
        f"new ones {len(change.above_before)} of {change.images} were above the threshold before, "
        f"{change.above} are now\n"
        f"decision threshold {change.threshold_before:.4g} before, {change.threshold:.4g} now; {decision.promise()}\n"
        f"detector {target}"
    )


if __name__ == "__main__":
    main()
