"""Our method: CutPaste, a flow and a dictionary on patch features, fused."""
