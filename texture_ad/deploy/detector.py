from texture_ad.methods.registry import load as _l
class Detector:
    @classmethod
    def load(cls, path, device="cpu"):
        d=cls(); d.module=_l(path, device); return d
