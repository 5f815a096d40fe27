"""Embedded data: five textures in MVTec AD's layout, generated here and available without a network.

The textures bear the names of MVTec AD's (carpet, grid, leather, tile, wood) and share nothing else with it. Results
on them are no benchmark and compare with no published number.

Detail and colour come from four photographs inside the scikit-image package (`photographs.py` names them).

Order of reading: `files.ensure` writes a data set, `rendering.render` makes one image. An image is a surface from
`textures.py`, a defect on it from `defects.py`, and one shot of both by `camera.py`.

Conventions: a surface is a float array (S, S, 3), RGB in about [0, 1], before lamp, lens and sensor. Lengths are in
pixels, axes go (row, column). Every function is pure: all chance comes from the generator that it is given.
"""

from texture_ad.data.embedded.defects import KINDS
from texture_ad.data.embedded.files import TEST_GOOD, TEST_PER_KIND, TRAIN_GOOD, ensure
from texture_ad.data.embedded.rendering import VERSION, VISIBLE, render
from texture_ad.data.embedded.textures import TEXTURES

__all__ = [
    "KINDS",
    "TEST_GOOD",
    "TEST_PER_KIND",
    "TEXTURES",
    "TRAIN_GOOD",
    "VERSION",
    "VISIBLE",
    "ensure",
    "render",
]
