"""Our method as a detector: the fusion's model with its fit in two stages."""

from texture_ad.methods.base import Fitting
from texture_ad.methods.fusion.model import FusionModel


class FusionDetector(FusionModel):
    """Fit the fusion's model; its arguments are those of FusionModel."""

    def fit(self, fitting: Fitting) -> dict[str, float]:
        """Train stage 1, the representation, then stage 2, the dictionary."""
        # Here, since using a detector needs neither Lightning nor SPAMS.
        from texture_ad.methods.fusion.stages import fit_stages

        return fit_stages(self, fitting)
