"""Images: where they are, how they are read, split, batched, pasted and damaged."""
