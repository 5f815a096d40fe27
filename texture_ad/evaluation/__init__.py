"""Turn scores, positions and truth into metrics, regions and curves, by pure functions."""
