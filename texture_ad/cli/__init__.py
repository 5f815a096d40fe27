"""All that knows Hydra: the command lines, their settings, names, sweeps and errors."""
