"""The methods, each an AnomalyDetector: ours in `fusion`, and the baselines."""
