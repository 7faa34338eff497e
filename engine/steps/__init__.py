"""One step of the model: sequences and slices, batches, the runner, CUDA graphs."""
