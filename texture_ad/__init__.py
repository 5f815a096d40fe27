"""Texture anomaly detection: CutPaste, a normalizing flow and dictionary learning, learnt from normal images."""

__version__ = "0.1.0"
