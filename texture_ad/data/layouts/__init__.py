"""Which image is what: layouts of folders and tables, listed, split and checked.

`scan` lists a folder; `with_groups`, `with_test_images` and `split_calibration` divide what it lists.
"""

from texture_ad.data.layouts.files import copies, files_below, images_below, listed, pair_masks
from texture_ad.data.layouts.flat import Places
from texture_ad.data.layouts.recognition import LAYOUTS, enough, layout_name, scan
from texture_ad.data.layouts.samples import Layout, Sample, check_masks, fingerprint, with_frames
from texture_ad.data.layouts.splits import (
    calibration_folds,
    check_groups,
    split_calibration,
    with_groups,
    with_test_images,
)

__all__ = [
    "LAYOUTS",
    "Layout",
    "Places",
    "Sample",
    "calibration_folds",
    "check_groups",
    "check_masks",
    "copies",
    "enough",
    "files_below",
    "fingerprint",
    "images_below",
    "layout_name",
    "listed",
    "pair_masks",
    "scan",
    "split_calibration",
    "with_frames",
    "with_groups",
    "with_test_images",
]
