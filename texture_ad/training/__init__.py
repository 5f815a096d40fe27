"""Lightning's side: trainer, callbacks, checkpoints, processes, the run folder and the cache."""
