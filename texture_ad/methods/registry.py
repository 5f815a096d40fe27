"""The systems that the paper compares with, one file each, and two references of today.

`conf/method/` holds their settings; `method=NAME` runs one instead of the fusion.
"""

from importlib import import_module

from texture_ad.errors import UserError

BASELINES = {
    "one_nn": "OneNN",
    "oc_svm": "OneClassSVM",
    "sparse_coding": "SparseCoding",
    "dsebm": "DSEBM",
    "ganomaly": "GANomaly",
    "patch_svdd": "PatchSVDD",
    "cutpaste": "CutPaste",
    "patchcore": "PatchCore",
    "padim": "PaDiM",
}


def baseline_class(name: str) -> type:
    """The class of one of BASELINES; imports its file alone.

    Raises:
        UserError: another name.
    """
    if name not in BASELINES:
        raise UserError(f"method.name={name}: expected one of fusion, {', '.join(BASELINES)}")
    return getattr(import_module(f"texture_ad.methods.{name}"), BASELINES[name])
