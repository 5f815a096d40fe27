"""What the command line adds to the errors of parameters: the key's group, and what else to try.

A class names its own parameter ("lr=-1: expected ..."). Here stands what only the command line knows.
"""

from texture_ad.errors import DivergenceError, ParameterError, UserError

# Parameters that are checked outside their group's target.
GROUPS = {"devices": "trainer", "strategy": "trainer", "head_weight": "score", "mode": "whitening"}
GROUPS |= dict.fromkeys(("layout", "table", "normal", "anomalous", "group"), "data")

# What a method refuses, though another group sets it.
RENAMED = {"method.tile": "data.tile", "method.mode": "whitening.mode"}

# Full key, words of the problem, advice.
ADVICE = (
    (
        "backbone.weights",
        "could not be downloaded",
        "give a local file with backbone.weights=FILE, or use backbone=efficientnet_lite0, whose weights are in a "
        "package",
    ),
    ("backbone.weights", "not a state dict", "or backbone.weights=pretrained"),
    (
        "data.root",
        "no such folder",
        "give the folder of your images; MVTec AD is imported by texture-ad import ARCHIVE ROOT",
    ),
    ("data.category", "the folder of one texture", "add data=folder"),
    (
        "data.layout",
        "has no",
        "or say by data.normal, data.anomalous and data.masks, or data.table, where the images are",
    ),
    ("data.layout", "is laid out as", "say which"),
    *(
        (f"data.{name}", "is for the source folder", "add data=folder")
        for name in ("layout", "table", "normal", "anomalous", "masks")
    ),
    (
        "data.tile",
        "leave tile out",
        "or take tiles as high or as wide as all pictures, method=fusion or method=patchcore",
    ),
    ("input", "not a folder", "watch=true needs one"),
    ("trainer.devices", "a sweep's job takes one device", "or several jobs side by side with hydra/launcher=joblib"),
)


def advised(error: UserError) -> str:
    """Return an error's line with the configuration's keys and the advice for its kind."""
    if isinstance(error, DivergenceError):
        return str(error.within(error.part))
    if not isinstance(error, ParameterError):
        return str(error)
    if error.name in RENAMED:
        error = ParameterError(RENAMED[error.name], error.value, error.problem)
    if error.name in GROUPS:
        error = error.within(GROUPS[error.name])
    if error.name == "data.root" and "no folder was given, and mvtec" in error.problem:
        return "data=mvtec: no data.root was given; set data.root or MVTEC_AD_ROOT to the folder with the images"
    if error.name == "data.root" and "no folder was given" in error.problem:
        return "data=folder: no data.root was given; set data.root to the folder with the images"
    advice = [text for key, words, text in ADVICE if error.name == key and words in error.problem]
    return "; ".join([str(error), *advice]).replace("; or ", ", or ")
